import sys

from jointdreamer.toybox import table
from jointdreamer.toybox.table import PROMPT_SEED, PROMPTS, TUNING_SEED, draw_prompts
from jointdreamer.toybox.world import SECOND, is_held_out_combination, parse_caption


def test_the_measured_prompts_are_the_draw_of_their_seed_half_of_them_held_out():
    prompts = PROMPTS.read_text().splitlines()
    assert prompts == draw_prompts(16, PROMPT_SEED)
    toys = [parse_caption(text) for text in prompts]
    assert sum(toy is not None and is_held_out_combination(toy) for toy in toys) == 8


def test_the_tuning_prompts_are_another_draw():
    tuning = (PROMPTS.parent / "toybox_tuning.txt").read_text().splitlines()
    assert tuning == draw_prompts(14, TUNING_SEED)


def test_fresh_prompts_are_drawn_by_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table", "--draw", "48", "--draw-seed", "5", "--edition", "2"])
    assert table.main() == 0
    prompts = capsys.readouterr().out.splitlines()
    assert prompts == draw_prompts(48, 5, SECOND) != draw_prompts(48, 6, SECOND) and len(set(prompts)) == 48
    assert all(parse_caption(text, SECOND) for text in prompts)
    assert any(parse_caption(text) is None for text in prompts)  # words that the first edition does not have
