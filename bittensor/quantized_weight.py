"""Group-quantized weights: packed codes with a scale, and a zero point or an offset, for each group of columns."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from .backend import Backend
from .checks import describe, dtype_name
from .held_weight import CanonicalTensors, HeldByBackend, Restored
from .packing import pack_codes, unpack_codes
from .prepared_weight import CANONICAL_LAYOUT, SCALE_DTYPES, PreparedWeight, WeightForm
from .registry import get_backend, name_of
from .tracing import outside_of_traces, outside_of_transforms, run_now
from .weight_checks import check_group_bits, check_row_numbers, check_weight, dtype_names

_converting = threading.RLock()
"""Held while a weight changes its layout. One for all weights: a conversion uses every thread by itself."""

# A fork waits for it: the child of a process that is converting could never take it.
os.register_at_fork(before=_converting.acquire, after_in_parent=_converting.release, after_in_child=_converting.release)


class QuantizedWeight:
    """A weight ``[N, K]`` as codes of 2, 4 or 8 bits (docs/numerics.md). `bittensor.quantize` makes one.

    Every row is cut into G = ceil(K / group_size) groups of columns, of which the last may be shorter. In row n and
    group g a code q stands for

    ========  ==================================  =============================
    zero      value                               given by
    ========  ==================================  =============================
    symmetric ``scale * (q - 2**(bits-1))``       neither `zeros` nor `offsets`
    integer   ``scale * (q - zeros[n, g])``       `zeros`
    float     ``scale * q + offsets[n, g]``       `offsets`
    ========  ==================================  =============================

    The tensors are kept as they come, without a copy, until `bittensor.linear` first uses the weight. It then holds
    them in the layout of the backend instead, and `words`, `scales`, `zeros` and `offsets` are restored when they are
    asked for, as new tensors unless earlier ones are still in use; `tensors` restores all at once. Do not write into
    them. Threads and modules may share a weight. Equality of two weights is `equal`.

    Args:
        words: int64 ``[N, ceil(K/E)]`` with E = 64 / bits, as `bittensor.pack_weights` makes it.
        scales: finite float16, bfloat16 or float32 ``[N, G]``; of any sign, or 0.
        zeros: uint8 codes ``[N, G]``, or None.
        offsets: finite ``[N, G]`` of the dtype of `scales`, or None.
        shape: (N, K), each at least 1.
        bits: 2, 4 or 8.
        group_size: columns of a group: a multiple of 8 up to K, or K itself; None means K, one group for a row.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit together, a scale or an offset that is not finite, a zero
            point that is not a code, or `zeros` and `offsets` at once.

    >>> import torch
    >>> codes = torch.tensor([[8, 9, 0, 15]], dtype=torch.uint8)
    >>> weight = QuantizedWeight.from_codes(codes, scales=torch.tensor([[0.5]]), group_size=None)
    >>> weight
    QuantizedWeight(shape=[1, 4], bits=4, group_size=4, zero='symmetric', scales=float32, 12 bytes, 24 bits per weight)
    >>> weight.dequantize()
    tensor([[ 0.0000,  0.5000, -4.0000,  3.5000]])
    """

    def __init__(
        self,
        words: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        *,
        shape: tuple[int, int],
        group_size: int | None,
        bits: int = 4,
    ) -> None:
        self.form = check_weight(words, scales, zeros, offsets, shape, group_size, bits)
        self._held: CanonicalTensors | HeldByBackend = CanonicalTensors(words, scales, zeros, offsets)
        self._restored: Restored | None = None

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        *,
        group_size: int | None,
        bits: int = 4,
    ) -> QuantizedWeight:
        """Pack uint8 codes ``[N, K]``; the other arguments are those of the class.

        >>> import torch
        >>> codes = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
        >>> scales, zeros = torch.tensor([[0.5], [2.0]]), torch.tensor([[0], [1]], dtype=torch.uint8)
        >>> QuantizedWeight.from_codes(codes, scales, zeros, group_size=None, bits=2).dequantize()
        tensor([[0.0000, 1.5000],
                [0.0000, 2.0000]])
        """
        if isinstance(codes, torch.Tensor) and codes.dim() != 2:
            raise ValueError(f"codes: expected uint8 [N, K], got {describe(codes)}")
        words = pack_codes(codes, check_group_bits(bits))
        shape = (codes.shape[0], codes.shape[1])
        return cls(words, scales, zeros, offsets, shape=shape, group_size=group_size, bits=bits)

    @classmethod
    def from_canonical(cls, weight: PreparedWeight) -> QuantizedWeight:
        """The weight of the layout "canonical", without a copy; undoes `canonical`."""
        if weight.layout != CANONICAL_LAYOUT:
            raise ValueError(f"weight: expected the layout {CANONICAL_LAYOUT!r}, got {weight.layout!r}")
        form = weight.form
        words, scales, *rest = weight.tensors
        zeros = rest[0] if form.zero == "integer" else None
        offsets = rest[0] if form.zero == "float" else None
        return cls(words, scales, zeros, offsets, shape=form.shape, group_size=form.group_size, bits=form.bits)

    def canonical(self) -> PreparedWeight:
        """The weight in the layout "canonical": words, scales, and zeros or offsets if there are any."""
        return PreparedWeight(self.form, CANONICAL_LAYOUT, self._canonical().tensors)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs, inputs."""
        return self.form.shape

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.form.bits

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.form.group_size

    @property
    def zero(self) -> str:
        """Kind of zero: "symmetric", "integer" or "float", as in `bittensor.quantize`."""
        return self.form.zero

    @property
    def words(self) -> torch.Tensor:
        """Packed codes: int64 ``[N, ceil(K/E)]``."""
        return self._canonical().words

    @property
    def scales(self) -> torch.Tensor:
        """Scales ``[N, G]``."""
        return self._canonical().scales

    @property
    def zeros(self) -> torch.Tensor | None:
        """Zero points: uint8 codes ``[N, G]``, or None."""
        return self._canonical().zeros

    @property
    def offsets(self) -> torch.Tensor | None:
        """Offsets ``[N, G]`` of the dtype of the scales, or None."""
        return self._canonical().offsets

    def tensors(self) -> dict[str, torch.Tensor]:
        """Words and scales, and zeros or offsets, by name: everything but the form."""
        return self._canonical().named()

    @property
    def dtype(self) -> torch.dtype:
        """That of the scales: of the floats that the weight was made of, unless another was chosen."""
        return self.form.scale_dtype

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        """Refuse functions of torch, which take tensors: models call them that multiply by the weight of a layer.

        Raises:
            TypeError: always.
        """
        raise _no_tensor(getattr(function, "__name__", str(function)))

    def __matmul__(self, other: object) -> Any:
        raise _no_tensor("@")

    __rmatmul__ = __matmul__  # torch makes "not implemented" of a TypeError

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self._held.tensors[0].device

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The weight on another device; itself if it lies there already."""
        if torch.device(device) == self.device:
            return self
        return self.convert(lambda tensor: tensor.to(device))

    def convert(self, function: Callable[[torch.Tensor], torch.Tensor]) -> QuantizedWeight:
        """The weight with `function` applied to each canonical tensor, which must keep its values."""
        return self._holding(self._canonical().convert(function))

    @property
    def nbytes(self) -> int:
        """Bytes of words, scales, zeros and offsets: what is saved."""
        return self.form.nbytes

    @property
    def held_nbytes(self) -> int:
        """Bytes in memory now: `nbytes`, or those of the layout of the backend that used the weight last."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._held.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales, zero points, offsets and unused bits of words included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def codes(self) -> torch.Tensor:
        """The unpacked codes: uint8 ``[N, K]``."""
        return self._codes(self._canonical())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values that the codes stand for: ``[N, K]`` of `dtype`: float32, float16 or bfloat16.

        Computed in float32: the difference of codes is exact, the product is rounded, then the sum with the offset,
        then the cast to `dtype`.
        """
        if dtype not in SCALE_DTYPES:
            raise TypeError(f"dtype: expected {dtype_names(SCALE_DTYPES)}, got {dtype}")
        canonical = self._canonical()
        return canonical.dequantize(self.form, self._codes(canonical)).to(dtype)

    def rows(self, indices: torch.Tensor) -> QuantizedWeight:
        """The weight of the rows with these numbers, int64 or int32 ``[R]``, in this order; R at least 1.

        Raises:
            TypeError: `indices` of another type or dtype.
            ValueError: a number that is not of a row, or none.

        >>> import torch, bittensor
        >>> weight = bittensor.quantize(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), bits=8, group_size=None)
        >>> weight.rows(torch.tensor([1, 0, 1])).dequantize().round()
        tensor([[3., 4.],
                [1., 2.],
                [3., 4.]])
        """
        check_row_numbers(indices, self.shape[0])
        tensors = {name: tensor[indices] for name, tensor in self.tensors().items()}
        shape = (len(indices), self.shape[1])
        return QuantizedWeight(**tensors, shape=shape, group_size=self.group_size, bits=self.bits)

    def assign(self, other: QuantizedWeight) -> None:
        """Take over the data of `other`, of the same form: every module that shares this weight has it then.

        Raises:
            ValueError: `other` has another form.
        """
        if other.form != self.form:
            raise ValueError(f"other: expected a weight of {self.form}, got {other.form}")
        with _converting:
            self._held, self._restored = other._held, None

    def equal(self, other: QuantizedWeight) -> bool:
        """Whether both hold the same codes, scales, zero points and offsets in the same form.

        The unused bits of words do not count.

        >>> import torch, bittensor
        >>> weight = bittensor.quantize(torch.eye(8), group_size=8)
        >>> weight.equal(bittensor.quantize(torch.eye(8), group_size=8)), weight.equal(weight.words)
        (True, False)
        """
        if not isinstance(other, QuantizedWeight):
            return False
        if self.form != other.form:
            return False
        mine, theirs = self._canonical(), other._canonical()
        pairs = [(self._codes(mine), other._codes(theirs)), *zip(mine.tensors[1:], theirs.tensors[1:], strict=True)]
        return all(torch.equal(one, another) for one, another in pairs)

    def prepared_for(self, backend: Backend) -> PreparedWeight:
        """The weight in the layout of `backend`. From then on it is held in that layout only.

        Raises:
            UnsupportedOperationError: the backend does not declare the operation "prepare".
        """
        held = self._held
        if type(held) is HeldByBackend and (
            held.backend is backend or held.weight.layout == backend.capabilities.layout
        ):
            return held.weight
        if torch.compiler.is_dynamo_compiling():
            run_now(_prepare, self, backend)
        # Of inference mode too: what it makes can be used by no gradient, and the weight stays in this layout.
        with _converting, outside_of_traces(), torch.inference_mode(False):
            held = self._held
            if type(held) is not HeldByBackend or held.weight.layout != backend.capabilities.layout:
                self._held = held = HeldByBackend(backend.prepare(self), backend)
        return held.weight

    def __repr__(self) -> str:
        return (
            f"QuantizedWeight(shape={list(self.shape)}, bits={self.bits}, group_size={self.group_size}, "
            f"zero={self.zero!r}, scales={dtype_name(self.form.scale_dtype)}, {_size(self.nbytes)}, "
            f"{self.bits_per_weight:.4g} bits per weight)"
        )

    def __copy__(self) -> QuantizedWeight:
        return self._holding(self._held)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedWeight:
        return self._holding(self._held.convert(lambda tensor: copy.deepcopy(tensor, memo)))

    def _holding(self, held: CanonicalTensors | HeldByBackend) -> QuantizedWeight:
        twin = object.__new__(QuantizedWeight)
        twin.form, twin._held, twin._restored = self.form, held, None
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"form": self.form, **self.tensors()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        form = state.pop("form")
        self.__init__(**state, shape=form.shape, group_size=form.group_size, bits=form.bits)  # type: ignore[misc]

    def _canonical(self) -> CanonicalTensors:
        held = self._held
        if isinstance(held, CanonicalTensors):
            return held
        restored = self._restored
        canonical = None if restored is None else restored.of(held)
        if canonical is None:
            with outside_of_transforms(), torch.inference_mode(False):
                new = held.backend.restore(held.weight)._held
            assert isinstance(new, CanonicalTensors)  # what a new weight holds
            canonical, self._restored = new, Restored(held, new)
        return canonical

    def _codes(self, canonical: CanonicalTensors) -> torch.Tensor:
        return unpack_codes(canonical.words, self.shape[1], self.bits)


# Data only, whose tensors are checked again: torch.load(weights_only=True) may restore them.
torch.serialization.add_safe_globals([QuantizedWeight, WeightForm])


def _send(weight: QuantizedWeight) -> tuple[Any, ...]:
    """How a weight gets to another process: in the layout that it is held in, as memory that both share.

    Restored tensors would have to live until the other process has received them.
    """
    held = weight._held
    if isinstance(held, HeldByBackend):
        return _receive, (held.weight, name_of(held.backend))
    reduced: tuple[Any, ...] = weight.__reduce_ex__(2)  # type: ignore[assignment]
    return reduced


def _receive(prepared: PreparedWeight, backend: str) -> QuantizedWeight:
    weight = object.__new__(QuantizedWeight)
    weight.form, weight._held, weight._restored = prepared.form, HeldByBackend(prepared, get_backend(backend)), None
    return weight


ForkingPickler.register(QuantizedWeight, _send)


def _prepare(weight: QuantizedWeight, backend: Backend) -> None:
    weight.prepared_for(backend)


def _no_tensor(function: str) -> TypeError:
    return TypeError(
        f"{function}: expected tensors, got a QuantizedWeight, which is packed: multiply by bittensor.linear, take "
        "dequantize(), or leave a layer whose weight is used by itself as it is (filter_fn, modules_to_not_convert)"
    )


def _size(nbytes: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes} bytes"
