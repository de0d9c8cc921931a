"""The loss of a step is what its terms and their weights say."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from jointdreamer.distillation.base import TrainedBeside, merged_groups, metrics_of, pictures_of, weighted_sum
from jointdreamer.errors import UserError


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


def trains(**roles):
    return SimpleNamespace(parameter_groups=lambda: {role: [nn.Parameter(torch.zeros(n))] for role, n in roles.items()})


def test_a_role_belongs_to_one():
    merged = merged_groups(part.parameter_groups() for part in (trains(geometry=1, appearance=2), trains(lora=3)))
    assert {role: len(group[0]) for role, group in merged.items()} == {"geometry": 1, "appearance": 2, "lora": 3}
    for parts in ([trains(lora=1), trains(lora=1)], [trains(geometry=1), trains(geometry=1, lora=1)]):
        with pytest.raises(UserError, match="two of the scene and its terms train parameters of the role"):
            merged_groups(part.parameter_groups() for part in parts)
    with pytest.raises(UserError, match="role 'lora'"):
        TrainedBeside([trains(lora=1), trains(lora=1)])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("roles", "says"), [({}, "trains nothing"), ({"pose": 1}, "holds lora .* trains pose")])
def test_a_checkpoint_of_other_terms_is_one_line(roles, says):
    state = {"lora": [torch.ones(1)]}
    with pytest.raises(UserError, match=says) as error:
        TrainedBeside([trains(**roles)]).load_state_dict(state)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)
