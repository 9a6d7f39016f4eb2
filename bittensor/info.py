"""What ``bittensor info`` reports about this installation and this machine, as plain data."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ._distribution import __version__
from .errors import BackendError
from .extras import MissingExtraError
from .registry import DEFAULT_BACKEND, ENVIRONMENT_VARIABLE, available_backends, get_backend, selection

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux lists its processors."""


@dataclass(frozen=True)
class SelectedBackend:
    """The backend a call would use, why, and what it says of itself; `error` if it cannot be had.

    >>> SelectedBackend(name="reference", reason="the default").error is None
    True
    """

    name: str
    reason: str
    details: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class InstalledBackend:
    """One installed backend and what it declares.

    `error` says why it could not be loaded; `missing`, which extra it needs, if that is all.
    """

    name: str
    operations: tuple[str, ...] = ()
    bits: tuple[int, ...] = ()
    numerics: str = ""
    variants: tuple[str, ...] = ()
    error: str | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Info:
    """Everything ``bittensor info`` shows; ``dataclasses.asdict`` of it is the output of ``--json``."""

    version: str
    backend: SelectedBackend
    installed_backends: tuple[InstalledBackend, ...]
    cpu: str
    torch_threads: int
    torch: str
    python: str

    @property
    def errors(self) -> tuple[str, ...]:
        """Messages of every backend that could not be loaded, the selected one first, none twice."""
        errors = (self.backend.error, *(backend.error for backend in self.installed_backends))
        return tuple(dict.fromkeys(error for error in errors if error is not None))


def collect() -> Info:
    """Gather the facts. Loads every installed backend; one that fails is reported, not raised.

    >>> import bittensor
    >>> collect().version == bittensor.__version__
    True
    """
    return Info(
        version=__version__,
        backend=_selected(),
        installed_backends=tuple(_installed(name) for name in available_backends()),
        cpu=cpu_model(),
        torch_threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """Model of the first processor in `cpuinfo`; where that says nothing, the machine type (``x86_64``)."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.machine()


def _selected() -> SelectedBackend:
    try:
        selected = selection()
    except BackendError as error:
        # Only the environment and the default are resolved this late; set_backend and use_backend load at once.
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        reason = "the default" if name is None else f"{ENVIRONMENT_VARIABLE}={name}"
        return SelectedBackend(DEFAULT_BACKEND if name is None else name, reason, error=str(error))
    backend = selected.backend
    try:
        details = {str(key): str(value) for key, value in backend.describe().items()}
    except Exception as error:  # a backend is foreign code, and this command is for finding out what is wrong
        return SelectedBackend(backend.name, selected.reason, error=f"describe() of {backend.name!r} failed: {error}")
    return SelectedBackend(backend.name, selected.reason, details)


def _installed(name: str) -> InstalledBackend:
    try:
        declared = get_backend(name).capabilities
    except BackendError as error:
        if isinstance(error.__cause__, MissingExtraError):
            return InstalledBackend(name, missing=str(error.__cause__))
        return InstalledBackend(name, error=str(error))
    return InstalledBackend(
        name,
        operations=tuple(sorted(declared.operations)),
        bits=tuple(sorted(declared.bits)),
        numerics=declared.numerics,
        variants=tuple(f"{name}:{variant}" for variant in declared.variants),
    )
