"""How to quantize the layers of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .checks import check_int
from .prepared_weight import ACTIVATION_MODES, GROUP_SIZE_MULTIPLE, ZERO_KINDS
from .quantization import METHODS, quantize
from .quantized_weight import QuantizedWeight
from .weight_checks import check_choice, check_group_bits, check_scale_dtype


@dataclass(frozen=True)
class QuantizeConfig:
    """The arguments of `bittensor.quantize`, and the mode in which layers compute.

    Attributes:
        bits, group_size, zero, method, scale_dtype: as in `bittensor.quantize`.
        activation_mode: "int8" or "float", as in `bittensor.linear`.

    Raises:
        TypeError, ValueError: a value that no layer could be quantized with.

    >>> QuantizeConfig(bits=8, group_size=64).quantize(torch.eye(64)).bits
    8
    """

    bits: int = 4
    group_size: int | None = 128
    zero: str = "symmetric"
    method: str = "rtn"
    scale_dtype: torch.dtype | None = None
    activation_mode: str = "int8"

    def __post_init__(self) -> None:
        check_group_bits(self.bits)
        if self.group_size is not None and check_int("group_size", self.group_size) < 1:
            raise ValueError(
                f"group_size: expected a multiple of {GROUP_SIZE_MULTIPLE}, or None for one group a row, got "
                f"{self.group_size}"
            )
        check_choice("zero", self.zero, ZERO_KINDS)
        check_choice("method", self.method, METHODS)
        if self.scale_dtype is not None:
            check_scale_dtype(self.scale_dtype)
        check_choice("activation_mode", self.activation_mode, ACTIVATION_MODES)

    def quantize(self, weight: torch.Tensor) -> QuantizedWeight:
        """`bittensor.quantize` with this configuration."""
        return quantize(weight, self.bits, self.group_size, self.zero, self.method, self.scale_dtype)
