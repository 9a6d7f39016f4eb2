"""The backend protocol: what a package implements to compute BitTensor's operations.

A backend is one class and one entry point in the group ``bittensor.backends``. It declares what it can do as data
(`Capabilities`); the conformance suite tests what is declared and checks that the rest is refused. The meaning of
every operation is docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

import torch

from .codes import SUPPORTED_BITS
from .errors import UnknownBackendError, UnsupportedOperationError
from .fused import ComposedOperations, FusedOperations
from .prepared_weight import (
    CANONICAL_LAYOUT,
    GROUP_BITS,
    GROUP_SIZE_MULTIPLE,
    SCALE_DTYPES,
    ZERO_KINDS,
    PreparedWeight,
)

if TYPE_CHECKING:
    from .quantized_weight import QuantizedWeight

PROTOCOL_VERSION = 1
"""Version of the protocol: of `Backend`, `Capabilities` and what docs/numerics.md demands of the operations.

It goes up by one when a backend that was right would no longer be: a method takes or returns something else, an
operation must give other bits, a default of `Capabilities` declares more, something optional becomes required. It stays
when there is more that a backend may declare. A backend says as a number which version it was written for, and is
loaded by a BitTensor of that version only.
"""

CODE_OPERATIONS = ("pack", "unpack", "packed_matmul")
"""The operations on packed codes: what a backend declares unless it says otherwise."""

WEIGHT_OPERATIONS = ("prepare", "restore", "linear")
"""The operations on group-quantized weights. A backend declares all of them or none."""

GRADIENT_OPERATIONS = ("linear_input_grad",)
"""The gradient of "linear". A backend with the operations on group-quantized weights may declare it; without it,
gradients are computed from the dequantized weight."""

EMBEDDING_OPERATIONS = ("embedding",)
"""Rows of a group-quantized weight. Likewise optional; without it, they are taken from the restored weight."""

OPERATIONS = (*CODE_OPERATIONS, *WEIGHT_OPERATIONS, *GRADIENT_OPERATIONS, *EMBEDDING_OPERATIONS)
"""Names of the operations a backend may declare: the methods of `Backend` of the same name."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend declares. Undeclared operations and bit widths raise `UnsupportedOperationError`.

    Attributes:
        operations: names out of `OPERATIONS`.
        bits: code widths, out of 1, 2, 4, 8.
        devices: torch device types on which tensors may lie.
        numerics: "exact" promises the bits of docs/numerics.md; "bounded" only its error bounds.
        variants: names of alternative kernel paths, reachable as ``backend:variant`` (``cpp:avx2``). Each is held
            to the same contract.
        checks_arguments: the backend itself refuses every argument that `bittensor.checks` refuses, with any
            TypeError, ValueError or RuntimeError; BitTensor then words the error. When False (the default) BitTensor
            checks before it calls.
        operators: every operation calls operators of torch's dispatcher that have fakes, and "linear" one with a
            gradient, so that torch.compile and torch.export can trace it; goes with `checks_arguments`. When False
            (the default) BitTensor calls the backend through operators of its own.

    The rest says what "linear" can do and counts only where that is declared:

        linear_bits: code widths, out of 2, 4, 8.
        zero_kinds: out of `ZERO_KINDS`.
        scale_dtypes: dtypes of scales and offsets, out of `SCALE_DTYPES`.
        group_size_multiple: group sizes are multiples of it, or the whole row. A multiple of 8.
        activation_modes: out of `ACTIVATION_MODES`.
        epilogues: out of `EPILOGUES`.
        layout: name of the layout that `prepare` makes, the same for all variants of a backend. A new layout gets a
            new name.
    """

    operations: frozenset[str] = frozenset(CODE_OPERATIONS)
    bits: frozenset[int] = frozenset(SUPPORTED_BITS)
    devices: frozenset[str] = frozenset({"cpu"})
    numerics: Literal["exact", "bounded"] = "exact"
    variants: tuple[str, ...] = ()
    checks_arguments: bool = False
    operators: bool = False
    linear_bits: frozenset[int] = frozenset(GROUP_BITS)
    zero_kinds: frozenset[str] = frozenset(ZERO_KINDS)
    scale_dtypes: frozenset[torch.dtype] = frozenset(SCALE_DTYPES)
    group_size_multiple: int = GROUP_SIZE_MULTIPLE
    activation_modes: frozenset[str] = frozenset({"int8", "float"})
    epilogues: frozenset[str | None] = frozenset({None, "relu"})
    layout: str = CANONICAL_LAYOUT


class Backend(Protocol):
    """The operations behind `bittensor.pack_weights` and its siblings.

    Subclass it: operations that are not declared, and the methods that are no operations, have defaults. Tensors
    arrive in any strides, with any leading dimensions (written ``...``), possibly empty; results are new contiguous
    tensors. E = 64 / bits codes share a word.
    """

    name: str
    protocol_version: int
    capabilities: Capabilities

    def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        """uint8 codes ``[..., K]`` to int64 words ``[..., ceil(K/E)]``; unused high bits are 0."""
        self._refuse("pack")

    def unpack(self, words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
        """int64 words ``[..., ceil(columns/E)]`` to uint8 codes ``[..., columns]``; unused bits are ignored."""
        self._refuse("unpack")

    def packed_matmul(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: int,
        in_features: int | None,
        x_zero: int,
        weight_zero: int,
        scale: torch.Tensor | None,
        out_zero: int,
        out_dtype: torch.dtype | None,
    ) -> torch.Tensor:
        """Integer matrix product of codes; `bittensor.packed_matmul` has the meaning of each argument.

        `in_features` is always given when `x` is packed (int64); `scale` is float32 of shape ``[]``, ``[1]`` or
        ``[N]``; `out_dtype` is None (packed int64 result) or torch.int32.
        """
        self._refuse("packed_matmul")

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        """The weight in the layout of this backend, ``capabilities.layout``.

        A backend without a layout of its own returns ``weight.canonical()``.
        """
        self._refuse("prepare")

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        """The exact inverse of `prepare`. The unused bits of words are 0, or what they were in the canonical layout.

        For that layout it is ``QuantizedWeight.from_canonical(weight)``.
        """
        self._refuse("restore")

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        """``x @ W.T + bias``, x float ``[..., K]`` to ``[..., N]`` of its dtype; see `bittensor.linear`.

        A `weight` of another layout is a ValueError. `bias` is float32, float16 or bfloat16 ``[N]``.
        """
        self._refuse("linear")

    def linear_input_grad(self, dy: torch.Tensor, weight: PreparedWeight) -> torch.Tensor:
        """``dy @ dequantize(W)``, dy float ``[..., N]`` to ``[..., K]`` of its dtype (docs/numerics.md, section 6).

        The gradient of `linear` with respect to its input, before the epilogue's own. A `weight` of another layout is
        a ValueError.
        """
        self._refuse("linear_input_grad")

    def fused(self) -> FusedOperations:
        """Operations of language models; the default composes them of torch's and of `linear`."""
        return ComposedOperations(self)

    def embedding(self, indices: torch.Tensor, weight: PreparedWeight, dtype: torch.dtype) -> torch.Tensor:
        """The rows of W at `indices`, int64 or int32 ``[...]``, dequantized: ``[..., K]`` of `dtype`.

        See `bittensor.embedding`. An index out of 0..N-1 is a ValueError, and so is a `weight` of another layout.
        """
        self._refuse("embedding")

    def variant(self, name: str) -> Backend:
        """The same backend with its kernel path fixed to `name`, one of ``capabilities.variants``."""
        raise UnknownBackendError(f"backend {self.name!r} declares no variants, so there is no {name!r}")

    def describe(self) -> Mapping[str, str]:
        """Facts for ``bittensor info``: which kernels a call would use, and why. May be empty."""
        return {}

    def kernel_calls(self) -> Mapping[str, int]:
        """How often each kernel ran in this process, by name. Empty if the backend does not count.

        The conformance suite uses it to prove that a variant's own kernels ran, and no other's. A kernel of variant
        ``v`` has a name that ends in ``_v``.
        """
        return {}

    def _refuse(self, operation: str) -> NoReturn:
        raise UnsupportedOperationError(
            f"backend {self.name!r} does not declare the operation {operation!r}; it declares "
            f"{sorted(self.capabilities.operations)}"
        )
