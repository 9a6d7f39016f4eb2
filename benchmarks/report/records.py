"""The committed records as data frames: one line for each figure, with the machine that it was taken on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from . import record

PROGRAMS = ("integer-matmul", "kernels", "linear", "peers", "threads")
"""Programs with charts of their own; the name of a result file begins with that of its program."""


@dataclass(frozen=True)
class Record:
    """One result file."""

    path: Path
    program: str
    machine: Mapping[str, Any]
    limits: Mapping[str, float]
    rows: pd.DataFrame

    @property
    def place(self) -> str:
        """The machine in words, as it heads a chart."""
        return record.place(self.machine)

    @property
    def date(self) -> str:
        return str(self.machine["date"])[:10]

    @property
    def origin(self) -> str:
        """Date, commit, versions."""
        versions = ", ".join(f"{name} {version}" for name, version in self.machine["versions"].items())
        return f"{self.date}, commit {str(self.machine['commit'])[:12]}, {versions}"

    @property
    def command(self) -> str:
        """What makes such a record again."""
        module = "integer_matmul" if self.program == "integer-matmul" else self.program
        given = self.machine.get("command") or f"python -m benchmarks.report.{module} --name {self.path.stem}"
        return str(given)


def program_of(path: Path) -> str:
    """The program that wrote a result file; of a program that has no charts here, the name of the file."""
    known = (program for program in PROGRAMS if path.stem == program or path.stem.startswith(program + "-"))
    return next(known, path.stem)


def load(folder: Path = record.RESULTS) -> list[Record]:
    """Every record of a folder, by program and name."""
    if not folder.is_dir():
        raise SystemExit(f"{folder}: expected a folder of records")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows, about, limits = pd.DataFrame(content["rows"]), content["machine"], content["limits"]
            if "cpu" not in about:  # a record of several parts, each with its own; they share the machine
                about = next(iter(about.values()))
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
            raise SystemExit(f"{path}: expected a record of a program of benchmarks/report, got {error!r}") from error
        found.append(Record(path, program_of(path), about, limits, rows))
    return sorted(found, key=lambda each: (each.program, each.path.name))


def of(program: str, records: Iterable[Record]) -> list[Record]:
    return [each for each in records if each.program == program]


def across_machines(records: Iterable[Record], program: str, column: str = "figure") -> pd.DataFrame | None:
    """A column of a program's operations in each record; None if there are fewer than two records.

    Of what one machine measured twice, with as many threads, the later record counts.
    """
    columns = {}
    for each in sorted(of(program, records), key=lambda each: str(each.machine["date"])):
        rows = each.rows
        if column == "figure":
            rows = rows.assign(operation=rows["operation"] + " (" + rows["unit"] + ")")
        columns[each.place] = rows.groupby("operation", sort=False)[column].first()
    return pd.DataFrame(columns) if len(columns) > 1 else None
