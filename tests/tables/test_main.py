"""The command: its words, resuming, exit statuses. Runs and scores are faked, so that this is about the command."""

import json
import os
from pathlib import Path

import pytest
import yaml

from jointdreamer.errors import UserError
from jointdreamer.priors.prompts import read_prompts
from jointdreamer.tables import __main__ as command
from jointdreamer.tables.__main__ import Settings, main, make_table, read_words, resolve
from jointdreamer.tables.definitions import tables
from jointdreamer.tables.figures import loss_curve
from jointdreamer.tables.runs import is_finished, plan_jobs


def test_words():
    settings = read_words(
        [
            "fig10",
            "prompts=p.txt",
            "seeds=3,0,3",
            "weights=0.50,1e1",
            "methods=vsd,csd,vsd",
            "jobs=1",
            "out_dir=o",
            "report=true",
            "output.views=8",
        ]
    )
    assert settings == Settings(
        "fig10",
        "toybox",
        Path("p.txt"),
        None,
        (3, 0),
        ("0.5", "10"),
        ("vsd", "csd"),
        1,
        Path("o"),
        True,
        ("output.views=8",),
    )
    plain = read_words(["table1"])
    assert plain.models == "toybox" and plain.caption_set.name == "toybox153.txt"
    assert read_words(["table1", "prompts=p.txt"]).caption_set == Path("p.txt")
    bundled = os.path.relpath(command.TOYBOX_PROMPTS)
    assert read_words(["table1", f"prompts={bundled}"]).caption_set == plain.caption_set
    assert read_words(["table1", "captions=c.txt"]).caption_set == Path("c.txt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "wanted one of table1, table2, table3, mesh, distillation, fig8, fig10, image, got nothing"),
        (["table4"], "got table4"),
        (["table1", "fast"], "KEY=VALUE"),
        (["table1", "seed=1"], "seeds=0,1"),
        (["table1", "energy=mvs"], "which energy"),
        (["table1", "seeds=0,-1"], "seeds: wanted a whole number from 0"),
        (["table1", "seeds="], "seeds"),
        (["table1", "jobs=0"], "jobs: wanted a whole number from 1"),
        (["fig10", "weights=0"], "above 0"),
        (["fig10", "weights=a"], "above 0"),
        (["fig10", "weights=inf"], "above 0"),
        (["distillation", "methods=vsd,x"], "methods: choose among jsd, vsd"),
        (["table1", "report=yes"], "true or false"),
        (["table1", "models=sd21"], "prompts=FILE"),
    ],
)
def test_mistakes_are_one_line_and_status_2(words, said, capsys):
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and said in errors


