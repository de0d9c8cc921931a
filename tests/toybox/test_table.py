from jointdreamer.toybox.table import PROMPT_SEED, PROMPTS, TUNING_SEED, costs, draw_prompts
from jointdreamer.toybox.world import is_held_out_combination, parse_caption


def test_the_measured_prompts_are_the_draw_of_their_seed_half_of_them_held_out():
    prompts = PROMPTS.read_text().splitlines()
    assert prompts == draw_prompts(16, PROMPT_SEED)
    toys = [parse_caption(text) for text in prompts]
    assert sum(toy is not None and is_held_out_combination(toy) for toy in toys) == 8


def test_the_tuning_prompts_are_another_draw():
    tuning = (PROMPTS.parent / "toybox_tuning.txt").read_text().splitlines()
    assert tuning == draw_prompts(14, TUNING_SEED)


def test_costs_are_medians_beside_the_first_group_s():
    def run(seconds, memory):
        return {"seconds_per_step": seconds, "peak_memory_gb": memory}

    said = costs({"none": [run(0.1, 1.0), run(0.2, 1.0), run(0.9, 1.0)], "mvs": [run(0.3, 1.5)]}).splitlines()
    assert said[2:] == ["| none | 3 | 0.2 | 1.00 | 1 | 1.00 |", "| mvs | 1 | 0.3 | 1.50 | 1.5 | 1.50 |"]
