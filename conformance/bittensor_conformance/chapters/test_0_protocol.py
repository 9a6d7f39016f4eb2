"""The backend protocol: what a backend says about itself is well-formed, and selecting it has an effect."""

from __future__ import annotations

from bittensor.backend import OPERATIONS, PROTOCOL_VERSION
from bittensor.codes import SUPPORTED_BITS

from ..catalogue import PROTOCOL, check
from ..scripts import holds
from ..targets import Target

_DECLARATION = """
backend = bittensor.current_backend()
declared = backend.capabilities
assert backend.protocol_version == version, f"protocol_version: got {backend.protocol_version!r}"
assert isinstance(backend.name, str), f"name: expected str, got {backend.name!r}"
assert declared.operations, "operations: the backend declares none, so there is nothing to test"
assert declared.operations <= set(operations), f"operations: unknown {declared.operations - set(operations)}"
assert declared.bits, "bits: the backend declares none, so there is nothing to test"
assert declared.bits <= set(widths), f"bits: unknown {declared.bits - set(widths)}"
assert "cpu" in declared.devices, f"devices: this suite tests tensors on cpu, got {sorted(declared.devices)}"
assert declared.numerics in ("exact", "bounded"), f"numerics: got {declared.numerics!r}"
assert len(set(declared.variants)) == len(declared.variants), f"variants: {declared.variants} repeats a name"
"""
_DESCRIPTIONS = """
backend = bittensor.current_backend()
for key, value in backend.describe().items():
    assert isinstance(key, str) and isinstance(value, str), f"describe(): expected texts, got {key!r}: {value!r}"
for kernel, count in backend.kernel_calls().items():
    assert isinstance(kernel, str) and isinstance(count, int), f"kernel_calls(): got {kernel!r}: {count!r}"
    assert count >= 0, f"kernel_calls(): {kernel!r} ran {count} times"
"""


@check(PROTOCOL)
def test_declaration_is_well_formed(target: Target) -> None:
    """Capabilities name only what the protocol knows, and at least one operation at one width, on the CPU."""
    holds(target, _DECLARATION, version=PROTOCOL_VERSION, operations=list(OPERATIONS), widths=list(SUPPORTED_BITS))


@check(PROTOCOL)
def test_selection_takes_effect(target: Target) -> None:
    """Inside `use_backend` it is this backend that public functions call."""
    body = "assert bittensor.current_backend() is bittensor.get_backend(name), 'use_backend() selected another one'"
    holds(target, body, name=target.name)


@check(PROTOCOL)
def test_unknown_variant_is_refused(target: Target) -> None:
    """A variant that is not declared is an error that names it; there is no silent fallback."""
    body = "with refused(bittensor.UnknownBackendError, words=['no-such-variant']):\n    bittensor.get_backend(name)"
    holds(target, body, name=f"{target.name.partition(':')[0]}:no-such-variant")


@check(PROTOCOL)
def test_descriptions_are_text(target: Target) -> None:
    """`describe` maps text to text, and `kernel_calls` text to counts."""
    holds(target, _DESCRIPTIONS)
