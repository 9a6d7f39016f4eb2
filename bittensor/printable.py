"""Text from files, as a terminal can show it."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` with escapes for what is not printable: control characters could change the state of a terminal.

    >>> print(printable("caf\u00e9 \x1b[31m\udcff"))
    café \x1b[31m\udcff
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
