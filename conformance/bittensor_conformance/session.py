"""One target in one process: pytest on the chapters, with nothing of the caller's configuration in the way.

The runner starts it as a child, so that a backend which ends the process ends only its own session.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from . import report
from .plugin import ConformancePlugin
from .profiles import PROFILES

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Request:
    """What one session is to do."""

    target: str
    profile: str
    keyword: str | None
    expected_failures: Mapping[str, str]


def run_session(request: Request, progress: Path | None = None) -> report.Report:
    """Run the chapters on one target in this process. pytest's own output is dots.

    `progress` is a file that always holds the id of the check that is being run, for whoever survives this process.
    """
    plugin = ConformancePlugin([request.target], PROFILES[request.profile], request.expected_failures, progress)
    selection = ["-k", request.keyword] if request.keyword else []
    code = pytest.main(
        [
            str(_PACKAGE / "chapters"),
            *("-c", str(_PACKAGE / "pytest.ini"), "--rootdir", str(_PACKAGE)),
            # Plain asserts and no cache: the suite is installed software here, and its folder may be read-only.
            *("--assert=plain", "-p", "no:cacheprovider", "--tb=no", "-q", "-q", "--no-header", "--no-summary"),
            *selection,
        ],
        plugins=[plugin],
    )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not plugin.errors:
        plugin.errors.append(f"pytest ended with {pytest.ExitCode(code).name}")
    return plugin.reports()[0]


def main() -> None:
    """The child of the runner: a request on the command line, a report into the file named after it."""
    request, path = json.loads(sys.argv[1]), Path(sys.argv[2])
    # Hypothesis would leave a folder behind in the caller's directory.
    set_hypothesis_home_dir(path.parent)
    path.write_text(json.dumps(run_session(Request(**request), progress_file(path))), encoding="utf-8")


def progress_file(report_path: Path) -> Path:
    """Where the child of the runner notes the check it is at."""
    return report_path.with_suffix(".check")
