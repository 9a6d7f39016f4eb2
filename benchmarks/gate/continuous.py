"""asv's benchmarks on two commits, and a verdict from their results.

    python -m benchmarks.gate.continuous [--base REVISION] [--head REVISION] [--bench REGEX]

asv builds head and its merge base with base, runs the benchmarks in alternating rounds, and stores the results.
What counts as slower is decided here, from what it stored: `asv compare` never fails, and `asv continuous` stops before
its table when a benchmark fails on either side. What seems slower is run once more, and counts if it is slower again.
Exits with 1 if something is, with 2 if that cannot be told.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .builds import ROOT, GateError, git, merge_base
from .verdict import Status

SLOWER = 1.10
"""A ratio of median times that is a regression, if the intervals of confidence do not overlap either."""
LARGER = {"peakmemory": 1.05, "track": 1.01}
"""Ratios of what is counted and not timed; a process's memory varies by a few percent."""


@dataclass(frozen=True)
class Figure:
    """The result of one benchmark with one set of parameters; `value` is None if it failed, NaN if it was skipped."""

    kind: str  # asv's type: "time", "peakmemory", "track"
    unit: str
    value: float | None
    interval: tuple[float, float] | None = None  # of 99 percent confidence, for times


@dataclass(frozen=True)
class Comparison:
    name: str
    base: Figure | None
    head: Figure
    status: Status

    @property
    def change(self) -> str:
        if self.base is None or not self.base.value or self.head.value is None:
            return ""
        return f"{100 * (self.head.value / self.base.value - 1):+.1f} %"


def judge(base: Figure | None, head: Figure) -> Status | None:
    """What became of a benchmark; None where either side skipped it."""
    if head.value is not None and math.isnan(head.value):
        return None
    if base is None or base.value is None:
        return "new" if head.value is not None else None
    if math.isnan(base.value):
        return None
    if head.value is None:
        return "regression"  # it failed
    limit = LARGER.get(head.kind, SLOWER)
    if base.value == 0:
        return "regression" if head.value > 0 else "same"
    ratio = head.value / base.value
    if 1 / limit <= ratio <= limit or not apart(base, head):
        return "same"
    return "regression" if ratio > 1 else "improved"


def apart(base: Figure, head: Figure) -> bool:
    """Whether the intervals do not overlap; figures without one are exact."""
    if base.interval is None or head.interval is None:
        return True
    return base.interval[1] < head.interval[0] or head.interval[1] < base.interval[0]


def compare(base: Mapping[str, Figure], head: Mapping[str, Figure]) -> list[Comparison]:
    judged = ((name, base.get(name), figure, judge(base.get(name), figure)) for name, figure in head.items())
    return [Comparison(name, before, after, status) for name, before, after, status in judged if status is not None]


def read_results(folder: Path, commit: str, since: float = 0) -> dict[str, Figure]:
    """The figures of a commit that asv stored, by benchmark and parameters; of runs after `since`, a time."""
    from asv.benchmarks import Benchmarks
    from asv.config import Config
    from asv.results import iter_results

    benchmarks = Benchmarks.load(Config.from_json({"project": "bittensor", "repo": ".", "results_dir": str(folder)}))
    figures = {}
    for results in iter_results(str(folder)):
        if results.commit_hash != commit:
            continue
        for name in results.get_all_result_keys():
            if name in benchmarks and results.started_at[name] >= 1000 * since:
                figures |= figures_of(results, name, benchmarks[name])
    return figures


def figures_of(results: Any, name: str, benchmark: Mapping[str, Any]) -> dict[str, Figure]:
    values = results.get_result_value(name, benchmark["params"])
    stats = results.get_result_stats(name, benchmark["params"]) or [None] * len(values)
    parameters = itertools.product(*benchmark["params"])
    found = {}
    for combination, value, spread in zip(parameters, values, stats, strict=True):
        interval = (spread["ci_99_a"], spread["ci_99_b"]) if spread else None
        label = f"{name}({', '.join(combination)})" if combination else name
        found[label] = Figure(benchmark["type"], benchmark["unit"], value, interval)
    return found


def run_asv(commits: list[str], pattern: str | None) -> None:
    """Both commits in alternating rounds. asv's exit status says nothing of use; what is missing shows afterwards."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(commits) + "\n")
        file.flush()
        asv = [str(Path(sys.executable).parent / "asv")]
        subprocess.run([*asv, "machine", "--yes"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        chosen = ["--bench", pattern] if pattern else []
        subprocess.run([*asv, "run", f"HASHFILE:{file.name}", "--interleave-rounds", *chosen], check=False, cwd=ROOT)


def show(comparisons: list[Comparison]) -> None:
    table = Table("benchmark", "base", "head", "change", "verdict", title="What changed")
    for each in sorted(comparisons, key=lambda each: (each.status, each.name)):
        if each.status != "same":
            table.add_row(each.name, text_of(each.base), text_of(each.head), each.change, each.status)
    if table.rows:
        Console(width=140).print(table)
    counted = ", ".join(
        f"{sum(each.status == status for each in comparisons)} {status}"
        for status in dict.fromkeys(each.status for each in comparisons)
    )
    print(f"{len(comparisons)} benchmarks: {counted}")


def text_of(figure: Figure | None) -> str:
    if figure is None:
        return ""
    if figure.value is None:
        return "failed"
    return f"{figure.value:.4g} {figure.unit}"


def continuous(revision: str, tip: str, pattern: str | None) -> int:
    base, head = merge_base(revision, tip), git("rev-parse", tip)
    if base == head:
        raise GateError(f"{tip} is its own merge base with {revision}: there is nothing to compare")
    if git("status", "--porcelain", "--untracked-files=no"):
        print("note: asv compares commits; changes that are not committed are left out", flush=True)
    results = ROOT / ".asv" / "results"

    def measured(chosen: str | None) -> list[Comparison]:
        # asv keeps what earlier runs stored, also of parameters that this one leaves out: those are not compared.
        since = time.time()
        run_asv([base, head], chosen)
        compared = compare(*(read_results(results, commit, since) for commit in (base, head)))
        return [each for each in compared if chosen is None or re.search(chosen, each.name)]

    comparisons = measured(pattern)
    if not comparisons:
        raise GateError("asv left no results that both commits have")
    slower = {each.name for each in comparisons if each.status == "regression"}
    if slower:
        show(comparisons)
        print("once more, what seems worse:", flush=True)
        again = {each.name: each for each in measured("|".join(f"^{re.escape(name)}$" for name in sorted(slower)))}
        comparisons = [again.get(each.name, each) for each in comparisons]
    show(comparisons)
    return int(any(each.status == "regression" for each in comparisons))


def main() -> int:
    parser = argparse.ArgumentParser(description="asv's benchmarks on two commits, and a verdict.")
    parser.add_argument("--base", default="main", metavar="REVISION", help="compare with the merge base of this")
    parser.add_argument("--head", default="HEAD", metavar="REVISION", help="what is judged")
    parser.add_argument("--bench", metavar="REGEX", help="only these benchmarks")
    given = parser.parse_args()
    try:
        return continuous(given.base, given.head, given.bench)
    except GateError as error:
        print(f"continuous: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
