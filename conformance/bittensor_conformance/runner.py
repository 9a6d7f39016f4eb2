"""Runs the suite on backends by name, and says with its exit code whether they conform."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bittensor import BackendError

from . import badge as badges
from . import expectations, summary
from . import report as reporting
from .catalogue import load_chapters
from .isolation import last_words
from .profiles import PROFILES, Effort
from .progress import RunProgress
from .session import Request
from .targets import expand

_START = "from bittensor_conformance.session import main; main()"
_RESTARTS = 20
"""A target whose process ends this often is not started again."""
_POLL_SECONDS = 0.05


def run(
    backends: Sequence[str],
    *,
    profile: str = "dev",
    report: Path | None = None,
    badge: Path | None = None,
    keyword: str | None = None,
    expected_failures: Path | None = None,
    max_examples: int | None = None,
    minutes: float | None = None,
    jobs: int | None = None,
) -> int:
    """Hold backends against the contract and print a summary, then write report and badge, each whole or not at all.

    Args:
        backends: names as `bittensor.get_backend` takes them. ``cpp`` stands for the backend and each of its variants,
            ``cpp:avx2`` for that variant only.
        profile: "dev", "ci" or "nightly".
        report: where to write the JSON report.
        badge: where to write a badge, .svg or .json. Not together with `keyword`: a badge speaks for everything.
        keyword: run only the checks that this pytest ``-k`` expression selects. The run is then partial.
        expected_failures: JSON file ``{check id: reason}``.
        max_examples: of each property, instead of the profile's number.
        minutes: with profile "nightly", how long to search, instead of a number of examples.
        jobs: targets that are tested at the same time; by default as many as there are processors.

    Returns:
        0 if every target ran all that its capabilities promise, or all that `keyword` selects of it, and failed
        nothing; 1 if a check failed; 2 if the arguments are wrong or something was not run, or if nothing failed but
        the report or the badge cannot be written.
    """
    errors = Console(stderr=True)
    try:
        _check_arguments(profile, badge, keyword, max_examples, minutes, jobs)
        targets = expand(backends)
        expected = expectations.read(expected_failures)
        if not targets:
            raise ValueError("backends: expected at least one name, got none")
        load_chapters()
        expectations.check_known(expected, targets)
    except (BackendError, ValueError) as error:
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return reporting.EXIT_INCOMPLETE
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(targets))
    effort = Effort(profile, max_examples, None if minutes is None else minutes * 60 * jobs / len(targets))
    requests = [
        Request(
            target,
            profile,
            keyword,
            expectations.for_target(expected, target),
            examples=effort.examples,
            search_seconds=effort.search_seconds,
        )
        for target in targets
    ]
    console = Console()
    whole = reporting.of_run(effort, keyword, _run_all(requests, jobs, console))
    written = True
    try:
        summary.show(whole, console)
    finally:  # a run of hours is not lost because its summary cannot be shown
        if report is not None:
            text = json.dumps(whole, indent=1) + "\n"
            written &= _write("report", report, lambda file: file.write_text(text, encoding="utf-8"), errors)
        if badge is not None:
            written &= _write("badge", badge, lambda file: badges.write(file, whole["badge"]), errors)
    return int(whole["exit_code"]) or (reporting.EXIT_GREEN if written else reporting.EXIT_INCOMPLETE)


def _write(what: str, path: Path, write: Callable[[Path], object], errors: Console) -> bool:
    """Let `write` make a file beside `path` and rename it: `path` has the old content or the new one, never a part.

    What is no regular file, ``/dev/stdout`` for example, is written itself. False, with a line to `errors`, if that
    fails.
    """
    try:
        final = path.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not final.is_file():
            write(final)
            return True
        temporary = final.with_name(f".{secrets.token_hex(8)}.{final.name}")  # the suffix tells the form of a badge
        try:
            write(temporary)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        message = f"{path}: the {what} cannot be written: {error.strerror or error}"
        errors.print(message, markup=False, highlight=False, soft_wrap=True)
        return False
    return True


def _check_arguments(
    profile: str,
    badge: Path | None,
    keyword: str | None,
    max_examples: int | None,
    minutes: float | None,
    jobs: int | None,
) -> None:
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {list(PROFILES)}, got {profile!r}")
    if badge is not None and badge.suffix not in badges.SUFFIXES:
        raise ValueError(f"badge: expected a file that ends in {' or '.join(badges.SUFFIXES)}, got {str(badge)!r}")
    if badge is not None and keyword:
        raise ValueError("badge: a badge speaks for the whole suite; leave out -k, or the badge")
    if minutes is not None and profile != "nightly":
        raise ValueError(f"minutes: only the profile 'nightly' searches by time, got {profile!r}")
    if minutes is not None and max_examples is not None:
        raise ValueError("minutes and max-examples: expected one of them, got both")
    for name, value in (("max-examples", max_examples), ("minutes", minutes), ("jobs", jobs)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value}")


def _run_all(requests: Sequence[Request], jobs: int, console: Console) -> list[reporting.Report]:
    """The report of each target, of which `jobs` at a time are tested in processes of their own."""
    waiting, running = list(requests), list[_Session]()
    done: dict[str, reporting.Report] = {}
    with tempfile.TemporaryDirectory() as folder, RunProgress([each.target for each in requests], console) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_Session(waiting.pop(0), Path(folder), progress))
                for session in [each for each in running if each.has_ended()]:
                    running.remove(session)
                    done[session.target] = session.report()
                time.sleep(_POLL_SECONDS)
        finally:
            for session in running:
                session.kill()
    return [done[request.target] for request in requests]


class _Session:
    """A target under test: the process that tests it, and what that has told so far.

    A process that dies has failed the check that it was at. Another one takes over with the next check.
    """

    def __init__(self, request: Request, folder: Path, progress: RunProgress) -> None:
        self.target, self._request, self._progress = request.target, request, progress
        self._files = folder / request.target.replace(":", "-")
        self._files.mkdir()
        self._started = time.monotonic()
        self._selected: list[str] = []
        self._records: dict[str, reporting.Record] = {}
        self._errors: list[str] = []
        self._starts = 0
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self._at: str | None = None
        self._capabilities: dict[str, Any] | None = None
        events, output = (self._files / f"{self._starts}.{name}" for name in ("events", "output"))
        self._output = output
        request = replace(self._request, done=tuple(self._records))
        # Plugins that happen to be installed are not part of the suite, nor are a caller's pytest options.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        command = [sys.executable, "-c", _START, json.dumps(asdict(request)), str(events)]
        events.touch()
        self._events = events.open(encoding="utf-8")
        self._unread = ""
        with output.open("wb") as stream:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
            )

    def has_ended(self) -> bool:
        """Take note of what happened since the last call; False as long as there is something to wait for."""
        code = self._process.poll()
        self._read()
        if code is None:
            return False
        self._events.close()
        if self._capabilities is not None:
            return True
        return not self._bury(code)

    def _read(self) -> None:
        self._unread += self._events.read()
        *lines, self._unread = self._unread.split("\n")
        for line in lines:
            event = json.loads(line)
            if "selected" in event:
                self._selected += event["selected"]
            elif "at" in event:
                self._at = event["at"]
            elif "record" in event:
                record = reporting.Record(**event["record"])
                self._records[record.id] = record
            elif "error" in event:
                self._errors.append(event["error"])
            elif "end" in event:
                self._capabilities = event["end"]["capabilities"]
            self._progress.show(self.target, event)

    def _bury(self, code: int) -> bool:
        """Record how the process ended; True if another one goes on."""
        ending = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        printed = last_words(self._output.read_text(encoding="utf-8", errors="replace"))
        if self._at is None or self._at in self._records:
            self._errors.append(f"the process that tested {self.target} ended with {ending} between checks\n{printed}")
            return False
        owed = expectations.owed_ids(self.target)
        text = f"the process ended with {ending} in this check\n{printed}\nTo reproduce:\n" + (
            f"    bittensor conformance --backend {self.target} -k '{_keyword_of(self._at)}'"
        )
        record = reporting.Record(self._at, *owed.get(self._at, ("protocol", None)), "failed", 0, 0.0, text)
        self._records[record.id] = record
        self._progress.show(self.target, {"record": asdict(record)})
        if self._starts > _RESTARTS:
            self._errors.append(f"the process that tested {self.target} ended {self._starts} times; gave up")
            return False
        self._selected = [check_id for check_id in self._selected if check_id in self._records]
        self._start()
        return True

    def report(self) -> reporting.Report:
        """What became of the target."""
        return reporting.of_target(
            self.target,
            self._capabilities or {},
            expectations.owed_ids(self.target),
            self._selected,
            self._records.values(),
            time.monotonic() - self._started,
            self._errors,
        )

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._events.close()


def _keyword_of(check_id: str) -> str:
    """A ``-k`` expression that selects the check: its name and the parts of its parameters."""
    name, _, parts = check_id.partition("/")[2].rstrip("]").partition("[")
    return " and ".join([name, *parts.replace(",", " ").split()])
