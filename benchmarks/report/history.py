"""What asv stored of earlier commits, and the reports of the conformance suite, as data frames."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

MOST_LINES = 8


def asv_history(results: Path) -> pd.DataFrame | None:
    """Times of the backend "cpp" in commits that have results: commit, benchmark, value; None without two commits."""
    from benchmarks.gate.continuous import read_results

    if not (results / "benchmarks.json").exists():
        return None
    commits = {}
    for path in results.glob("*/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "commit_hash" in content:
            commits[content["commit_hash"]] = content["date"]
    rows = [
        {"commit": commit[:8], "benchmark": name, "value": figure.value}
        for commit in sorted(commits, key=commits.__getitem__)
        for name, figure in read_results(results, commit).items()
        if figure.kind == "time" and figure.value and ("'cpp'" in name or "(" not in name)
    ]
    frame = pd.DataFrame(rows, columns=["commit", "benchmark", "value"]).dropna()
    counts = frame["benchmark"].value_counts()
    wanted = [name for name in dict.fromkeys(frame["benchmark"]) if counts[name] == counts.max() and counts[name] > 1]
    return frame[frame["benchmark"].isin(wanted[:MOST_LINES])] if wanted else None


def conformance(paths: Iterable[Path]) -> pd.DataFrame | None:
    """A line for each target of the reports; None without a report."""
    rows = []
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        for target in content["targets"]:
            totals = target["totals"]
            rows.append(
                {
                    "target": target["target"],
                    "status": target["status"],
                    "checks": f"{totals['executed'] - totals['failed']} of {totals['expected']}",
                    "failed": totals["failed"],
                    "examples": totals["examples"],
                    "profile": content["profile"],
                    "machine": content["machine"]["cpu"],
                }
            )
    return pd.DataFrame(rows) if rows else None
