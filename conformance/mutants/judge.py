"""The suite's verdict on a workspace."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from .build import BuildError
from .process import Deadline, OutOfTimeError, run_group
from .workspace import Workspace, child_environment

_SESSION = Path(__file__).with_name("session.py")


@dataclass(frozen=True)
class Verdict:
    """What the suite said of one target.

    Attributes:
        finding: why it is not conformant, on a line; None if it is.
        check: the check that said so, or the one at which the process ended.
        seconds: how long it took.
    """

    target: str
    finding: str | None
    check: str | None
    seconds: float


def judge(
    workspace: Workspace, target: str, first_chapter: str, limit: float, deadline: Deadline, drawn: Path
) -> Verdict:
    """Run the suite on `target` for at most `limit` seconds. A process that dies or comes to no end has failed.

    `drawn` is a folder in which runs of the suite on the same sources share what they have drawn.

    Raises:
        OutOfTimeError: the run's time is over before anything is certain.
    """
    started = monotonic()
    left = deadline.left()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdict.json"
        command = [str(workspace.python), str(_SESSION), target, first_chapter, str(path), str(drawn)]
        code, output = run_group(
            command,
            folder=Path(folder),
            environment=child_environment(),
            seconds=limit if left is None else min(limit, left),
        )
        if code is None and deadline.is_over:
            raise OutOfTimeError
        seconds = round(monotonic() - started, 1)
        if not path.exists():
            ending = f"no end after {limit:.0f} s" if code is None else _ending(code)
            running = path.with_suffix(".check")
            check = running.read_text(encoding="utf-8") if running.exists() else None
            last = output.strip().splitlines()[-1:] or [""]
            return Verdict(target, f"the process ended with {ending}. {last[0]}".strip()[:300], check, seconds)
        result = json.loads(path.read_text(encoding="utf-8"))
    if result["status"] == "green":
        return Verdict(target, None, None, seconds)
    failed = result["failed"]
    if failed is None:
        return Verdict(target, f"{result['status']}: {' '.join(result['errors'])}"[:300], None, seconds)
    return Verdict(target, failed["message"].strip().partition("\n")[0][:300], failed["check"], seconds)


@dataclass(frozen=True)
class Machine:
    """Its processor, and what can be judged on it."""

    cpu: str
    targets: list[str]


def describe_machine(workspace: Workspace, backends: Iterable[str]) -> Machine:
    """The machine as the suite sees it: each of the backends, and the variants that are supported here.

    Raises:
        BuildError: the suite cannot be imported, or a backend cannot.
    """
    code = (
        "import json, sys\n"
        "from bittensor_conformance import report, targets\n"
        "print('\\n' + json.dumps([report.machine()['cpu'], targets.expand(sys.argv[1:])]))"
    )
    command = [str(workspace.python), "-c", code, *sorted(backends)]
    status, output = run_group(command, environment=child_environment())
    if status != 0:
        raise BuildError(f"the suite finds no targets: {output[-2000:]}")
    return Machine(*json.loads(output.strip().splitlines()[-1]))


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
