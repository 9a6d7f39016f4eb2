"""Result files: one JSON record for each run, committed, and the table that is printed from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import Samples

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of figure to limit: "at least" or "at most"."""

    relation: str
    ratio: float

    def met_by(self, ratio: float) -> bool:
        return ratio >= self.ratio if self.relation == "at least" else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{self.relation} {self.ratio:g}"


@dataclass(frozen=True)
class Row:
    """A figure and what it is compared with, both in `unit` and measured in turn.

    `ratio` is the median of the ratios within rounds, which need not be the ratio of the two medians. Rows without a
    target are for information.
    """

    claim: str
    operation: str
    threads: int
    unit: str
    figure: float
    limit: str
    limit_figure: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    target: str | None = None
    met: bool | None = None

    @classmethod
    def of(
        cls,
        samples: Samples,
        figure: str,
        limit: str,
        *,
        claim: str,
        threads: int,
        unit: str,
        target: Target | None = None,
    ) -> Row:
        """The row of two named samples."""
        ratio = samples.ratio(figure, limit)
        low, high = samples.ratio_range(figure, limit)
        return cls(
            claim=claim,
            operation=figure,
            threads=threads,
            unit=unit,
            figure=round(samples.median(figure), 3),
            limit=limit,
            limit_figure=round(samples.median(limit), 3),
            ratio=round(ratio, 3),
            ratio_quartiles=(round(low, 3), round(high, 3)),
            target=None if target is None else str(target),
            met=None if target is None else target.met_by(ratio),
        )


def place(machine: Mapping[str, Any]) -> str:
    """The machine of a record in words, as it heads a chart."""
    threads = machine["threads"]
    plural = "s" if threads > 1 else ""
    return f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['isa']}, {threads} thread{plural}"


def path_of(name: str) -> Path:
    return RESULTS / f"{name}.json"


def write(
    name: str, machine: Mapping[str, object], limits: Mapping[str, float], rows: Sequence[Mapping[str, object]]
) -> Path:
    """Writes ``benchmarks/results/NAME.json``, one line for each row."""
    head = json.dumps({"name": name, "machine": machine, "limits": limits}, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in rows)
    RESULTS.mkdir(exist_ok=True)
    path_of(name).write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    return path_of(name)


def read(name: str) -> dict[str, Any] | None:
    """The content of ``benchmarks/results/NAME.json``; None if there is no such file."""
    path = path_of(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def show(title: str, limits: dict[str, float], rows: Sequence[Row]) -> None:
    """Prints the rows, then the limits."""
    console = Console(width=150)
    table = Table(title=title)
    for heading in (
        "",
        "operation",
        "threads",
        "figure",
        "compared with",
        "its figure",
        "ratio",
        "quartiles",
        "target",
    ):
        table.add_column(heading, justify="right" if heading in {"figure", "its figure", "ratio"} else "left")
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(
            row.claim,
            row.operation,
            str(row.threads),
            f"{row.figure:.4g} {row.unit}",
            row.limit,
            f"{row.limit_figure:.4g} {row.unit}",
            f"{row.ratio:.3f}",
            "{:.2f}-{:.2f}".format(*row.ratio_quartiles),
            "" if row.target is None else f"{row.target} {verdict}",
        )
    console.print(table)
    console.print("Limits, best of several: " + ", ".join(f"{name} {value:.4g}" for name, value in limits.items()))
