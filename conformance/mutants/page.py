"""Writes the score of docs/teeth.md from the record that is kept of a run over the whole catalogue.

python -m conformance.mutants.page
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from . import record as records
from .fault import FAULTS, ROOT, read_catalogue

RECORD = FAULTS.with_name("record.json")
PAGE = ROOT / "docs" / "teeth.md"
BEGIN = "<!-- score: written by python -m conformance.mutants.page -->"
END = "<!-- end of score -->"


def section(record: dict[str, Any], abouts: dict[str, str]) -> str:
    """The lines between the marks: how many faults were found, when and on what, by which chapters, and the survivors.

    Args:
        record: what `record.write` has written.
        abouts: what each fault of the catalogue does, for the survivors.
    """
    faults = record["faults"]
    states = Counter(each["state"] for each in faults)
    run = states["killed"] + states["survived"]
    said = (
        f"Of the catalogue {run} faults were tried and {states['killed']} found: "
        f"**{100 * states['killed'] / run:.1f} %**. {states['invalid']} did not compile; for {states['not run']} the "
        "machine had no instruction set."
    )
    runs = Counter(each["tried"] for each in faults)
    lines = [
        *textwrap.wrap(said, 120, break_on_hyphens=False),
        "",
        *(f"- {count} on {when}" for when, count in sorted(runs.items())),
        "",
        "| found first by | faults |",
        "|---|--:|",
    ]
    chapters = Counter(_chapter(each["check"]) for each in faults if each["state"] == "killed")
    lines += [f"| {chapter} | {count} |" for chapter, count in sorted(chapters.items())]
    survivors = sorted(each["id"] for each in faults if each["state"] == "survived")
    if survivors:
        lines += ["", "Not found:", ""]
        lines += [f"- `{name}`: {abouts.get(name, 'no longer in the catalogue.')}" for name in survivors]
    return "\n".join(lines)


def page(text: str, record: dict[str, Any], abouts: dict[str, str]) -> str:
    """The page with its section made anew.

    Raises:
        ValueError: the page has not both marks.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN if not begin else END}")
    return f"{head}{BEGIN}\n\n{section(record, abouts)}\n\n{END}{tail}"


def read(path: Path = RECORD) -> dict[str, Any]:
    """The record, whose score must be that of its faults.

    Raises:
        ValueError: it is not.
    """
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record["score"] != records.score(list(records.read(path).values())):
        raise ValueError(f"{path.name}: the score is not that of the faults")
    return record


def _chapter(check: str | None) -> str:
    return f"`{check.partition('/')[0]}`" if check else "the end of the process, before the first check"


def main() -> None:
    """Write the page."""
    abouts = {fault.id: fault.about for fault in read_catalogue()}
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read(), abouts), encoding="utf-8")


if __name__ == "__main__":
    main()
