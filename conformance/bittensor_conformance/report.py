"""The report: what was owed, run, skipped and failed, with everything needed to say where."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from bittensor.backend import PROTOCOL_VERSION

from .profiles import Effort

Outcome = Literal["passed", "failed", "expected failure", "skipped"]
Report = dict[str, Any]
"""A report as it is written to JSON."""

REPORT_VERSION = 2
EXIT_GREEN, EXIT_FAILED, EXIT_INCOMPLETE = 0, 1, 2


@dataclass
class Record:
    """What became of one check on one target.

    `error_to_bound` is the largest observed error as a part of the bound (observed.py), for checks that have one.
    """

    id: str
    operation: str
    bits: int | None
    outcome: Outcome
    examples: int
    seconds: float
    message: str = ""
    error_to_bound: float | None = None


def of_target(
    target: str,
    capabilities: Mapping[str, Any],
    owed: Mapping[str, tuple[str, int | None]],
    selected: Collection[str],
    records: Iterable[Record],
    seconds: float,
    errors: Sequence[str] = (),
) -> Report:
    """Report on one target: denominators for each capability, from `owed`, and every check that was run.

    `selected` are the ids that were to be run. Green is a target that ran all it owes and failed nothing; "partial"
    one that ran all that was selected of it, which says nothing about the rest. `errors` are troubles outside any
    check, such as a chapter that could not be imported.
    """
    by_id = {record.id: record for record in records}
    rows: dict[tuple[str, int | None], dict[str, Any]] = {}
    for check_id, (operation, bits) in owed.items():
        empty = {"operation": operation, "bits": bits, "expected": 0, "executed": 0, "skipped": 0, "failed": 0}
        row = rows.setdefault((operation, bits), {**empty, "expected_failures": 0, "examples": 0})
        row["expected"] += 1
        record = by_id.get(check_id)
        if record is None or record.outcome == "skipped":
            row["skipped"] += 1
            continue
        row["executed"] += 1
        row["examples"] += record.examples
        row["failed"] += record.outcome == "failed"
        row["expected_failures"] += record.outcome == "expected failure"
    totals = {key: sum(row[key] for row in rows.values()) for key in _COUNTS}
    return {
        "target": target,
        "status": _status(totals, len(selected), errors),
        "selected": len(selected),
        "capabilities": dict(capabilities),
        "totals": totals,
        "by_capability": list(rows.values()),
        "errors": list(errors),
        "seconds": round(seconds, 3),
        "checks": [asdict(record) for record in by_id.values()],
    }


def of_run(effort: Effort, keyword: str | None, targets: Sequence[Report]) -> Report:
    """Report on a run: the targets' reports, the machine, the versions."""
    exit_code = exit_code_of(targets)
    totals = {key: sum(target["totals"][key] for target in targets) for key in _COUNTS}
    complete = all(target["totals"]["executed"] == target["totals"]["expected"] > 0 for target in targets)
    passed = totals["executed"] - totals["failed"] - totals["expected_failures"]
    colour = {EXIT_FAILED: "red", EXIT_GREEN: "brightgreen"}.get(exit_code, "orange") if complete else "orange"
    return {
        "report_version": REPORT_VERSION,
        "protocol_version": PROTOCOL_VERSION,
        **asdict(effort),
        "keyword": keyword,
        "complete": complete,
        "exit_code": exit_code,
        "totals": totals,
        "machine": machine(),
        "versions": versions(),
        "badge": {
            "schemaVersion": 1,
            "label": "conformance",
            "message": f"{'' if complete else 'incomplete: '}{passed} of {totals['expected']} checks, {effort.profile}",
            "color": "red" if exit_code == EXIT_FAILED else colour,
        },
        "targets": list(targets),
    }


def exit_code_of(targets: Sequence[Report]) -> int:
    """0 if all that was selected of each target was run and holds, 1 if a check failed, 2 if something was not run."""
    statuses = {target["status"] for target in targets}
    if "failed" in statuses:
        return EXIT_FAILED
    return EXIT_GREEN if statuses and statuses <= {"green", "partial"} else EXIT_INCOMPLETE


def machine() -> dict[str, Any]:
    """The machine: processor, cores, system."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of everything that has a say in the result."""
    names = ("packed-bittensor", "torch", "numpy", "hypothesis", "pytest")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


_COUNTS = ("expected", "executed", "skipped", "failed", "expected_failures", "examples")


def _status(
    totals: Mapping[str, int], selected: int, errors: Sequence[str]
) -> Literal["green", "failed", "incomplete", "partial"]:
    if totals["failed"]:
        return "failed"
    if errors or not totals["expected"] or not selected or totals["executed"] < selected:
        return "incomplete"
    return "partial" if selected < totals["expected"] else "green"


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
