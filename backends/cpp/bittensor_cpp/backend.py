"""The adapter between BitTensor's backend protocol and the operators of `libbittensor_torch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.compiler import is_dynamo_compiling, is_exporting

from bittensor import PreparedWeight, QuantizedWeight
from bittensor.backend import OPERATIONS, PROTOCOL_VERSION, Backend, Capabilities
from bittensor.errors import UnsupportedOperationError
from bittensor.fused import FusedOperations
from bittensor.prepared_weight import ZERO_KINDS

from . import _native
from .fused import CppFusedOperations
from .operators import EPILOGUES, FLOAT_MODES

_Operator = Callable[..., torch.Tensor]
_pack: _Operator = torch.ops.bittensor_cpp.pack.default
_unpack: _Operator = torch.ops.bittensor_cpp.unpack.default
_packed_matmul: _Operator = torch.ops.bittensor_cpp.packed_matmul.default
_prepare: _Operator = torch.ops.bittensor_cpp.prepare.default
_restore: Callable[..., tuple[torch.Tensor, ...]] = torch.ops.bittensor_cpp.restore.default
_linear: _Operator = torch.ops.bittensor_cpp.linear.default
_linear_forward: _Operator = torch.ops.bittensor_cpp.linear_forward.default
_linear_input_grad: _Operator = torch.ops.bittensor_cpp.linear_input_grad.default
_embedding: _Operator = torch.ops.bittensor_cpp.embedding.default

# What torch's Python function behind an operator calls, without that function. Calls take 0.3 us less, a twelfth where
# the weight is small. torch.compile knows the operators only.
_packed_matmul_now: _Operator = torch.ops.bittensor_cpp.packed_matmul.default._op
_linear_forward_now: _Operator = torch.ops.bittensor_cpp.linear_forward.default._op

LAYOUT = "cpp/tiles-1"
"""Name of the layout of prepared weights: a header, then tiles of 16 rows that every instruction set reads."""

PROCESS_CHOICE = -1
"""The operators' `isa` argument that means: the best supported instruction set, capped by BITTENSOR_ISA."""


def include_directory() -> Path:
    """Folder of the C++ headers, for programs that use `libbittensor` without Python."""
    return Path(_native.__file__).with_name("include")


