"""The configuration of the method "bittensor" of transformers: what config.json says of packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoints import native
from ..checks import dtype_name
from ..prepared_weight import SCALE_DTYPES
from ..quantize_config import QuantizeConfig
from ..weight_checks import check_choice

_SCALE_DTYPES = {dtype_name(dtype): dtype for dtype in SCALE_DTYPES}


@register_quantization_config(native.METHOD)
class BitTensorConfig(QuantizationConfigMixin):
    """How `from_pretrained` quantizes the linear layers of a model, or how those of a saved one are quantized.

    Args:
        bits, group_size, zero, method, activation_mode: as in `bittensor.QuantizeConfig`.
        scale_dtype: as there, or its name: "float16", "bfloat16", "float32".
        modules_to_not_convert: names of modules, or ends of names, or regular expressions, as everywhere in
            transformers; None leaves out the output embeddings and modules with tied weights.
        version, weights: written by `save_pretrained`: the version of the format, and the form of each packed weight,
            by name (docs/checkpoints.md).

    Raises:
        TypeError, ValueError: a value that no layer could be quantized with, or another version.

    >>> BitTensorConfig(bits=4, group_size=64, method="hqq").layers
    QuantizeConfig(bits=4, group_size=64, zero='symmetric', method='hqq', scale_dtype=None, activation_mode='int8')
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int | None = 128,
        zero: str = "symmetric",
        method: str = "rtn",
        scale_dtype: torch.dtype | str | None = None,
        activation_mode: str = "int8",
        modules_to_not_convert: Sequence[str] | None = None,
        version: int = native.VERSION,
        weights: Mapping[str, Any] | None = None,
        quant_method: str = native.METHOD,
    ) -> None:
        if quant_method != native.METHOD:
            raise ValueError(f"quant_method: expected {native.METHOD!r}, got {quant_method!r}")
        if version != native.VERSION:
            raise ValueError(f"version: expected version {native.VERSION} of the format, got {version!r}")
        if isinstance(modules_to_not_convert, str):
            raise TypeError(f"modules_to_not_convert: expected a list of names, got {modules_to_not_convert!r}")
        self.quant_method = quant_method  # type: ignore[assignment]  # theirs is an enumeration of their own methods
        self.bits, self.group_size, self.zero, self.method = bits, group_size, zero, method
        self.scale_dtype = dtype_name(scale_dtype) if isinstance(scale_dtype, torch.dtype) else scale_dtype
        self.activation_mode = activation_mode
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.version = version
        self.weights = None if weights is None else dict(weights)
        _ = self.layers

    @property
    def layers(self) -> QuantizeConfig:
        """The same for `bittensor.quantize_`."""
        if self.scale_dtype is not None:
            check_choice("scale_dtype", self.scale_dtype, tuple(_SCALE_DTYPES))
        return QuantizeConfig(
            self.bits,
            self.group_size,
            self.zero,
            self.method,
            None if self.scale_dtype is None else _SCALE_DTYPES[self.scale_dtype],
            self.activation_mode,
        )
