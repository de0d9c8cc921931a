"""`python train.py WORDS` many times, paying for the imports once: a process that imports everything and then forks.

    python tests/launcher.py        reads a JSON job a line, answers each with its exit status

A job: {"script": "train" or "train_classifier", "words": [...], "cwd": ..., "env": {...}, "stdout": file,
"stderr": file, "seconds": when it is killed}.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import accelerate  # noqa: E402, F401
import diffusers.models.autoencoders.autoencoder_kl  # noqa: E402
import diffusers.models.unets.unet_2d_condition  # noqa: E402
import diffusers.schedulers.scheduling_ddpm  # noqa: E402, F401
import hydra  # noqa: E402, F401
import transformers  # noqa: E402, F401
from transformers import CLIPTextModel, CLIPTokenizer, ViTModel  # noqa: E402, F401

import jointdreamer.energies.classifier  # noqa: E402
import jointdreamer.energies.reconstruction  # noqa: E402
import jointdreamer.priors.latent  # noqa: E402
import jointdreamer.runs.pictures  # noqa: E402
import jointdreamer.scenes.export  # noqa: E402
import jointdreamer.toybox  # noqa: E402, F401
import train  # noqa: E402
import train_classifier  # noqa: E402
from jointdreamer.cli import main as cli  # noqa: E402


def run(job: dict) -> int:
    """In the child: become `python train.py WORDS`; the exit status."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    sys.argv = [str(ROOT / f"{job['script']}.py"), *job["words"]]
    sys.path[0] = str(ROOT)
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    signal.alarm(job["seconds"])
    try:
        if job["script"] == "train_classifier":
            return cli.main("train_classifier", train_classifier.train)
        return cli.main("config", train.train)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    gc.freeze()  # else every child copies what its collector looks at
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
