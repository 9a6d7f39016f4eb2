"""Tables of documents that are generated from result files, between marks."""

from __future__ import annotations

from pathlib import Path


def put(page: Path, name: str, table: str) -> None:
    """Writes the table between the marks ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of a page."""
    page.write_text(replaced(page.read_text(encoding="utf-8"), name, table), encoding="utf-8")


def replaced(text: str, name: str, table: str) -> str:
    """The text of a page with this table.

    Raises:
        ValueError: the page has no such marks.

    >>> replaced("a\\n<!-- t: begin -->\\nold\\n<!-- t: end -->\\nb\\n", "t", "new\\n")
    'a\\n<!-- t: begin -->\\nnew\\n<!-- t: end -->\\nb\\n'
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no marks {begin.strip()} and {end.strip()}")
    return f"{before}{begin}{table}{end}{after}"