class CppBackend(Backend):
    """Kernels in C++. Its variants are the instruction sets that this machine can run.

    Raises:
        ValueError: BITTENSOR_ISA names an instruction set that is unknown or not supported here.
    """

    protocol_version = PROTOCOL_VERSION

    def __init__(self, isa: str | None = None) -> None:
        if isa is None:
            self.name = "cpp"
            self._isa = PROCESS_CHOICE
            self._isa_name, self._isa_reason = _native.choose_isa()
            variants = tuple(_native.supported_isas())
        else:
            self.name = f"cpp:{isa}"
            self._isa = _native.known_isas().index(isa)
            self._isa_name, self._isa_reason = isa, f"variant {isa!r} of the backend was asked for"
            variants = ()
        self._fused = CppFusedOperations(self._isa)
        self.capabilities = Capabilities(
            operations=frozenset(OPERATIONS),
            variants=variants,
            checks_arguments=True,
            operators=True,
            epilogues=frozenset(EPILOGUES),
            layout=LAYOUT,
        )

    def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        return _pack(codes, bits, self._isa)

    def unpack(self, words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
        return _unpack(words, columns, bits, self._isa)

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
        if out_dtype is not None and out_dtype is not torch.int32:
            raise TypeError(f"out_dtype: expected None or torch.int32, got {out_dtype}")
        # torch takes about 0.1 us to convert each argument, so those that hold their default are left out.
        if (
            scale is None
            and out_dtype is None
            and self._isa == PROCESS_CHOICE
            and not (x_zero or weight_zero or out_zero)
        ):
            multiply = _packed_matmul if is_dynamo_compiling() else _packed_matmul_now
            if bits == 4 and in_features is None:
                return multiply(x, weight, bias)
            return multiply(x, weight, bias, bits, in_features)
        sums = out_dtype is torch.int32
        return _packed_matmul(x, weight, bias, bits, in_features, x_zero, weight_zero, scale, out_zero, sums, self._isa)

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        form, tensors = weight.form, weight.tensors()
        blob = _prepare(
            tensors["words"],
            tensors["scales"],
            tensors.get("zeros"),
            tensors.get("offsets"),
            form.shape[1],
            form.bits,
            form.group_size,
            self._isa,
        )
        return PreparedWeight(form, LAYOUT, (blob,))

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        _check_layout(weight)
        form = weight.form
        words, scales, zeros, offsets = _restore(
            weight.tensors[0],
            *form.shape,
            form.bits,
            form.group_size,
            ZERO_KINDS.index(form.zero),
            form.scale_dtype,
            self._isa,
        )
        return QuantizedWeight(
            words,
            scales,
            zeros if form.zero == "integer" else None,
            offsets if form.zero == "float" else None,
            shape=form.shape,
            group_size=form.group_size,
            bits=form.bits,
        )

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        if weight.layout != LAYOUT:
            _check_layout(weight)
        try:
            differentiated = (x.requires_grad or (bias is not None and bias.requires_grad)) and torch.is_grad_enabled()
        except AttributeError:  # no tensor: the operator refuses it
            differentiated = False
        forward = _linear_forward if is_dynamo_compiling() else _linear_forward_now
        # An exported program is traced without gradients and may be called for them.
        compute = _linear if differentiated or is_exporting() else forward
        if epilogue is None and activation_mode == "int8" and self._isa == PROCESS_CHOICE:
            if bias is None:
                return compute(x, weight.tensors[0], weight.form.shape[0])
            return compute(x, weight.tensors[0], weight.form.shape[0], bias)
        try:
            float_mode, activation = FLOAT_MODES[activation_mode], EPILOGUES[epilogue]
        except KeyError as error:
            raise UnsupportedOperationError(f"backend {self.name!r} does not declare {error} for linear") from None
        return compute(x, weight.tensors[0], weight.form.shape[0], bias, float_mode, activation, self._isa)

    def linear_input_grad(self, dy: torch.Tensor, weight: PreparedWeight) -> torch.Tensor:
        _check_layout(weight)
        return _linear_input_grad(dy, weight.tensors[0], weight.form.shape[1], self._isa)

    def fused(self) -> FusedOperations:
        return self._fused

    def embedding(self, indices: torch.Tensor, weight: PreparedWeight, dtype: torch.dtype) -> torch.Tensor:
        _check_layout(weight)
        return _embedding(indices, weight.tensors[0], weight.form.shape[1], dtype, self._isa)

    def variant(self, name: str) -> Backend:
        return CppBackend(name)

    def describe(self) -> Mapping[str, str]:
        kinds = {kernel["kind"]: None for kernel in _native.kernel_table() if kernel["isa"] == self._isa_name}
        present = [name for name, has in _native.cpu_features().items() if has]
        return {
            "isa": self._isa_name,
            "isa reason": self._isa_reason,
            "isas supported": ", ".join(_native.supported_isas()),
            "cpu features": ", ".join(present),
            "kernels": ", ".join(f"{kind}_*_{self._isa_name}" for kind in kinds),
            "threads": f"{torch.get_num_threads()} (torch's)",
        }

    def kernel_calls(self) -> Mapping[str, int]:
        return {kernel["name"]: kernel["calls"] for kernel in _native.kernel_table()}


def _check_layout(weight: PreparedWeight) -> None:
    if weight.layout != LAYOUT:
        raise ValueError(
            f"weight: expected the layout {LAYOUT!r} of the C++ backend, got {weight.layout!r}; restore it by the "
            "backend that prepared it, and prepare it again"
        )
