"""The choice of backends in benchmarks/micro."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def collect(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What pytest finds in benchmarks/micro of the linear, without running it."""
    command = [sys.executable, "-m", "pytest", "benchmarks/micro", "--collect-only", "-q", "-k", "test_linear and m8"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_chosen_backends_and_no_others_are_timed() -> None:
    run = collect("--backend", "reference", "--backend", "cpp:scalar")
    names = {line.rsplit("-", 1)[1] for line in run.stdout.splitlines() if line.startswith("benchmarks/micro/")}
    assert names == {"reference]", "cpp:scalar]"}, run.stdout


def test_a_backend_that_is_not_registered_is_named() -> None:
    run = collect("--backend", "nobody")
    assert run.returncode != 0
    assert "unknown backend 'nobody'" in run.stdout
