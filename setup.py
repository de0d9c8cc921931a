"""What pyproject.toml cannot say: the wheel holds the scripts, conf/ and prompts/, inside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT = ("train.py", "evaluate.py", "train_classifier.py", "conf", "prompts")  # -> jointdreamer/project


class BuildWithProject(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # the checkout itself is used
            return
        for name in PROJECT:
            target = Path(self.build_lib) / "jointdreamer" / "project" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_dir():
                shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy(name, target)


setup(cmdclass={"build_py": BuildWithProject})
