"""The smallest run: its config, a part with a state, and a folder in which it has begun."""

import torch

from jointdreamer.runs.folder import RunFolder

CONFIG = {"prompt": "a corgi", "seed": 0, "guidance": {"scale": 30.0}, "out_dir": "runs", "every": {"log": 10}}


class Counter:
    """The smallest thing with a state."""

    def __init__(self, value: float = 0.0):
        self.value = torch.tensor([value])

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"].clone()


def begin(folder, config):
    """A run folder with a step done in it: from then on it belongs to its config."""
    RunFolder.open(folder, config).close()
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
