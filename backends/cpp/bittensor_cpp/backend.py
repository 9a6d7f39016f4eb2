"""The adapter between BitTensor's backend protocol and the operators of `libbittensor_torch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bittensor.backend import PROTOCOL_VERSION, Backend, Capabilities

from . import _native

torch.ops.load_library(Path(_native.__file__).with_name("libbittensor_torch.so"))  # type: ignore[no-untyped-call]

_Operator = Callable[..., torch.Tensor]
_pack: _Operator = torch.ops.bittensor_cpp.pack.default
_unpack: _Operator = torch.ops.bittensor_cpp.unpack.default
_packed_matmul: _Operator = torch.ops.bittensor_cpp.packed_matmul.default

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
        self.capabilities = Capabilities(variants=variants, checks_arguments=True)

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
            if bits == 4 and in_features is None:
                return _packed_matmul(x, weight, bias)
            return _packed_matmul(x, weight, bias, bits, in_features)
        sums = out_dtype is torch.int32
        return _packed_matmul(x, weight, bias, bits, in_features, x_zero, weight_zero, scale, out_zero, sums, self._isa)

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
