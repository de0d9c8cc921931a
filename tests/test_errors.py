from jointdreamer.errors import one_line, printable


def test_a_terminal_shows_text_and_does_not_obey_it():
    assert printable("\x1b[31mred\x1b[0m\x07") == "\\x1b[31mred\\x1b[0m\\x07"
    assert printable("a\x9b2Jb\x7f\r") == "a\\x9b2Jb\\x7f\\r"
    assert printable("file\u202egnp.exe \udcff \u2028") == "file\\u202egnp.exe \\udcff \\u2028"
    for text in ("a  b", "grün 猫 🦊", "👨\u200d👩\u200d👧", "a\u00a0b", "C:\\new"):
        assert printable(text) == text


def test_one_line_has_one_line():
    assert one_line(" a\n\n b\tc\u2028d ") == "a b c d"
    assert one_line(ValueError("x\x1b]0;title\x07\ny")) == "x\\x1b]0;title\\x07 y"
