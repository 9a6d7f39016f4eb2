"""Runs the suite on backends by name, and says with its exit code whether they conform."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bittensor import BackendError

from . import expectations, summary
from . import report as reporting
from .catalogue import load_chapters
from .profiles import PROFILES
from .session import Request, progress_file
from .targets import expand

_START = "from bittensor_conformance.session import main; main()"


def run(
    backends: Sequence[str],
    *,
    profile: str = "dev",
    report: Path | None = None,
    keyword: str | None = None,
    expected_failures: Path | None = None,
) -> int:
    """Hold backends against the contract and print a summary.

    Args:
        backends: names as `bittensor.get_backend` takes them. ``cpp`` stands for the backend and each of its variants,
            ``cpp:avx2`` for that variant only.
        profile: "dev", "ci" or "nightly".
        report: where to write the JSON report.
        keyword: run only the checks that this pytest ``-k`` expression selects. The run is then incomplete.
        expected_failures: JSON file ``{check id: reason}``.

    Returns:
        0 if every target ran all that its capabilities promise and failed nothing, 1 if a check failed, 2 if the
        arguments are wrong or something was not run.
    """
    console = Console()
    errors = Console(stderr=True)
    if profile not in PROFILES:
        errors.print(f"profile: expected one of {list(PROFILES)}, got {profile!r}", markup=False)
        return reporting.EXIT_INCOMPLETE
    try:
        targets = expand(backends)
        expected = expectations.read(expected_failures)
        if expected:
            load_chapters()
            expectations.check_known(expected, targets)
    except (BackendError, expectations.ExpectationError) as error:
        errors.print(str(error), markup=False)
        return reporting.EXIT_INCOMPLETE
    if not targets:
        errors.print("backends: expected at least one name, got none", markup=False)
        return reporting.EXIT_INCOMPLETE
    reports = []
    for target in targets:
        console.print(f"{target}:", style="bold", highlight=False)
        reports.append(_run_child(Request(target, profile, keyword, expectations.for_target(expected, target))))
    whole = reporting.of_run(profile, keyword, reports)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    summary.show(whole, console)
    return int(whole["exit_code"])


def _run_child(request: Request) -> reporting.Report:
    """One target in a process of its own. A child that dies leaves a report that says so."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        # Plugins that happen to be installed are not part of the suite, nor are a caller's pytest options.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        command = [sys.executable, "-c", _START, json.dumps(asdict(request)), str(path)]
        code = subprocess.run(command, env=environment, check=False).returncode
        if path.exists():
            loaded: reporting.Report = json.loads(path.read_text(encoding="utf-8"))
            return loaded
        started = progress_file(path)
        at = started.read_text(encoding="utf-8") if started.exists() else "no check yet"
    message = f"the process that tested {request.target} ended with exit code {code}; it was at: {at}"
    dead = reporting.Record(at, "protocol", None, "failed", 0, 0.0, message)
    return reporting.of_target(request.target, {}, {at: ("protocol", None)}, [dead], 0.0, [message])
