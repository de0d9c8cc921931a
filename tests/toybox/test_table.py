from jointdreamer.toybox.table import PROMPT_SEED, PROMPTS, TUNING_SEED, draw_prompts
from jointdreamer.toybox.world import is_held_out_combination, parse_caption


def test_the_measured_prompts_are_the_draw_of_their_seed_half_of_them_held_out():
    prompts = PROMPTS.read_text().splitlines()
    assert prompts == draw_prompts(16, PROMPT_SEED)
    toys = [parse_caption(text) for text in prompts]
    assert sum(toy is not None and is_held_out_combination(toy) for toy in toys) == 8


def test_the_tuning_prompts_are_another_draw():
    tuning = (PROMPTS.parent / "toybox_tuning.txt").read_text().splitlines()
    assert tuning == draw_prompts(14, TUNING_SEED)
