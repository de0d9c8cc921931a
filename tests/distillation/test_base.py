"""The loss of a step is what its terms and their weights say."""

from types import SimpleNamespace

import torch

from jointdreamer.distillation.base import metrics_of, pictures_of, weighted_sum


def test_the_loss_is_the_weighted_sum():
    losses = {"jsd": torch.tensor(2.0, requires_grad=True), "sparsity": torch.tensor(3.0)}
    loss = weighted_sum(losses, SimpleNamespace(jsd=1, sparsity=0.5, orient=0))
    assert loss.item() == 3.5
    loss.backward()
    assert losses["jsd"].grad == 1


def test_the_first_term_s_word_counts():
    terms = [SimpleNamespace(metrics={"coherence": i}, pictures=lambda i=i: {"x0": i, f"own {i}": i}) for i in (1, 2)]
    assert metrics_of(terms) == {"coherence": 1}  # pyright: ignore[reportArgumentType]
    assert pictures_of(terms) == {"x0": 1, "own 1": 1, "own 2": 2}  # pyright: ignore[reportArgumentType]
