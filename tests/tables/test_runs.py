"""Which runs a table wants, and which are there; no real run."""

from pathlib import Path

import pytest
import yaml

from jointdreamer.cli import main as cli
from jointdreamer.errors import UserError
from jointdreamer.runs.folder import run_path
from jointdreamer.tables.definitions import Row, Table
from jointdreamer.tables.runs import is_finished, plan_jobs

TABLE = Table(
    "T", (Row("one", "table3/none"), Row("unbuilt", None), Row("two", "fig10/sum", words=("w=1",), run_name="s_1"))
)


def planned(out_dir=Path("out"), prompts=("a cat", "a pig", "a cat"), seeds=(0, 5), words=("output.views=2",)):
    return plan_jobs(TABLE, "toybox", prompts, Path("file.txt"), seeds, out_dir, words)


def test_each_row_prompt_and_seed_is_one_run_and_a_prompt_that_is_there_twice_is_one():
    jobs = planned()
    assert [(job.seed, job.number, job.row.label) for job in jobs] == [
        (seed, number, label) for seed in (0, 5) for number in (0, 1) for label in ("one", "two")
    ]
    last = jobs[-1]
    assert last.folder == run_path("out", "s_1", "a pig", 5)
    assert last.label == "s_1, prompt 1, seed 5"
    assert list(last.words) == ["models=toybox", "experiment=fig10/sum", "w=1", "prompt_file=file.txt", "prompt_id=1",
                                "seed=5", "out_dir=out", "output.views=2"]  # fmt: skip


def test_a_finished_run_of_the_same_settings_is_skipped_and_of_others_refused(tmp_path):
    job = planned(tmp_path)[0]
    config = cli.composed("config", ["experiment=table3/none"], models="toybox")
    assert not is_finished(job, config)
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text('{"steps": 300}')
    own = {**config, "prompt": job.prompt, "seed": job.seed, "name": job.name, "out_dir": "elsewhere"}
    del own["distillation"]["energy_x0"]  # of before there was the setting
    (job.folder / "config.yaml").write_text(yaml.safe_dump(own))
    config = cli.composed("config", ["experiment=table3/none"], models="toybox")
    assert is_finished(job, config)
    config["schedule"]["steps"] = 301
    assert not is_finished(job, config)
    config["schedule"]["steps"] = 299
    with pytest.raises(UserError, match="300 steps are done"):
        is_finished(job, config)
    config["schedule"] |= {"steps": 300, "t_min": 0.1}
    with pytest.raises(UserError, match="schedule.t_min is .* there, 0.1 here"):
        is_finished(job, config)
