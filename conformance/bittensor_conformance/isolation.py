"""Calls that may end the process, made in a process of their own.

One child serves the jobs of a target, one after the other. It says what it is about to do before it does it, so that
after a crash the parent knows which call it was; the next job gets a new child.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from dataclasses import asdict, dataclass
from time import monotonic
from typing import IO, Any

from bittensor.backend import GRADIENT_OPERATIONS, WEIGHT_OPERATIONS

_START = "from bittensor_conformance.isolation import serve; serve()"
_SECONDS = 300


@dataclass(frozen=True)
class Job:
    """One check's worth of calls: ``kind`` is "guarded" or "undeclared"."""

    kind: str
    operation: str
    bits: int


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the failure's message or None, and the number of calls made."""

    failure: str | None
    calls: int


def run_job(target: str, job: Job) -> Outcome:
    """Run a job on `target` in the child that serves it; a child that dies fails the job it was at, not the others."""
    child = _children.get(target)
    if child is None:
        child = _children[target] = _Child(target)
    outcome = child.run(job)
    if outcome is None:
        del _children[target]
        return Outcome(child.bury(), 0)
    return outcome


def close_children() -> None:
    """End the children that still wait for jobs."""
    while _children:
        _children.popitem()[1].bury()


class _Child:
    """A process that serves jobs of a target. Its events come through a pipe of their own: stdout is the backend's."""

    def __init__(self, target: str) -> None:
        self._events, events_end = os.pipe()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(events_end), target],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(events_end,),
        )
        os.close(events_end)
        self._unread = b""
        self._at = "(before the first call)"

    def run(self, job: Job) -> Outcome | None:
        """What became of the job; None if the child died or came to no end."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it died between two jobs
            return None
        deadline = monotonic() + _SECONDS
        while (event := self._next_event(deadline)) is not None:
            if "at" in event:
                self._at = event["at"]
            else:
                return Outcome(event["failure"], event["calls"])
        return None

    def bury(self) -> str:
        """Reap the child, and say how it ended and in which call."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it may have died before it read everything
            self._process.stdin.close()
        try:
            code = self._process.wait(timeout=5)
            ending = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            ending = f"no end after {_SECONDS} s"
        os.close(self._events)
        self._errors.seek(0)
        errors = self._errors.read()[-2000:].decode(errors="replace")
        self._errors.close()
        call = textwrap.indent(self._at, "    ")
        return f"the process ended with {ending}\nTo reproduce:\n{call}\n{errors}".rstrip()

    def _next_event(self, deadline: float) -> dict[str, Any] | None:
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._events], [], [], max(0.0, deadline - monotonic()))
            read = os.read(self._events, 1 << 16) if ready else b""
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event


_children: dict[str, _Child] = {}


def serve() -> None:
    """The child: run jobs from stdin, and tell of each step."""
    import torch

    from . import guarded_calls, guarded_linears, undeclared_calls, undeclared_linears

    torch.set_num_threads(1)  # the calls are small
    events, target = int(sys.argv[1]), sys.argv[2]
    on_codes = {"guarded": guarded_calls.run, "undeclared": undeclared_calls.run}
    on_weights = {"guarded": guarded_linears.run, "undeclared": undeclared_linears.run}

    def tell(**event: Any) -> None:
        unsent = json.dumps(event).encode() + b"\n"
        while unsent:
            unsent = unsent[os.write(events, unsent) :]

    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            kinds = on_weights if job.operation in (*WEIGHT_OPERATIONS, *GRADIENT_OPERATIONS) else on_codes
            calls = kinds[job.kind](job.operation, job.bits, target, lambda text: tell(at=text))
        except AssertionError as error:
            tell(failure=str(error), calls=0)
        except Exception as error:
            tell(failure=f"{type(error).__name__}: {error}", calls=0)
        else:
            tell(failure=None, calls=calls)
