"""Which runs a table wants, which are there, and that a failed one does not stop the others; no real run."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from jointdreamer.cli import main as cli
from jointdreamer.errors import UserError
from jointdreamer.runs.folder import run_path
from jointdreamer.tables.definitions import Row, Table
from jointdreamer.tables.runs import Children, is_finished, make, plan_jobs

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


def test_a_failed_run_is_told_and_does_not_stop_the_others(capsys):
    jobs, seen = planned(), []

    def run(job):
        seen.append(job)
        return (2, "error: no such thing") if job is jobs[1] else (0, "")

    assert make(jobs, run, 1) == [jobs[1]]
    assert seen == jobs
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(jobs)
    assert said[1] == "[2/8] s_1, prompt 0, seed 0: failed with status 2: error: no such thing"
    assert "made in 0 s" in said[2]


def test_as_many_run_at_a_time_as_asked():
    together, most, lock = 0, 0, threading.Lock()
    meet = threading.Barrier(3)

    def run(job):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        if job.number == 0 and job.seed == 0 or job is jobs[2]:
            meet.wait(timeout=20)
        with lock:
            together -= 1
        return 0, ""

    jobs = planned()
    assert make(jobs, run, 3) == [] and most == 3


def test_children_get_their_words_threads_and_our_stop(tmp_path, monkeypatch):
    """The child's last line of stderr and its status come back; SIGTERM reaches it although it has its own session."""
    (tmp_path / "train.py").write_text(
        "import os, sys, time\nprint('noise', file=sys.stderr)\n"
        "print(sys.argv[1], os.environ['OMP_NUM_THREADS'], file=sys.stderr, flush=True)\n"
        "time.sleep(60 if 'prompt_id=1' in sys.argv else 0)\nsys.exit(3)\n"
    )
    monkeypatch.setattr("jointdreamer.tables.runs.ROOT", tmp_path)
    jobs, children = planned(), Children(1)
    assert children(jobs[0]) == (3, "models=toybox 1")
    assert children.alive == set()

    found = []
    thread = threading.Thread(target=lambda: found.append(children(jobs[2])))
    thread.start()
    deadline = time.monotonic() + 20
    while not children.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    children.stop()
    thread.join(timeout=20)
    assert found[0][0] == -signal.SIGTERM and not thread.is_alive()
    children.stop()  # nobody is left


def test_an_interrupt_stops_the_children_and_starts_no_other(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(
        "import pathlib, sys, time\n"
        "pathlib.Path(next(w[8:] for w in sys.argv if w.startswith('out_dir='))).touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr("jointdreamer.tables.runs.ROOT", tmp_path)
    jobs = planned(tmp_path / "begun")
    main = threading.main_thread().ident
    assert main is not None

    def interrupt():
        deadline = time.monotonic() + 20
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        make(jobs, Children(1), 1)
    assert time.monotonic() - began < 40
