"""From figures of base and head to a verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

Status = Literal["regression", "accepted", "improved", "same", "new", "gone"]

INSTRUCTIONS = 0.02
"""More instructions than this fail: counts have no noise."""
SECONDS = 0.05
"""A longer time than this fails: between 3 percent, within which equal code stays, and the 10 that must be found."""


@dataclass(frozen=True)
class Change:
    """What became of a case. `ratio` is head to base; None where one of them is missing."""

    name: str
    measure: Literal["instructions", "time"]
    ratio: float | None
    status: Status

    @property
    def percent(self) -> str:
        return "" if self.ratio is None else f"{100 * (self.ratio - 1):+.1f} %"


def judge(ratio: float, tolerance: float) -> Status:
    """The bounds themselves are still the same speed."""
    if ratio > 1 + tolerance:
        return "regression"
    return "improved" if ratio < 1 / (1 + tolerance) else "same"


def of_counts(base: Mapping[str, int], head: Mapping[str, int]) -> list[Change]:
    """Instructions of every case in either."""
    changes = []
    for name in dict.fromkeys([*head, *base]):
        if name not in base or name not in head:
            changes.append(Change(name, "instructions", None, "new" if name in head else "gone"))
            continue
        ratio = head[name] / base[name]
        changes.append(Change(name, "instructions", ratio, judge(ratio, INSTRUCTIONS)))
    return changes


def of_times(ratios: Mapping[str, float], base: Collection[str], head: Collection[str]) -> list[Change]:
    """Ratios of times, and cases of which only one side has them; those in both without a ratio have equal code."""
    changes = []
    for name in dict.fromkeys([*head, *base]):
        if name not in base or name not in head:
            changes.append(Change(name, "time", None, "new" if name in head else "gone"))
        elif name in ratios:
            changes.append(Change(name, "time", ratios[name], judge(ratios[name], SECONDS)))
    return changes


def accept(changes: Iterable[Change], patterns: Mapping[str, str]) -> list[Change]:
    """Regressions that match a pattern become accepted ones."""
    return [
        Change(each.name, each.measure, each.ratio, "accepted")
        if each.status == "regression" and any(fnmatch(each.name, pattern) for pattern in patterns)
        else each
        for each in changes
    ]


def accepted_patterns(trailers: Iterable[str]) -> dict[str, str]:
    """Patterns with their reasons, of lines "PATTERN: reason"; ValueError for a line without a reason."""
    patterns = {}
    for line in filter(None, map(str.strip, trailers)):
        pattern, _, reason = line.partition(":")
        if not reason.strip():
            raise ValueError(
                f"a trailer 'Slower:' needs a pattern and a reason, 'Slower: PATTERN: reason'; got {line!r}"
            )
        patterns[pattern.strip()] = reason.strip()
    return patterns


def unmeasured(kernels: Collection[str], measured: Iterable[str]) -> list[str]:
    """Kernels of the table that no case covers."""
    return sorted(set(kernels) - set(measured))
