"""What counts as the same run: keys, weights and schedules that compute the parameters, and nothing else."""

import copy

import pytest

from jointdreamer.cli import main as cli
from jointdreamer.comparison import BEFORE, TAKERS, compare, compare_classifiers
from jointdreamer.errors import UserError
from jointdreamer.project import CONF
from jointdreamer.runs.same_config import flat

KINDS = {
    "none": ["energy=none"],
    "mvs": ["energy=mvs"],
    "cls": ["energy=cls"],
    "i2i": ["energy=i2i"],
    "mvdream": ["distillation=mvdream"],
    "sum": ["distillation=sum"],
    "vsd with two networks": ["distillation=vsd", "+distillation.terms.vsd.baseline.prior=multi_view"],
    "sd21": ["models=sd21", "energy=mvs"],
}
_made = {}


def config(kind="none"):
    """The config of train.py for a small world, or another; a fresh copy."""
    if kind not in _made:
        _made[kind] = cli.composed("config", KINDS[kind], models="toybox")
        for key in ("prompt_file", "prompt_id"):
            _made[kind].pop(key)
    return copy.deepcopy(_made[kind])


def put(config, key, value):
    *groups, last = key.split(".")
    for group in groups:
        config = config[group]
    config[last] = value


def compared(kind, changes, done=100):
    """A run of `done` steps against the same command with `changes`."""
    there, here = config(kind), config(kind)
    for key, value in changes.items():
        put(here, key, value)
    return compare(there, here, done)


