"""Which backend computes: discovery by entry point, loading on first use, selection.

In rising order of precedence: the default, the environment variable ``BITTENSOR_BACKEND``, `set_backend`,
`use_backend`. There is no silent fallback: a backend that is asked for and cannot be had is an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import torch

from .backend import Backend
from .declaration import check_declaration
from .errors import BackendError, BackendLoadError, UnknownBackendError
from .tracing import run_now

ENTRY_POINT_GROUP = "bittensor.backends"
ENVIRONMENT_VARIABLE = "BITTENSOR_BACKEND"
DEFAULT_BACKEND = "cpp"

_loaded: dict[str, Backend] = {}
_loading = threading.RLock()
# A fork waits for it, as for the lock of conversions, which may take this one: registered later, that is taken first.
os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)
_process_wide: Backend | None = None
_from_environment: Backend | None = None
_from_environment_reason = ""
_in_context: ContextVar[Backend] = ContextVar("bittensor_backend")


class _Context:
    """The context's backend as an attribute; the object itself stands for none.

    torch.compile cannot trace ``ContextVar.get``, but reads a property that is implemented in C where it traces, and
    again before each call: code that it compiled for one backend is not run with another, whatever the thread.
    """

    backend = property(_in_context.get)


_context = _Context()


@dataclass(frozen=True)
class Selection:
    """The backend a call would use now, and what selected it."""

    backend: Backend
    reason: str


def available_backends() -> tuple[str, ...]:
    """Names of the installed backends, sorted. None is loaded by asking.

    >>> import bittensor
    >>> "reference" in bittensor.available_backends()
    True
    """
    return tuple(sorted(_entry_points()))


def get_backend(name: str) -> Backend:
    """The backend called `name`, loaded on first use. ``"cpp:avx2"`` fixes a variant of a backend.

    Raises:
        UnknownBackendError: nothing of that name is installed; the message lists what is.
        BackendLoadError: it is installed, but could not be imported or does not follow the protocol.
    """
    backend = _loaded.get(name)
    if backend is None:
        with _loading:
            backend = _loaded.get(name)
            if backend is None:
                backend = _loaded[name] = _load(name)
    return backend


def set_backend(name: str | None) -> None:
    """Select the backend for the whole process, in every thread; None returns to the environment's choice.

    >>> import bittensor
    >>> bittensor.set_backend("reference")
    >>> bittensor.current_backend().name
    'reference'
    >>> bittensor.set_backend(None)
    """
    global _process_wide
    _process_wide = None if name is None else get_backend(name)


@contextmanager
def use_backend(name: str) -> Iterator[Backend]:
    """Select a backend inside a ``with`` block, for this thread or asynchronous task only.

    >>> import bittensor
    >>> with bittensor.use_backend("reference") as backend:
    ...     bittensor.current_backend() is backend
    True
    """
    backend = get_backend(name)
    token = _in_context.set(backend)
    try:
        yield backend
    finally:
        _in_context.reset(token)


def current_backend() -> Backend:
    """The backend that a call made here and now would use."""
    backend: Backend | _Context = _context.backend
    if backend is not _context:
        return backend  # type: ignore[return-value]
    return _process_wide or _from_environment or _select_from_environment()


def selection() -> Selection:
    """The current backend with the reason for it, as ``bittensor info`` prints it."""
    if backend := _in_context.get(None):
        return Selection(backend, "use_backend()")
    if _process_wide is not None:
        return Selection(_process_wide, "set_backend()")
    return Selection(_from_environment or _select_from_environment(), _from_environment_reason)


def name_of(backend: Backend) -> str:
    """The name under which `backend` was loaded, which is not always its own."""
    if _loaded.get(backend.name) is not backend:
        for name, each in list(_loaded.items()):  # another thread may be loading one
            if each is backend:
                return name
        raise UnknownBackendError(f"backend {backend.name!r} is not one that get_backend() returned")
    return backend.name


def _select_from_environment() -> Backend:
    if torch.compiler.is_dynamo_compiling():
        run_now(_select_from_environment)
    # Read once, on the first call: a changed variable would otherwise switch backends under a running program.
    global _from_environment, _from_environment_reason
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    reason = "the default" if name is None else f"{ENVIRONMENT_VARIABLE}={name}"
    try:
        backend = get_backend(DEFAULT_BACKEND if name is None else name)
    except BackendError as error:
        raise type(error)(f"{error} (selected by {reason})") from error.__cause__
    _from_environment, _from_environment_reason = backend, reason
    return backend


def _entry_points() -> dict[str, list[EntryPoint]]:
    """What registers each name. A name with a colon would be a variant of another: it is none of a backend."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if ":" not in point.name:
            found.setdefault(point.name, []).append(point)
    return found


def _load(name: str) -> Backend:
    if not isinstance(name, str):
        raise TypeError(f"backend name: expected str, got {type(name).__name__}")
    base, separator, variant = name.partition(":")
    if separator:
        backend = get_backend(base)
        variants = backend.capabilities.variants
        if variant not in variants:
            listed = ", ".join(f"{base}:{each}" for each in variants) or "it has none"
            raise UnknownBackendError(f"backend {base!r} has no variant {variant!r}; its variants: {listed}")
        try:
            loaded = backend.variant(variant)
        except BackendError:
            raise
        except Exception as error:
            raise BackendLoadError(f"backend {name!r} could not be loaded: {error}") from error
        return check_declaration(name, loaded)
    points = _entry_points().get(base)
    if points is None:
        listed = ", ".join(available_backends()) or "none"
        raise UnknownBackendError(
            f"unknown backend {name!r}; installed backends: {listed}. A backend is installed by a package that has an "
            f"entry point in the group {ENTRY_POINT_GROUP!r}"
        )
    point, *others = points
    if others:
        listed = ", ".join(f"{each.value} of {_distribution(each)}" for each in points)
        raise BackendLoadError(f"backend {base!r} is in several packages: {listed}; uninstall all but one")
    try:
        made = point.load()()
    except (Exception, SystemExit) as error:
        raise BackendLoadError(f"backend {base!r} ({point.value}) could not be loaded: {error!r}") from error
    return check_declaration(base, made)


def _distribution(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name
