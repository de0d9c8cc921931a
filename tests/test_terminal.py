import io
import sys

from jointdreamer.terminal import safe_output


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
