import gc
import pickle
import signal
import time
import weakref
from typing import Any

import pytest

from jointdreamer.cli.job import Job, _stopped_by, with_prompt
from jointdreamer.errors import UserError
from jointdreamer.runs.signals import stop_on_signals


def cfg(**changes):
    return {"prompt": None, "prompt_file": None, "prompt_id": None, "distillation": {"terms": {}}, **changes}


def test_a_line_of_a_file_is_the_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a bear\n\na cat, sitting\n")
    found = with_prompt(cfg(prompt_file=str(file), prompt_id=1))
    assert found["prompt"] == "a cat, sitting" and not {"prompt_file", "prompt_id"} & found.keys()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no prompt"),
        ({"prompt": "  \n"}, "no prompt"),
        ({"prompt": "a", "prompt_file": "b"}, "both"),
        ({"prompt_file": "/nowhere", "prompt_id": 0}, "cannot be read"),
        ({"prompt_id": 3}, "without a prompt_file"),
        ({"prompt_file": 5, "prompt_id": 0}, "the prompt file 5 cannot be read"),
        ({"image": 5, "mask": None}, "image=5: there is no such file"),
        ({"image": __file__, "mask": 3}, "mask=3: there is no such file"),
        ({"mask": 3}, "mask=3 without a picture"),
    ],
)
def test_a_missing_prompt_costs_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        with_prompt(cfg(**changes))


def test_a_line_that_is_not_there(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="lines 0 to 1"):
        with_prompt(cfg(prompt_file=str(tmp_path / "p.txt"), prompt_id=2))


def test_what_a_job_leaves_in_cycles_is_gone_before_the_next_of_a_sweep():
    """Networks hang in cycles, which the collector looks at too seldom: a sweep's memory grew with every job."""
    left, alive = [], []

    class Networks:
        pass

    def task(cfg):
        alive.append(sum(reference() is not None for reference in left))
        networks: Any = Networks()
        networks.itself = networks
        left.append(weakref.ref(networks))
        return 0

    job = Job(task, multirun=True)
    gc.disable()
    try:
        for _ in range(3):
            job.run({})
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_a_job_comes_out_of_a_pickle_with_its_script_s_function(monkeypatch):
    import train

    job = pickle.loads(pickle.dumps(Job(train.train, multirun=True)))
    assert job.away and job.task.__qualname__ == "train"
    assert job.task.__code__.co_filename == train.__file__


def test_the_stop_file_reaches_a_job_once_it_listens(tmp_path):
    (tmp_path / "stop").touch()
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher's own handler
    try:
        with _stopped_by(tmp_path / "stop"):
            time.sleep(1.2)
            with stop_on_signals() as stop:
                end = time.monotonic() + 10
                while stop.requested is None and time.monotonic() < end:
                    time.sleep(0.02)
                time.sleep(1.2)  # a second signal would raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGTERM, ignored)
    assert stop.requested == signal.SIGTERM
