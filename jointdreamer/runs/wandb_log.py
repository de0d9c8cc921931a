"""wandb, as something that may fail, or not be there: the run goes on without it."""

import netrc
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jointdreamer.errors import one_line
from jointdreamer.files import write_text
from jointdreamer.reading import NOT_NOW, Unreadable, read_text
from jointdreamer.runs.outside import Outside


def logged_in(wandb: Any) -> bool:
    """Whether wandb finds credentials by itself, so has no reason to ask for them. Neither asks nor connects."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # a release whose login cannot be told not to ask
        pass
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    home = Path.home()
    default = home / ".netrc" if (home / ".netrc").exists() else home / "_netrc"
    try:
        found = netrc.netrc(os.environ.get("NETRC") or str(default)).hosts.get(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(found and found[2])


def run_id(file: Path) -> str:
    """What wandb calls the run, kept in `file`; where it says nothing a new name, unless it cannot be read just now."""
    new = secrets.token_hex(4)  # not from `random`: that would move the run's own random numbers
    try:
        if known := re.fullmatch(r"[\w-]{1,64}", read_text(file).strip(), re.ASCII):
            return known[0]
    except Unreadable as error:
        if error.answer == NOT_NOW:
            return new
    write_text(file, new + "\n")
    return new


class Wandb(Outside):
    """A run of wandb's."""

    def __init__(
        self, folder: Path, options: Mapping[str, Any], config: Mapping[str, Any], warn: Callable[[str], None]
    ):
        super().__init__("wandb", warn)
        self._module: Any = None
        try:
            self._options = {
                "project": "jointdreamer",
                **options,
                "id": run_id(folder / "wandb" / "run_id.txt"),
                "dir": str(folder),
                "config": dict(config),
            }
            import wandb

            self._module = wandb
            mode = os.environ.get("WANDB_MODE") or options.get("mode")
            if mode not in ("disabled", "offline"):
                mode = None if logged_in(wandb) else "offline"
                if mode == "offline":
                    warn(f"wandb: not logged in, so it writes to {folder / 'wandb'} only (later: wandb sync)")
            try:
                self._start(mode)
            except Exception as error:
                if mode is not None:
                    raise
                warn(f"warning: wandb could not start online ({one_line(error)[:200]}): going on offline")
                wandb.teardown()  # else it takes the run for still being in use
                self._start("offline")
        except Exception as error:
            self.give_up("start", error)

    def _start(self, mode: str | None) -> None:
        """Mode None leaves the choice to wandb's own settings, which say online unless somebody changed them."""
        wandb: Any = self._module
        known = getattr(wandb.Settings, "model_fields", {})
        wanted = {"init_timeout": 30.0, "finish_timeout": 120.0, "silent": True, "console": "off"}
        self.sink = wandb.init(
            **{
                **self._options,
                "mode": mode,
                "resume": "allow" if mode is None else None,  # it knows the past of an online run only
                "settings": wandb.Settings(**{key: value for key, value in wanted.items() if key in known}),
            }
        )
        # our own axis: after a resume, steps that wandb has seen come again, and it drops those of its own axis
        self.sink.define_metric("step")
        self.sink.define_metric("*", step_metric="step")
        if mode is None and self.sink.url:
            self.warn(f"wandb: {self.sink.url}")

    def log(self, row: Mapping[str, Any]) -> None:
        self.attempt("log", lambda run: run.log({key: value for key, value in row.items() if value is not None}))

    def media(self, kind: str, name: str, step: int, path: Path) -> None:
        def send(run: Any) -> None:
            wandb = self._module
            if kind == "image":
                shown = wandb.Image(str(path))
            elif kind == "video":
                shown = wandb.Video(str(path), format="mp4")
            else:
                shown = wandb.Object3D(str(path))
            run.log({name: shown, "step": step})

        self.attempt(f"log the {kind}", send)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.attempt("write the summary", lambda run: run.summary.update(dict(values)))

    def finish(self, failed: bool) -> None:
        self.attempt("finish", lambda run: run.finish(exit_code=1 if failed else 0))
        self.sink = None
