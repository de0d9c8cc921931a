"""What the scripts read of a config themselves."""

import pytest
import torch

from jointdreamer.cli.settings import device_of


@pytest.mark.parametrize(
    ("device", "cuda", "found"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cuda", True, "cuda"), ("cpu", True, "cpu")],
)
def test_cuda_is_taken_where_it_is_unless_the_config_says_cpu(monkeypatch, device, cuda, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert device_of({"device": device}) == found
