"""One target in one process: pytest on the chapters, with nothing of the caller's configuration in the way.

The runner starts it as a child, so that a backend which ends the process ends only its own session. What happens is
written down as it happens, one JSON object a line, for whoever survives this process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from . import report
from .plugin import ConformancePlugin
from .profiles import Effort

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Request:
    """What one session is to do.

    Attributes:
        target: a backend or variant.
        profile: name of a profile.
        keyword: pytest's ``-k`` expression, None for everything.
        expected_failures: reasons by check id.
        done: ids of checks that were run before, in a session that did not survive.
        examples, search_seconds: see `bittensor_conformance.profiles.Effort`.
    """

    target: str
    profile: str
    keyword: str | None
    expected_failures: Mapping[str, str]
    done: tuple[str, ...] = ()
    examples: int | None = None
    search_seconds: float | None = None


def run_session(
    request: Request, tell: Callable[[dict[str, Any]], None] | None = None, drawn: Path | None = None
) -> report.Report:
    """Run the chapters on one target in this process. pytest's own output is dots.

    `tell` gets each event: the ids that are to be run, the id that is being run, the record of one that was. `drawn` is
    a folder that the sessions of a run share (drawn_cases.py).
    """
    effort = Effort(request.profile, request.examples, request.search_seconds)
    done = frozenset(request.done)
    plugin = ConformancePlugin([request.target], effort, request.expected_failures, done, tell, drawn)
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
    if code is pytest.ExitCode.NO_TESTS_COLLECTED and not plugin.errors:
        plugin.error(f"-k {request.keyword!r} selects no check" if request.keyword else "no check was found")
    elif code is pytest.ExitCode.USAGE_ERROR and request.keyword and not plugin.errors:
        plugin.error(f"-k {request.keyword!r} is no expression that pytest reads")
    elif code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not plugin.errors:
        plugin.error(f"pytest ended with {pytest.ExitCode(code).name}")
    return plugin.reports()[0]


def main() -> None:
    """The child of the runner: a request on the command line, events into the file named after it."""
    request, path = json.loads(sys.argv[1]), Path(sys.argv[2])
    # Hypothesis would leave a folder behind in the caller's directory.
    set_hypothesis_home_dir(path.parent)
    with path.open("a", encoding="utf-8", buffering=1) as events:
        done = run_session(Request(**request), lambda event: print(json.dumps(event), file=events), path.parents[1])
        print(json.dumps({"end": {"capabilities": done["capabilities"]}}), file=events)
