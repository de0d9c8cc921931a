"""Where the project's own files lie: the scripts, conf/ and prompts/.

In a checkout they stand beside the package; `pip install .` puts them inside it (setup.py), as `jointdreamer/project`.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = PACKAGE / "project"
ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent
CONF = ROOT / "conf"


def shipped(file: str | Path) -> Path:
    """`file`, or where it is not, the file of that name that comes with the project: prompts/toybox16.txt."""
    return ROOT / file if not os.path.exists(file) and os.path.isfile(ROOT / file) else Path(file)
