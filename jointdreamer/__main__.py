"""All commands under one name: jointdreamer COMMAND [WORDS], or python -m jointdreamer COMMAND [WORDS]

    train               a 3D object from a prompt; the main job
    evaluate            finished runs to numbers, tables and a report
    train-classifier    M_CLS, for energy=cls
    sample2d            Fig. 2c, four views without 3D
    tables              the paper's tables and figures
    export              runs' objects as GLB, OBJ, PLY and USDZ, finer or smaller
    view                runs' objects in the browser
    render-views        meshes to views, for train-classifier
    doctor              what this machine can do and what is missing
    weights             list, fetch and check pretrained parts

`jointdreamer train WORDS` is `python train.py WORDS`, from any folder; `jointdreamer COMMAND --help` says more.
"""

import runpy
import sys

from jointdreamer.cli.messages import complain
from jointdreamer.project import ROOT
from jointdreamer.terminal import safe_output

SCRIPTS = {"train": "train.py", "evaluate": "evaluate.py", "train-classifier": "train_classifier.py"}
MODULES = {
    "sample2d": "sample2d",
    "tables": "tables",
    "export": "export",
    "view": "view",
    "render-views": "data.render_views",
}
MODULES |= {"doctor": "doctor", "weights": "weights"}


def main() -> int:
    """Become the command; the exit status, where that does not exit itself."""
    safe_output()
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command in SCRIPTS:
        script = str(ROOT / SCRIPTS[command])
        sys.argv = [script, *words]
        sys.path.insert(0, str(ROOT))  # as Python does for a script
        runpy.run_path(script, run_name="__main__")
    elif command in MODULES:
        sys.argv[1:] = words
        runpy.run_module(f"jointdreamer.{MODULES[command]}", run_name="__main__", alter_sys=True)
    else:
        return complain(f"unknown command {command!r}: choose one of {', '.join([*SCRIPTS, *MODULES])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
