"""The suite's verdict on a workspace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from .workspace import BuildError, Workspace, child_environment

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


def judge(workspace: Workspace, target: str, first_chapter: str, limit: float) -> Verdict:
    """Run the suite on `target` for at most `limit` seconds. A process that dies or comes to no end has failed."""
    started = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdict.json"
        command = [str(workspace.python), str(_SESSION), target, first_chapter, str(path)]
        # A session of its own, so that what it starts ends with it.
        process = subprocess.Popen(
            command, env=child_environment(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
            ending = _ending(process.returncode)
        except subprocess.TimeoutExpired:
            ending = f"no end after {limit:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the suite started and left
                os.killpg(process.pid, signal.SIGKILL)
        seconds = round(monotonic() - started, 1)
        if not path.exists():
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


def supported_targets(workspace: Workspace, backends: Iterable[str]) -> list[str]:
    """What can be judged on this machine: each of the backends, and the variants that the machine supports."""
    code = "import json, sys, bittensor_conformance.targets as t; print(json.dumps(t.expand(sys.argv[1:])))"
    done = subprocess.run(
        [str(workspace.python), "-c", code, *sorted(backends)],
        env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise BuildError(f"the suite finds no targets: {done.stderr[-2000:]}")
    return list(json.loads(done.stdout))


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
