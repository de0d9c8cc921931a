from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jointdreamer.cli import words
from jointdreamer.cli.words import Text
from jointdreamer.project import ROOT


def swept(word: str) -> list[str]:
    """The values that Hydra's sweeper makes of a word."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(word)
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [word.partition("=")[2]]


def parsed(value: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    return OmegaConf.create({"a": OverridesParser.create().parse_override(f"a={value}").value()}).a


@given(st.text(alphabet="\\'\"${}a,:\n ", max_size=12))
@example("null")
@example("\\\n")  # a backslash before a newline at the end, which `$` takes for the end
@settings(max_examples=60, deadline=None)
def test_any_text_survives_hydra_s_grammar_twice(text):
    assert parsed(words.quoted(text)) == text == words.unquoted(words.quoted(text))
    first, second = swept(f"a={words.quoted(text)},{words.quoted('b')}")
    assert parsed(first) == text and second == "'b'"
    for kind in (Text(), Text(open=True), Text(listed=True), Text(prose=True)):
        assert parsed(words.for_hydra(words.as_typed(text, kind), kind)) == text


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("a,b", ["a", "b"]),
        ("a red robot, a hat", ["a red robot", "a hat"]),
        ('"a corgi, 8K", a cat', ["a corgi, 8K", "a cat"]),
        ("'a corgi, 8K',\"it's\"", ["a corgi, 8K", "it's"]),
        ('"a, \\"big\\" cat"', ['a, "big" cat']),
        ("it's a cat", ["it's a cat"]),
        ("it's a cat, 'tis a dog", ["it's a cat", "'tis a dog"]),
        ('a "red" (small) {cat}: 1=1, b', ['a "red" (small) {cat}: 1=1', "b"]),
        ("a,", ["a", ""]),
        ("", [""]),
    ],
)
def test_commas_separate_a_sweep_s_texts_but_for_those_in_quotes(typed, values):
    assert words.split_values(typed) == values
    assert [parsed(value) for value in swept(f"a={words.for_hydra(typed, Text(), multirun=True)}")] == values


@pytest.mark.parametrize(
    ("typed", "text"), [('"a" and "b"', '"a" and "b"'), ('"a, b"', "a, b"), ('"', '"'), ("'a\\'b'", "a'b"), ("''", "")]
)
def test_only_quotes_around_the_whole_are_taken_off(typed, text):
    assert words.without_quotes(typed) == text


def test_null_is_null_and_a_list_of_texts_a_list():
    assert parsed(words.for_hydra("null", Text())) is None and parsed(words.for_hydra("'null'", Text())) == "null"
    assert parsed(words.for_hydra("null", Text(prose=True))) == "null"
    assert parsed(words.for_hydra("[a,b]", Text(listed=True))) == ["a", "b"]
    assert parsed(words.for_hydra("[a,b]", Text())) == "[a,b]"
    assert (
        parsed(words.for_hydra("7", Text(open=True))) == 7 and parsed(words.for_hydra("007", Text(open=True))) == "007"
    )
    assert words.for_hydra("${a.b}_${", Text(template=True)) == "'${a.b}_\\${'"


def test_the_files_of_conf_say_which_keys_hold_text():
    keys = words.text_keys([ROOT / "conf"])
    texts = {"name", "out_dir", "negative_prompt", "prompt_file", "data.folder", "start_from", "export", "clip", "fid"}
    texts |= {"models.multi_view.file", "models.novel_view.vae", "logger.wandb.project", "cache_dir", "captions"}
    assert texts <= keys.keys()
    numbers = {
        "seed",
        "schedule.steps",
        "cameras.fovy_deg",
        "models.novel_view.reference",
        "schedule.negative_prompt",
        "every.log",
    }
    assert not numbers & keys.keys()
    assert keys["memory.rays_per_chunk"].open and keys["name"].template and not keys["out_dir"].template
    assert keys["models.text_to_image.source"].listed and keys["models.multi_view.source"].listed
    assert keys["prompt"].prose and keys["negative_prompt"].prose and not keys["name"].prose


def test_a_file_that_is_no_yaml_hides_no_key_of_the_others(tmp_path: Path):
    (tmp_path / "energy").mkdir()
    (tmp_path / "energy" / "a.yaml").write_bytes(b"{\xff")
    (tmp_path / "energy" / "b.yaml").write_text("folder: x\nscale: 1\n", encoding="utf-8-sig")
    assert words.text_keys([tmp_path]) == {"energy.folder": Text()}
