"""Scales of input channels that protect the columns of a weight with large inputs: AWQ.

J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2024.
"""

from __future__ import annotations

import torch

from .gptq_rounding import output_error
from .quantize_config import QuantizeConfig
from .quantized_weight import QuantizedWeight

_STEPS = 20
"""Powers that are tried, from 0 to below 1."""


def scale_channels(
    weight: torch.Tensor, moments: torch.Tensor, magnitudes: torch.Tensor, config: QuantizeConfig
) -> tuple[QuantizedWeight, torch.Tensor | None]:
    """Quantize ``weight * s`` for the channel scales s with the least error of ``(x / s) @ (weight * s).T``.

    The scales are ``magnitudes ** alpha``, divided by the geometric mean of their extremes, for the best of 20 powers
    alpha from 0, which stands for no scales, so that the error is never above that of `bittensor.quantize`. Powers
    whose scaled weight is out of the range of its dtype, or of the scale dtype, are left out.

    Args:
        weight: finite float32, float16 or bfloat16 ``[N, K]``.
        moments: float64 ``[K, K]``, the mean of ``x^T x`` over the inputs x.
        magnitudes: float64 ``[K]``, the mean of ``abs(x)``.
        config: how; `activation_mode` has no meaning here.

    Returns:
        The quantized weight, and s, float32 ``[K]``; None for no scales.

    Raises:
        TypeError, ValueError: as `bittensor.quantize`.
    """
    values = weight.detach().to(torch.float32)
    best = config.quantize(weight)
    least, best_scales = output_error(best.dequantize() - values, moments).sum(), None
    floor = magnitudes[magnitudes > 0].min() if bool((magnitudes > 0).any()) else 1.0
    for step in range(1, _STEPS):
        scales = magnitudes.clamp(min=float(floor)) ** (step / _STEPS)
        scales = (scales / (scales.max() * scales.min()).sqrt()).to(torch.float32)
        try:
            quantized = config.quantize((values * scales).to(weight.dtype))
        except ValueError:  # out of range: nothing else is left to refuse, as the weight itself was not
            continue
        error = output_error(quantized.dequantize() / scales - values, moments).sum()
        if error < least:
            best, least, best_scales = quantized, error, scales
    return best, best_scales
