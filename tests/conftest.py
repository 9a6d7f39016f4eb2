"""Fixtures: the backends under test, and a registry and a number of threads that forget what a test did to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import bittensor
from bittensor import Backend, registry

pytest.register_assert_rewrite("activation_blocks", "native_kernels")

BACKENDS = ("reference", "cpp")
"""The backends of this distribution. One that does not load fails its tests; it does not skip them."""

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, selected while the test runs."""
    with bittensor.use_backend(request.param) as selected:
        yield selected


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def registry_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `set_backend` and the environment selected is as it was when the test ends."""
    monkeypatch.setattr(registry, "_process_wide", registry._process_wide)
    monkeypatch.setattr(registry, "_from_environment", registry._from_environment)
    monkeypatch.setattr(registry, "_from_environment_reason", registry._from_environment_reason)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What `torch.set_num_threads` selected is as it was when the test ends."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a fresh interpreter outside the repository, with given arguments and environment variables."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=_environment() | environment,
            timeout=120,
            check=False,
        )

    return run


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("BITTENSOR_")}