def test_a_config_is_equal_to_itself():
    for kind in KINDS:
        found = compare(config(kind), config(kind), 100)
        assert found.equal and found.complete and not found.differing and not found.remarks


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("none", {"output.mesh_resolution": 24, "output.fps": 10, "output.views": 9}),
        ("none", {"device": "cuda", "out_dir": "x", "name": "y", "every.log": 3, "logger": {"wandb": {}}}),
        (
            "none",
            {"field.encoding.backend": "torch", "renderer.backend": "torch", "models.compile": True},
        ),
        ("none", {"models.classifier.ascent": 4, "models.novel_view.steps": 7, "models.multi_view.rescale": 0.1}),
        ("none", {"distillation.mask": "none", "distillation.energy_limit": 9.0, "schedule.energy_weight": 7}),
        ("none", {"negative_prompt": "ugly"}),  # which the toybox's schedule never uses
        ("cls", {"models.classifier.low_memory": True, "models.novel_view.steps": 4}),
        ("mvdream", {"models.text_to_image.x0_rescale": 0.1}),
        ("none", {"schedule.steps": 400}),
        ("none", {"schedule.steps": 100}),
        ("none", {"schedule.guidance_scale": [[0, 2], [200, 3]]}),  # later than what is done
    ],
)
def test_what_computes_no_parameter_may_differ(kind, changes):
    found = compared(kind, changes)
    assert not found.differing and not found.remarks and not found.elsewhere and not found.equal
    assert found.other_outputs == any(key.startswith("output") for key in changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("none", {"prompt": "another"}),
        ("none", {"seed": 1}),
        ("none", {"cameras.n_views": 8}),
        ("none", {"models.text_to_image.x0_rescale": 0.1}),
        ("none", {"models.dtype": "float32"}),
        ("none", {"distillation.x0_limit": None}),
        ("none", {"schedule.guidance_scale": [[0, 2], [99, 3]]}),
        ("none", {"schedule.loss.mvdream": 0.5}),
        ("mvs", {"distillation.mask": "none"}),
        ("mvs", {"schedule.energy_weight": 7}),
        ("mvs", {"models.multi_view.rescale": 0.1}),
        ("mvdream", {"models.multi_view.rescale": 0.1}),
        ("sum", {"models.multi_view.rescale": 0.1}),
        ("vsd with two networks", {"models.multi_view.rescale": 0.1}),
        ("sd21", {"negative_prompt": "ugly"}),
        ("cls", {"models.classifier.decoder": "elsewhere"}),
    ],
)
def test_what_computes_parameters_is_named(kind, changes):
    (said, *_) = compared(kind, changes).differing
    assert said.startswith(next(iter(changes)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_did_not_exist_is_what_was_done_before(kind):
    """Every setting of a run that a version might have added: there it counts as the default of who takes it."""
    there = config(kind)
    for key, value in flat(there).items():
        group, _, last = key.rpartition(".")
        defaults = BEFORE | {
            f"{group}.{last}": one for taker in TAKERS.get(group, ()) for one in defaults_of(taker, last)
        }
        if key in defaults and isinstance(value, int | float | str | None):
            here, older = config(kind), config(kind)
            put(here, key, defaults[key])
            parent = older
            for name in key.split(".")[:-1]:
                parent = parent[name]
            del parent[last]
            assert not compare(older, here, 100).differing, key
            assert not compare(here, older, 100).differing, key


def defaults_of(taker, name):
    import inspect

    found = inspect.signature(taker).parameters.get(name)
    return [found.default] if found is not None and found.default is not found.empty else []


def test_a_setting_whose_default_was_not_what_is_asked_for_counts():
    older = config("mvs")
    del older["distillation"]["energy_x0"]
    here = config("mvs")
    assert not compare(older, here, 1).differing
    here["distillation"]["energy_x0"] = "guided"
    assert compare(older, here, 1).differing == ("distillation.energy_x0 is 'uncond' there, 'guided' here",)
    del older["models"]["multi_view"]["rescale"]  # an energy's own
    here["distillation"]["energy_x0"] = "uncond"
    assert not compare(older, here, 1).differing
    here["models"]["multi_view"]["rescale"] = 0.25
    assert compare(older, here, 1).differing == ("models.multi_view.rescale is 0.5 there, 0.25 here",)
    here = config("mvs") | {"foreign": 1}
    assert compare(config("mvs"), here, 1).differing == ("foreign is absent there, 1 here",)


def test_the_field_s_settings_of_old_runs_stand_where_they_do_now():
    older = config()
    older["field"] |= older["field"].pop("encoding")
    assert not compare(older, config(), 1).differing
    older["field"]["n_levels"] = 3
    assert compare(older, config(), 1).differing == ("field.encoding.n_levels is 3 there, 6 here",)


def test_weights_are_named_by_where_they_lie(tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    there, here = config(), config()
    there["models"]["text_to_image"]["source"] = str(tmp_path / "copy")
    here["models"]["text_to_image"]["source"] = str(tmp_path / "link" / ".." / "link")
    assert compare(there, here, 1).complete
    here["models"]["text_to_image"]["source"] = "org/other@main"
    found = compare(there, here, 1)
    assert not found.differing and not found.complete and "source is" in found.elsewhere[0]
    absolute = config()
    absolute["models"]["text_to_image"]["source"] = str(CONF.parents[0] / config()["models"]["text_to_image"]["source"])
    assert compare(config(), absolute, 1).complete == (CONF.parent / "jointdreamer").is_dir()


def test_shares_of_the_run_move_and_that_is_said():
    there, here = config(), config()
    for one, steps in ((there, 300), (here, 600)):
        one["schedule"] |= {"steps": steps, "guidance_scale": [[0, 2], ["50%", 3]]}
    found = compare(there, here, 300)
    assert not found.differing and "schedule.guidance_scale" in found.remarks[0]
    assert not compare(there, here, 150).remarks  # nothing of it was seen yet
    here["schedule"]["guidance_scale"] = [[0, 2], ["25%", 4]]
    assert compare(there, here, 300).differing


def test_fewer_steps_than_are_done_are_refused_with_the_way_out():
    here = config()
    here["schedule"]["steps"] = 99
    with pytest.raises(
        UserError, match="100 steps are done, and schedule.steps=99 asks for fewer: ask for 100 or more"
    ):
        compare(config(), here, 100)


@pytest.mark.parametrize(
    "odd", [None, [], 5, "x", {"steps": None}, {"steps": 300, "lr": [[5]]}, {"steps": float("inf")}]
)
@pytest.mark.parametrize("key", ["schedule", "models", "field", "energy", "distillation", "output"])
def test_an_odd_config_differs_and_breaks_nothing(key, odd):
    there = config("mvs")
    there[key] = odd
    found = compare(there, config("mvs"), 10)
    assert found.differing or key == "output" or (key, type(odd)) == ("schedule", dict)
    assert not found.equal


def test_a_classifier_s_training_reads_no_energies_models():
    there = cli.composed("train_classifier", ["data.folder=x"], models="toybox")
    here = copy.deepcopy(there)
    here["models"]["classifier"]["ascent"] = 99
    here["data"]["workers"] = 1
    del there["training"]["step_weight"]
    here["training"]["step_weight"] = 0
    assert not compare_classifiers(there, here, 5).differing
    here["training"]["lr"] = 0.1
    assert len(compare_classifiers(there, here, 5).differing) == 1
