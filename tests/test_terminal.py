"""Whoever watches a program may go away, or never have been there; in processes of their own."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jointdreamer.terminal import safe_output

ROOT = Path(__file__).parents[1]
TALKS = """
import sys
from jointdreamer.terminal import safe_output, use_utf8
use_utf8()
safe_output()
file = open(sys.argv[1], "w", encoding="utf-8")
for n in range(2000):
    print("out", n)
    print("err", n, file=sys.stderr)
sys.stdin.read(1)
file.write("done " + " ".join(sys.argv[2:]))
file.close()
print("fin", " ".join(sys.argv[2:]))
"""


def talk(tmp_path: Path, redirection: str = "", *words: str, **env: str) -> tuple[str, str]:
    """What the program wrote into its file, and into stdout, with what a shell does to its streams."""
    file = tmp_path / "file"
    command = ["sh", "-c", f'"$0" -c "$1" "$2" "$3" {redirection}', sys.executable, TALKS, str(file), *(words or ("",))]
    done = subprocess.run(
        command, env={**os.environ, **env}, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    return file.read_text(encoding="utf-8"), done.stdout.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "redirection",
    ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| head -1", "2>&1 >/dev/null | head -1"],
)
def test_nobody_listens_and_it_goes_on(tmp_path, redirection):
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    assert talk(tmp_path, redirection)[0] == "done "


def test_a_closed_stream_s_descriptor_is_not_given_to_a_file(tmp_path):
    assert "out" not in talk(tmp_path, ">&- 2>&-")[0]


def test_a_letter_that_the_terminal_lacks_is_escaped(tmp_path):
    assert talk(tmp_path, "", "Ä", PYTHONIOENCODING="ascii")[1].splitlines()[-1] == "fin \\xc4"


@pytest.mark.parametrize("env", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_words_are_the_same_under_every_locale(tmp_path, env):
    written, said = talk(tmp_path, "", "ein Hündchen", **env)
    assert written == "done ein Hündchen" and said.splitlines()[-1] == "fin ein Hündchen"


def test_streams_of_a_notebook_or_a_test_stay(capsys):
    before = sys.stdout, sys.stderr
    safe_output()
    assert (sys.stdout, sys.stderr) == before


def test_a_letter_that_the_terminal_has_not_is_written_as_its_number(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    safe_output()
    print("läufe \U0001f916 \udce4", flush=True)
    assert raw.getvalue() == b"l\\xe4ufe \\U0001f916 \\udce4\n" and sys.stderr.errors == "backslashreplace"


def test_closed_descriptors_are_where_nothing_is_read(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    safe_output()
    print("nobody", file=sys.stdout, flush=True)
