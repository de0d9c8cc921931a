"""The one exception that is the user's to fix, and text for a line of a terminal."""

import unicodedata

JOINER = "\u200d"  # between the parts of an emoji


class UserError(ValueError):
    """A user's mistake: its message is one line that says what was wanted, what came, and what to do.

    The scripts print it on stderr and exit with status 2; every other exception keeps its traceback.
    """


def printable(text: object) -> str:
    """Text that a terminal shows and does not obey: control characters, escape codes and changes of the writing
    direction as a program would write them (\\x1b). Everything else, spaces too, is as it was."""
    characters = str(text)
    if characters.isascii() and characters.isprintable():
        return characters
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in characters)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character == JOINER or unicodedata.category(character) == "Zs"


def one_line(text: object) -> str:
    """Any text as one line for a terminal: see `printable`; white space of all kinds is one space."""
    return printable(" ".join(str(text).split()))
