"""Calls that may end the process, made in a process of their own.

One child serves the jobs of a target, one after the other. Before each call it writes the call's number into memory
that the parent shares, so that after a crash the parent knows which call it was; the next job gets a new child.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from time import monotonic
from typing import IO, Any

from bittensor.backend import EMBEDDING_OPERATIONS, GRADIENT_OPERATIONS, WEIGHT_OPERATIONS

from . import guarded_calls, guarded_linears, undeclared_calls, undeclared_linears
from .scripts import Script, run_body, script

_START = "from bittensor_conformance.isolation import serve; serve()"
_SECONDS = 300
_NUMBER_BYTES = 8
_CALLS = {
    "guarded": (guarded_calls.calls, guarded_linears.calls),
    "undeclared": (undeclared_calls.calls, undeclared_linears.calls),
}
"""The calls of each kind of job: on codes, and on weights."""


def last_words(printed: str) -> str:
    """What a process printed in the end; of a crash that faulthandler reports the begin, the innermost frames."""
    most = 2000
    _, found, report = printed.rpartition("Fatal Python error")
    if not found:
        return printed[-most:].strip()
    return (found + report.partition("Extension modules:")[0])[:most].strip()


@dataclass(frozen=True)
class Job:
    """One check's worth of calls: ``kind`` is "guarded" or "undeclared"."""

    kind: str
    operation: str
    bits: int

    def calls(self, target: str) -> Iterator[Script]:
        """The calls, in the same order in every process."""
        on_codes, on_weights = _CALLS[self.kind]
        of_weights = (*WEIGHT_OPERATIONS, *GRADIENT_OPERATIONS, *EMBEDDING_OPERATIONS)
        calls = on_weights if self.operation in of_weights else on_codes
        return calls(self.operation, self.bits, target)


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
        ending = child.bury()
        return Outcome(f"{ending[0]}\nTo reproduce:\n{_shown(child.at(job))}\n{ending[1]}".rstrip(), 0)
    return outcome


def close_children() -> None:
    """End the children that still wait for jobs."""
    while _children:
        _children.popitem()[1].bury()


def _shown(text: str) -> str:
    return textwrap.indent(text, "    ")


class _Child:
    """A process that serves jobs of a target. Outcomes come through a pipe of their own: stdout is the backend's."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._outcomes, outcomes_end = os.pipe()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        with tempfile.TemporaryFile() as file:
            file.truncate(_NUMBER_BYTES)
            self._number = mmap.mmap(file.fileno(), _NUMBER_BYTES)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(outcomes_end), str(file.fileno()), target],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(outcomes_end, file.fileno()),
            )
        os.close(outcomes_end)
        self._unread = b""

    def run(self, job: Job) -> Outcome | None:
        """What became of the job; None if the child died or came to no end."""
        assert self._process.stdin is not None
        self._number[:] = bytes(_NUMBER_BYTES)
        try:
            self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it died between two jobs
            return None
        outcome = self._next_outcome(monotonic() + _SECONDS)
        return None if outcome is None else Outcome(**outcome)

    def at(self, job: Job) -> str:
        """The call of `job` at which the child is, or was."""
        number = int.from_bytes(self._number[:], sys.byteorder)
        if number == 0:
            return "(before the first call)"
        body, names = next(islice(job.calls(self._target), number - 1, None))
        return script(self._target, body, names)

    def bury(self) -> tuple[str, str]:
        """Reap the child, and say how it ended and what it printed last."""
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
        os.close(self._outcomes)
        self._errors.seek(0)
        errors = last_words(self._errors.read().decode(errors="replace"))
        self._errors.close()
        return f"the process ended with {ending}", errors

    def _next_outcome(self, deadline: float) -> dict[str, Any] | None:
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._outcomes], [], [], max(0.0, deadline - monotonic()))
            read = os.read(self._outcomes, 1 << 16) if ready else b""
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        outcome: dict[str, Any] = json.loads(line)
        return outcome


_children: dict[str, _Child] = {}


def serve() -> None:
    """The child: run jobs from stdin, and tell what became of each."""
    import torch

    torch.set_num_threads(1)  # the calls are small
    outcomes, number_file, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    number = mmap.mmap(number_file, _NUMBER_BYTES)
    for line in sys.stdin:
        unsent = json.dumps(asdict(_outcome(Job(**json.loads(line)), target, number))).encode() + b"\n"
        while unsent:
            unsent = unsent[os.write(outcomes, unsent) :]


def _outcome(job: Job, target: str, number: mmap.mmap) -> Outcome:
    calls = 0
    try:
        for body, names in job.calls(target):
            calls += 1
            number[:] = calls.to_bytes(_NUMBER_BYTES, sys.byteorder)
            run_body(target, body, names)
    except AssertionError as error:
        return Outcome(str(error), 0)
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {error}", 0)
    return Outcome(None, calls)
