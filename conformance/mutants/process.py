"""Commands that are given a time to end in, with everything that they start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic


class OutOfTimeError(Exception):
    """The run's time is over before the command's end."""


class Deadline:
    """When a run is to end; `seconds` from now, or never."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else monotonic() + seconds

    def left(self) -> float | None:
        """Seconds from now, at least 0; None without end."""
        return None if self._end is None else max(0.0, self._end - monotonic())

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to begin."""
        return self.left() == 0.0


def run_group(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> tuple[int | None, str]:
    """The exit code, None if it came to no end in `seconds`, and what was printed. Nothing that it started goes on."""
    # A session of its own, so that what it starts ends with it.
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it started and left
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output
