"""Runs of earlier versions, typed by hand as those wrote them."""

import copy
from types import SimpleNamespace

import torch

from jointdreamer.cli import main as cli
from jointdreamer.optim import build_optimizer
from jointdreamer.runs.versions import current_config, current_parts

LR = {  # of the toybox's schedule until 2026-11-29
    "encoding": [[0, 2.0e-2], [150, 1.0e-2, "linear"], [300, 1.0e-3, "linear"]],
    "density": [[0, 1.0e-2], [150, 5.0e-3, "linear"], [300, 5.0e-4, "linear"]],
    "albedo": [[0, 1.0e-2], [240, 1.0e-2], [300, 1.0e-3, "linear"]],
    "background": 1.0e-3,
}


def of_before(config, prior="text_to_image", weighting="sds", mvdream=None):
    """The same run's config.yaml of 2026-11-28."""
    old = copy.deepcopy(config)
    del old["scene"], old["field"]["encoding_lr"], old["distillation"]["terms"]
    old["distillation"] |= {"prior": prior, "weighting": weighting}
    old["schedule"]["lr"] = LR
    old["schedule"]["loss"] = {**old["schedule"]["loss"], "jsd": 1}
    old["schedule"]["loss"].pop("mvdream", None)
    if mvdream is not None:
        old["schedule"]["loss"]["mvdream"] = mvdream
    return old


def composed(*words):
    return cli.composed("config", ["prompt=a bear", *words], models="toybox")


def test_what_is_current_stays():
    config = composed("energy=mvs")
    assert current_config(config) == config


def test_a_run_from_before_terms_and_roles():
    config = composed("energy=mvs")
    assert current_config(of_before(config)) == config


def test_runs_of_the_baselines_from_before_terms():
    alone = composed("distillation=mvdream")
    assert current_config(of_before(alone, "multi_view", "x0")) == alone
    both = composed("distillation=sum", "schedule.loss.mvdream=0.3")
    assert current_config(of_before(both, mvdream=0.3)) == both


def test_rates_without_a_common_factor_have_no_meaning_any_more():
    old = of_before(composed())
    old["schedule"]["lr"] = {**LR, "encoding": 0.01}
    assert current_config(old)["field"]["encoding_lr"] is None


def test_a_run_from_before_its_encoding_was_a_group():
    inside = {"n_levels": 2, "log2_table_size": 6, "backend": "torch"}
    assert current_config({"field": {**inside, "hidden": 8}})["field"] == {"encoding": inside, "hidden": 8}


def test_a_checkpoint_from_before_scenes_goes_on():
    """Its optimiser's groups have the old names; a step after it is the step that it would have done."""
    new, old = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    one = build_optimizer({"geometry:encoding": [new]}, {"geometry:encoding": 2.0})
    before = torch.optim.AdamW([{"params": [old], "name": "encoding"}], betas=(0.9, 0.99), eps=1e-15)
    for optimizer, p in ((before, old), (one, new)):
        p.grad = torch.tensor([1.0, 2.0, 3.0])
        if optimizer is before:
            before.param_groups[0]["lr"] = 0.2
            before.step()
    parts = {"field": {"x": old.detach().clone()}, "background": {}, "renderer": {}, "optimizer": before.state_dict()}
    found = current_parts(parts)
    assert found["scene"].keys() == {"field.x"} and found.keys() == {"scene", "optimizer"}
    new.data.copy_(found["scene"]["field.x"])
    one.load_state_dict(found["optimizer"])
    one.step(SimpleNamespace(geometry=0.1))
    before.step()
    torch.testing.assert_close(new, old)


def test_a_checkpoint_that_is_current_stays():
    parts = {"scene": {"x": 1}, "optimizer": {"param_groups": []}}
    assert current_parts(parts) == parts