def test_captions_without_a_prompt_are_told_before_any_run(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\na green bear\n")
    (tmp_path / "captions.txt").write_text("a red cat\n")
    settings = Settings("table1", prompts=tmp_path / "prompts.txt", captions=tmp_path / "captions.txt")
    with pytest.raises(UserError, match="captions.txt lacks the prompt 'a green bear'"):
        make_table(settings, lambda *_: pytest.fail("a run was made"))
    with pytest.raises(UserError, match="missing.txt"):
        make_table(Settings("table1", captions=tmp_path / "missing.txt"), lambda *_: pytest.fail("a run was made"))


def test_a_word_that_train_py_does_not_take_is_told_before_any_run(tmp_path):
    settings = Settings("table1", out_dir=tmp_path, words=("schedule.stepz=3",))
    with pytest.raises(UserError, match="schedule.stepz"):
        make_table(settings, lambda *_: pytest.fail("ran"))


class Trainer:
    """Leaves what train.py would, quickly; fails where told."""

    def __init__(self, settings):
        table = tables(settings.weights)[settings.table]
        prompts = read_prompts(settings.prompts)
        options = (settings.prompts, settings.seeds, settings.out_dir, settings.words)
        self.jobs = {job.words: job for job in plan_jobs(table, settings.models, prompts, *options)}
        self.settings, self.seen, self.failing = settings, [], set()

    def __call__(self, runs, parallel, threads):
        assert (parallel, threads) == (1, 1)
        failed = []
        for number, (_, words) in enumerate(runs):
            self.seen.append(self.jobs[words])
            if len(self.seen) in self.failing:
                failed.append(number)
            else:
                self.leave(self.seen[-1])
        return failed

    def leave(self, job):
        config = {key: value for key, value in resolve(job.row, self.settings).items() if not key.startswith("prompt_")}
        job.folder.mkdir(parents=True)
        own = {**config, "prompt": job.prompt, "seed": job.seed, "name": job.name}
        (job.folder / "config.yaml").write_text(yaml.safe_dump(own))
        rows = [{"step": step, "loss/jsd": 1.0 + step} for step in (0, 10, 20)]
        (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (job.folder / "result.json").write_text(json.dumps({"steps": own["schedule"]["steps"]}))


@pytest.fixture
def small(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\na white frog\n")
    return Settings("fig8", prompts=tmp_path / "prompts.txt", seeds=(0,), jobs=1, out_dir=tmp_path / "runs")


def test_a_failed_run_is_status_1_and_the_same_command_makes_only_what_is_missing(small, capsys):
    trainer = Trainer(small)
    trainer.failing = {2}
    assert make_table(small, trainer) == 1
    assert len(trainer.seen) == 4
    said = capsys.readouterr().out
    assert "4 runs, 0 of them finished" in said and "1 failed" in said
    assert "| SDS | 2 |" in said and "| JSD | 1 |" in said  # the table of what there is

    assert make_table(small, trainer) == 0
    assert len(trainer.seen) == 5 and trainer.seen[4].folder == trainer.seen[1].folder
    assert make_table(small, trainer) == 0
    assert len(trainer.seen) == 5
    kept = small.out_dir / "tables" / "toybox" / "fig8.md"
    assert kept.read_text() in capsys.readouterr().out
    assert kept.with_suffix(".png").exists()


def test_runs_of_other_settings_are_neither_used_nor_touched(small, capsys):
    make_table(small, Trainer(small))
    other = Settings(**{**vars(small), "words": ("schedule.t_min=0.1",)})
    trainer = Trainer(other)
    assert make_table(other, trainer) == 1
    assert trainer.seen == []
    assert "belongs to another config: schedule.t_min" in capsys.readouterr().err


def test_more_steps_are_made_and_settings_that_compute_nothing_are_not(small):
    make_table(small, Trainer(small))
    for words, wanted in ((("schedule.steps=301",), 4), (("every.log=7", "device=cpu"), 0), (("output.fps=11",), 4)):
        other = Settings(**{**vars(small), "words": words})
        seen = []
        make_table(other, lambda runs, *_, seen=seen: [seen.append(run) or number for number, run in enumerate(runs)])
        assert len(seen) == wanted, words


def test_scored_tables_are_printed_and_kept(small, monkeypatch, capsys):
    settings = Settings(**{**vars(small), "table": "fig10", "weights": ("0.5",)})
    group = {"runs": 2, "janus": {"mean": 25.0, "low": 0.0, "high": 50.0, "n": 2}}
    found = {"all": {"fig10/sum_0.5": group}, "held out": {}}
    monkeypatch.setattr("jointdreamer.tables.scores.score", lambda *args: found)
    assert make_table(settings, Trainer(settings)) == 0
    said = capsys.readouterr().out
    assert "| SDS + 0.5 MVDream | 2 | 25.0 [0.0, 50.0] | - |" in said
    assert "8 runs, 0 of them finished" in said  # SDS, the sum, MVDream, JSD
    assert (settings.out_dir / "tables" / "toybox" / "fig10.png").exists()


def test_an_interrupt_is_status_130(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "make_table", interrupted)
    assert main(["table1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_help_names_every_table(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in tables())


def test_a_real_run_is_recognised_as_finished(launcher, tiny_run, tmp_path):
    """What train.py writes down of itself is what the table expects: the name, the words, the whole config."""
    (tmp_path / "prompts.txt").write_text("a red robot, with a hat\n")
    words = tuple(word for word in tiny_run("device=cpu") if not word.startswith("models="))
    file, runs = tmp_path / "prompts.txt", tmp_path / "runs"
    settings = Settings("fig10", prompts=file, seeds=(1,), weights=("0.5",), out_dir=runs, words=words)
    table = tables(settings.weights)["fig10"]
    row = table.rows[1]
    jobs = plan_jobs(table, "toybox", ["a red robot, with a hat"], settings.prompts, (1,), settings.out_dir, words)
    [job] = [job for job in jobs if job.row == row]
    config = resolve(row, settings)
    assert not is_finished(job, config)
    assert launcher.run(tmp_path, list(job.words)) == 0, (tmp_path / "stderr").read_text()
    assert is_finished(job, config)
    assert loss_curve(job.folder)[0] > 0
