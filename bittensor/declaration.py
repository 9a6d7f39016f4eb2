"""The rules for what a backend says about itself, which are checked when it is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .backend import (
    EMBEDDING_OPERATIONS,
    GRADIENT_OPERATIONS,
    OPERATIONS,
    PROTOCOL_VERSION,
    WEIGHT_OPERATIONS,
    Backend,
    Capabilities,
)
from .codes import SUPPORTED_BITS
from .errors import BackendLoadError
from .prepared_weight import ACTIVATION_MODES, EPILOGUES, GROUP_BITS, GROUP_SIZE_MULTIPLE, SCALE_DTYPES, ZERO_KINDS

_KNOWN: Mapping[str, Collection[object]] = {
    "operations": OPERATIONS,
    "bits": SUPPORTED_BITS,
    "linear_bits": GROUP_BITS,
    "zero_kinds": ZERO_KINDS,
    "scale_dtypes": SCALE_DTYPES,
    "activation_modes": ACTIVATION_MODES,
    "epilogues": EPILOGUES,
}
"""Fields of `Capabilities` that are sets, and what they may have."""


def check_declaration(name: str, backend: object) -> Backend:
    """Rules of a loaded backend or variant, which it returns.

    Raises:
        BackendLoadError: it follows another version of the protocol, its capabilities are not those of the protocol, or
            it lacks what it declares.
    """
    version = getattr(backend, "protocol_version", None)
    if type(version) is not int:
        raise BackendLoadError(
            f"backend {name!r}: protocol_version: expected the number of the protocol's version that it was written "
            f"for, got {version!r}; see bittensor.Backend"
        )
    if version != PROTOCOL_VERSION:
        older, newer = ("the backend", "BitTensor") if version < PROTOCOL_VERSION else ("BitTensor", "the backend")
        raise BackendLoadError(
            f"backend {name!r} follows protocol version {version}, this BitTensor speaks version {PROTOCOL_VERSION}; "
            f"install a newer version of {older}, or an older one of {newer}"
        )
    capabilities = getattr(backend, "capabilities", None)
    if capabilities is None:
        raise BackendLoadError(f"backend {name!r} lacks capabilities; see bittensor.Backend")
    if not isinstance(capabilities, Capabilities):
        raise BackendLoadError(
            f"backend {name!r}: capabilities: expected a bittensor.Capabilities, got {type(capabilities).__name__}"
        )
    _check_capabilities(name, capabilities)
    operations = [operation for operation in OPERATIONS if operation in capabilities.operations]
    required = ("name", *operations, "variant", "describe", "kernel_calls")
    if missing := [attribute for attribute in required if not _has(backend, attribute)]:
        raise BackendLoadError(f"backend {name!r} lacks {', '.join(missing)}; see bittensor.Backend")
    return backend  # type: ignore[return-value]  # it has all that the protocol asks for


def _check_capabilities(name: str, capabilities: Capabilities) -> None:
    for field, known in _KNOWN.items():
        declared = getattr(capabilities, field)
        if not isinstance(declared, Collection) or isinstance(declared, str):
            raise BackendLoadError(
                f"backend {name!r}: capabilities.{field}: expected a frozenset, got {type(declared).__name__}"
            )
        if unknown := [each for each in declared if each not in known or isinstance(each, bool)]:
            listed = sorted(unknown, key=str)
            raise BackendLoadError(f"backend {name!r} declares unknown {field} {listed}; known: {list(known)}")
    multiple, variants, operations = capabilities.group_size_multiple, capabilities.variants, {*capabilities.operations}
    on_weights = sorted(operations & {*WEIGHT_OPERATIONS, *GRADIENT_OPERATIONS, *EMBEDDING_OPERATIONS})
    if on_weights and not operations >= set(WEIGHT_OPERATIONS):
        raise BackendLoadError(f"backend {name!r} declares {on_weights}, but {list(WEIGHT_OPERATIONS)} belong together")
    if capabilities.operators and not capabilities.checks_arguments:
        raise BackendLoadError(f"backend {name!r} declares operators, but not that they check their arguments")
    if capabilities.numerics not in ("exact", "bounded"):
        raise BackendLoadError(
            f"backend {name!r}: capabilities.numerics: expected 'exact' or 'bounded', got {capabilities.numerics!r}"
        )
    if type(multiple) is not int or multiple < 1 or multiple % GROUP_SIZE_MULTIPLE:
        raise BackendLoadError(
            f"backend {name!r}: capabilities.group_size_multiple: expected a multiple of {GROUP_SIZE_MULTIPLE}, got "
            f"{multiple!r}"
        )
    if not isinstance(variants, tuple) or not all(isinstance(each, str) and each for each in variants):
        raise BackendLoadError(f"backend {name!r}: capabilities.variants: expected a tuple of names, got {variants!r}")
    if len(set(variants)) < len(variants):
        raise BackendLoadError(f"backend {name!r}: capabilities.variants: {variants} repeats a name")
    if not isinstance(capabilities.layout, str) or not capabilities.layout:
        raise BackendLoadError(
            f"backend {name!r}: capabilities.layout: expected the name of a layout, got {capabilities.layout!r}"
        )


def _has(backend: object, attribute: str) -> bool:
    """Whether `backend` has this; an operation of its own, not the one of `Backend`, which refuses."""
    if not hasattr(backend, attribute):
        return False
    inherited = attribute in OPERATIONS and getattr(type(backend), attribute, None) is getattr(Backend, attribute)
    return not inherited or attribute in vars(backend)
