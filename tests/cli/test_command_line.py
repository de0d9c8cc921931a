from typing import Any

import pytest

from jointdreamer.cli import command_line
from jointdreamer.cli.command_line import complete, own_words, settle_name
from jointdreamer.errors import UserError
from jointdreamer.project import CONF

NASTY = [
    "a corgi, 8K",
    'a "quoted" cat',
    "it's: {a=[b]}",
    "a\nb",
    "🤖 ../../etc",
    "${prompt}",
    "x" * 10_000,
    "ロボット",
]


def through_hydra(*words: str) -> Any:
    """The prompt in the config that Hydra makes of the words."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg: Any = OmegaConf.to_container(compose("config", [*words, "name=test"]), resolve=True)
    return cfg["prompt"]


def swept(word: str) -> list[str]:
    """The values that Hydra's sweeper makes of a word."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(word)
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [word.partition("=")[2]]


def test_globs_reach_the_config_as_typed_and_all_of_them_count():
    from hydra import compose, initialize_config_dir

    words = complete(["runs=a/[01]*,x/**", "seed=1", "runs=b c", "study=[x]"], None, multirun=False)
    assert words[2] == "seed=1"
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("evaluate", words[:2])
    assert cfg.runs == "a/[01]*,x/**\nb c" and cfg.study == "[x]"


@pytest.mark.parametrize("prompt", NASTY)
def test_a_prompt_reaches_the_config_as_typed(prompt):
    assert through_hydra(*complete([f"prompt={prompt}"], lambda: False, multirun=False)) == prompt


def test_quotes_meant_for_hydra_are_taken_off():
    assert through_hydra(*complete(['prompt="a corgi, 8K"'], lambda: False, multirun=False)) == "a corgi, 8K"


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("negative_prompt", "don't be ugly: no (really) #1"),
        ("negative_prompt", "${prompt}"),
        ("out_dir", "/tmp/a=b [x] {y}/läufe 🤖"),
        ("out_dir", "C:\\runs\\"),
        ("models.text_to_image.source", "/tmp/epoch=9-step=87/t2i"),
        ("models.multi_view.vae", "a:b@c"),
        ("models.multi_view.file", "007.ckpt"),
        ("+prompt_file", "~/x (1).txt"),
        ("name", "mvs:cfg30_${not a key"),
        ("name", "1e3"),
    ],
)
def test_every_key_that_holds_text_takes_it_as_typed(key, text, multirun):
    from hydra import compose, initialize_config_dir

    word = complete([f"{key}={text}"], lambda: False, multirun)[0]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", [f"{key}={value}" for value in swept(word)] + ["models=toybox"])
    for part in key.lstrip("+").split("."):
        cfg = cfg[part]
    assert cfg == text


def test_commas_separate_the_texts_of_a_sweep():
    (word, _) = complete(["negative_prompt='a, b',c"], lambda: False, multirun=True)
    assert swept(word) == ["'a, b'", "'c'"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prompt=a", "red", "robot", "seed=1"], 'quote the prompt: prompt="a red robot"'),
        (["seed=1", "out_dir=my", "runs"], 'quote the out_dir: out_dir="my runs"'),
        (["robot"], "'robot' is no setting: wanted KEY=VALUE"),
        (["-m", "robot"], "'robot' is no setting"),
    ],
)
def test_a_word_that_is_no_setting(words, says):
    with pytest.raises(UserError) as error:
        complete(words, lambda: False, multirun="-m" in words)
    assert says in str(error.value)


def test_hydra_s_own_choices_of_prompts_stay():
    assert complete(["-m", "prompt=choice(a,b)"], lambda: False, multirun=True)[1] == "prompt=choice(a,b)"


def test_the_words_of_one_job_are_its_command_alone(monkeypatch):
    typed = ["train.py", "-m", "--config-dir", "mine", "prompt=a,'b, c'", "hydra/launcher=local", "seed=0,1"]
    monkeypatch.setattr(command_line, "typed", typed)
    overrides = ["hydra/launcher=local", "hydra.launcher.n_jobs=2", "prompt='b, c'", "seed=1", "models=toybox"]
    overrides += [
        "name='a=b_${seed}'",
        "models.multi_view.vae='[x]'",
        "models.clip.source='[x]'",
        "negative_prompt='null'",
    ]
    assert own_words(overrides) == [
        "--config-dir", "mine", "prompt=b, c", "seed=1",
        "name=a=b_${seed}", "models.multi_view.vae=[x]", 'models.clip.source="[x]"', "negative_prompt=null",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "cuda", "added"),
    [([], False, "models=toybox"), ([], True, "models=sd21"), (["models=sd21"], False, None), (["--help"], True, None)],
)
def test_models_follow_cuda_unless_given(words, cuda, added):
    assert complete(words, lambda: cuda, multirun=False) == words + ([added] if added else [])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["experiment=smoke"], "smoke"),
        (["experiment=smoke", "energy=mvs"], "smoke"),  # what it is without the word
        (["experiment=smoke", "energy=cls"], "smoke_cls"),
        (["experiment=smoke", "energy=none"], "smoke_none"),
        (["experiment=table3/none", "energy=none"], "table3/none"),
        (["experiment=table3/none", "energy=mvs"], "table3/none_mvs"),
        (["experiment=table2/jointdreamer", "energy=mvs"], "table2/jointdreamer"),
        (["experiment=table2/jointdreamer", "energy=cls"], "table2/jointdreamer_cls"),
        (["distillation=sum"], "sum_1.0"),
        (["distillation=sum", "energy=none"], "sum_1.0"),
        (["distillation=sum", "energy=i2i"], "sum_1.0_i2i"),
        (["distillation=jsd", "energy=none"], "none"),
        (["energy=i2i", "novel_view=wonder3d", "models=sd21"], "i2i_wonder3d"),
        (["experiment=smoke", "energy=cls", "name=mine"], "mine"),
    ],
)
def test_a_run_s_name_says_the_choices_that_were_typed(words, name):
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    settle_name(cfg, cfg.hydra.overrides.task)
    assert cfg.name == name


def test_several_loggers_at_once():
    def logger(value: str, multirun: bool = False) -> str:
        words = complete([f"logger={value}", "prompt=a"], None, multirun)
        return next(word for word in words if word.startswith("logger="))

    assert logger("[wandb,tensorboard]") == "logger=[wandb,tensorboard]"
    assert logger("[wandb,tensorboard]", multirun=True) == "logger=[wandb,tensorboard]"
    assert logger("[none]") == "logger=[none]" and logger("[none,wandb]") == "logger=[wandb]"
    with pytest.raises(UserError, match="unknown logger 'mlflow': choose of none, tensorboard, wandb"):
        logger("[wandb,mlflow]")
