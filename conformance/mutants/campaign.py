"""Faults tried side by side, each in a workspace, with a record that grows with each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import cpu_count
from pathlib import Path
from time import monotonic

from rich.console import Console

from . import record
from .build import Build, BuildError
from .fault import Fault
from .judge import Verdict, describe_machine, judge
from .process import Deadline, OutOfTimeError
from .record import Outcome, Proof
from .workspace import Workspace

SHORTEST_LIMIT = 300.0
"""Seconds that a run of the suite is given at least before it counts as one without an end."""


@dataclass
class Campaign:
    """A run over many faults.

    Attributes:
        folder: where the sound build and the workspaces are; what another run left there is used again.
        jobs: workspaces.
        path: of the record.
        outcomes, proof: what is known; both grow.
        unsound: targets that are not conformant without a fault, so that nothing can be said of their faults.
        untried: faults that this run says nothing of, with the reason.
    """

    folder: Path
    jobs: int
    path: Path
    outcomes: dict[str, Outcome]
    proof: Proof
    deadline: Deadline
    console: Console
    unsound: set[str] = field(default_factory=set)
    untried: dict[str, str] = field(default_factory=dict)

    def run(self, faults: list[Fault]) -> None:
        """Try the faults, and before them the sources without any, on the targets that are affected.

        Raises:
            BuildError: the sources without a fault do not compile, or cannot be imported.
            OutOfTimeError: the time is over before they are compiled.
        """
        if not faults:
            return
        self._say(f"building {self.folder}")
        build = Build(self.folder / "sound", self.deadline)
        build.make(cpu_count() or 1)
        self._workspaces = [Workspace(self.folder / str(number), build) for number in range(self.jobs)]
        self._free: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
        for workspace in self._workspaces:
            workspace.set_up()
            self._free.put(workspace)
        self._drawn = self.folder / "drawn" / self.proof.sources
        self._drawn.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        affected = {target for fault in faults for target in fault.targets}
        self._machine = describe_machine(self._workspaces[0], {target.partition(":")[0] for target in affected})
        wanted = sorted(affected & set(self._machine.targets))
        with ThreadPoolExecutor(self.jobs) as pool:
            # Begun first, and not waited for: a fault waits with its outcome until its target is known to be sound.
            proofs = {name: pool.submit(self._prove, name) for name in wanted if name not in self.proof.seconds}
            for trial in [pool.submit(self._try, fault, proofs) for fault in faults]:
                trial.result()

    def _prove(self, target: str) -> None:
        try:
            with self._workspace() as workspace:
                verdict = judge(workspace, target, "", 3600, self.deadline, self._drawn)
        except Exception as error:
            self._reject(target, f"{type(error).__name__}: {error}")
            return
        if verdict.finding is not None:
            self._reject(target, f"{verdict.check}: {verdict.finding}")
            return
        with self._lock:
            self.proof.seconds[target] = verdict.seconds
            self._write()
        self._say(f"without any fault, {target} conforms ({verdict.seconds} s)")

    def _reject(self, target: str, why: str) -> None:
        with self._lock:
            self.unsound.add(target)
        self._say(f"without any fault, {target} is not known to conform: {why}")

    def _try(self, fault: Fault, proofs: dict[str, Future[None]]) -> None:
        """Record what becomes of a fault; whatever goes wrong is a reason to say nothing of this one."""
        try:
            if self.deadline.is_over:
                raise OutOfTimeError
            with self._workspace() as workspace:
                slowest = max(self.proof.seconds.values(), default=0.0)
                outcome = self._outcome_of(fault, workspace, max(SHORTEST_LIMIT, 5 * slowest))
            for target in proofs.keys() & set(fault.targets):
                proofs[target].result()
        except OutOfTimeError:
            self.untried[fault.id] = "the time was over"
            return
        except Exception as error:
            self.untried[fault.id] = f"{type(error).__name__}: {error}"
            self._say(f"error    {fault.id}: {self.untried[fault.id]}")
            return
        if unsound := self.unsound & set(fault.targets):
            self.untried[fault.id] = f"{', '.join(sorted(unsound))} may fail without it"
            return
        with self._lock:
            self.outcomes[fault.id] = replace(outcome, tried=record.here_and_now(self._machine.cpu))
            self._write()
        found = f" by {outcome.target} {outcome.check}" if outcome.state == "killed" else ""
        self._say(f"{outcome.state:8} {fault.id}{found} ({outcome.build_seconds:.0f} + {outcome.suite_seconds:.0f} s)")

    def _outcome_of(self, fault: Fault, workspace: Workspace, limit: float) -> Outcome:
        """Build `fault` into the workspace and run the suite on its targets, until one is not conformant."""
        targets = [target for target in fault.targets if target in self._machine.targets]
        if not targets:
            finding = f"this machine has none of {', '.join(fault.targets)}"
            return Outcome(fault.id, fault.digest(), "not run", None, None, finding, 0.0, 0.0)
        started = monotonic()
        verdicts: list[Verdict] = []
        try:
            with workspace.with_fault(fault):
                built = round(monotonic() - started, 1)
                for target in targets:
                    verdicts.append(judge(workspace, target, fault.chapter, limit, self.deadline, self._drawn))
                    if verdicts[-1].finding is not None:
                        break
        except BuildError as error:
            return Outcome(fault.id, fault.digest(), "invalid", None, None, str(error)[-600:], 0.0, 0.0)
        seconds = round(sum(verdict.seconds for verdict in verdicts), 1)
        last = verdicts[-1]
        if last.finding is None:
            return Outcome(fault.id, fault.digest(), "survived", None, None, None, built, seconds)
        return Outcome(fault.id, fault.digest(), "killed", last.target, last.check, last.finding, built, seconds)

    @contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        workspace = self._free.get()
        try:
            yield workspace
        finally:
            self._free.put(workspace)

    def _write(self) -> None:
        record.write(self.path, self.outcomes, self.proof)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
