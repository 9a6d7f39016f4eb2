"""The backend protocol: what a backend says about itself is well-formed, and selecting it has an effect."""

from __future__ import annotations

import pytest

import bittensor
from bittensor.backend import OPERATIONS, PROTOCOL_VERSION
from bittensor.codes import SUPPORTED_BITS

from ..catalogue import PROTOCOL, check
from ..targets import Target


@check(PROTOCOL)
def test_declaration_is_well_formed(target: Target) -> None:
    """Capabilities name only what the protocol knows, and at least one operation at one width, on the CPU."""
    declared = target.capabilities
    assert target.backend.protocol_version == PROTOCOL_VERSION
    assert isinstance(target.backend.name, str), f"name: expected str, got {target.backend.name!r}"
    assert declared.operations, "operations: the backend declares none, so there is nothing to test"
    assert declared.operations <= set(OPERATIONS), f"operations: unknown {declared.operations - set(OPERATIONS)}"
    assert declared.bits, "bits: the backend declares none, so there is nothing to test"
    assert declared.bits <= set(SUPPORTED_BITS), f"bits: unknown {declared.bits - set(SUPPORTED_BITS)}"
    assert "cpu" in declared.devices, f"devices: this suite tests tensors on cpu, got {sorted(declared.devices)}"
    assert declared.numerics in ("exact", "bounded"), f"numerics: got {declared.numerics!r}"
    assert len(set(declared.variants)) == len(declared.variants), f"variants: {declared.variants} repeats a name"


@check(PROTOCOL)
def test_selection_takes_effect(target: Target) -> None:
    """Inside `use_backend` it is this backend that public functions call."""
    with bittensor.use_backend(target.name) as backend:
        assert bittensor.current_backend() is backend, "use_backend() did not select the backend it returned"
        assert backend is target.backend, "two loads of one name gave two backends"


@check(PROTOCOL)
def test_unknown_variant_is_refused(target: Target) -> None:
    """A variant that is not declared is an error that names it; there is no silent fallback."""
    with pytest.raises(bittensor.UnknownBackendError, match="no-such-variant"):
        bittensor.get_backend(f"{target.name.partition(':')[0]}:no-such-variant")


@check(PROTOCOL)
def test_descriptions_are_text(target: Target) -> None:
    """`describe` maps text to text, and `kernel_calls` text to counts."""
    for key, value in target.backend.describe().items():
        assert isinstance(key, str), f"describe(): key {key!r}"
        assert isinstance(value, str), f"describe(): value {value!r} of {key!r}"
    for kernel, count in target.backend.kernel_calls().items():
        assert isinstance(kernel, str), f"kernel_calls(): key {kernel!r}"
        assert isinstance(count, int), f"kernel_calls(): value {count!r} of {kernel!r}"
        assert count >= 0, f"kernel_calls(): {kernel!r} ran {count} times"
