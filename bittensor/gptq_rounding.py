"""Rounding that makes up for its own error, column by column: GPTQ.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2023.
"""

from __future__ import annotations

import torch

from .codes import max_code
from .quantization import fit_groups
from .quantize_config import QuantizeConfig
from .quantized_weight import QuantizedWeight
from .weight_checks import check_group_size

_BLOCK = 128
"""Columns whose error is carried on at once to those after them."""


def output_error(difference: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each output for an error of the weight: float64 ``[N]``.

    Args:
        difference: the error ``[N, K]``.
        moments: float64 ``[K, K]``, the mean of ``x^T x`` over the inputs x.

    >>> output_error(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    tensor([17.], dtype=torch.float64)
    """
    difference = difference.to(moments.dtype)
    return ((difference @ moments) * difference).sum(dim=1)


def round_with_moments(
    weight: torch.Tensor,
    moments: torch.Tensor,
    config: QuantizeConfig,
    *,
    damping: float = 0.01,
    act_order: bool = False,
) -> QuantizedWeight:
    """Quantize a weight so that its product with inputs of these moments changes little.

    With H the damped moments and U the upper Cholesky factor of the inverse of H, columns are rounded one after the
    other; the error e of column j moves those after it by ``-e / U[j, j] * U[j, j+1:]``, the least-squares answer of
    the columns that are still free. The grid of a group is chosen, as ``config.method`` says, when its first column
    comes, from the weights as they are by then.

    The result is kept for those rows whose error on the moments it makes smaller than rounding to the grid of
    `bittensor.quantize` alone does, so that it is never larger than that.

    Args:
        weight: finite float32, float16 or bfloat16 ``[N, K]``.
        moments: float64 ``[K, K]``, the mean of ``x^T x`` over the inputs x.
        config: how; `activation_mode` has no meaning here.
        damping: this part of the mean of the diagonal is added to the diagonal.
        act_order: round columns with large inputs first. All grids are then those of the weight as it was, so that
            groups stay runs of columns.

    Raises:
        TypeError, ValueError: as `bittensor.quantize`, or the damped moments cannot be inverted in float64.
    """
    plain = config.quantize(weight)
    size = check_group_size(config.group_size, weight.shape[1])
    values = weight.detach().to(torch.float32)
    codes, grids = _round(values, moments, config, plain.scales.dtype, size, damping, act_order)
    kept = output_error(_values_of(codes, grids, size) - values, moments)
    better = kept < output_error(plain.dequantize() - values, moments)
    zeros = torch.where(better[:, None], grids[1].to(torch.uint8), plain.zeros) if plain.zeros is not None else None
    offsets = None
    if plain.offsets is not None:
        offsets = torch.where(better[:, None], grids[2].to(plain.scales.dtype), plain.offsets)
    return QuantizedWeight.from_codes(
        torch.where(better[:, None], codes.to(torch.uint8), plain.codes()),
        torch.where(better[:, None], grids[0].to(plain.scales.dtype), plain.scales),
        zeros,
        offsets,
        group_size=size,
        bits=config.bits,
    )


def _round(
    weight: torch.Tensor,
    moments: torch.Tensor,
    config: QuantizeConfig,
    dtype: torch.dtype,
    size: int,
    damping: float,
    act_order: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Codes ``[N, K]``, and scales, zero points and offsets ``[N, G]``, all float32."""
    rows, columns = weight.shape
    groups = -(-columns // size)
    order = moments.diagonal().argsort(descending=True) if act_order else torch.arange(columns, device=weight.device)
    factor = _inverse_factor(moments[order][:, order], damping)
    left = weight[:, order].clone()
    grids = tuple(weight.new_zeros(rows, groups, dtype=torch.float32) for _ in range(3))

    def fit(group: int, values: torch.Tensor) -> None:
        _, *parts = fit_groups(values, values.shape[1], config.bits, config.zero, config.method, dtype)
        for grid, part in zip(grids, parts, strict=True):
            grid[:, group] = part[:, 0].to(torch.float32)
        if config.zero == "symmetric":
            grids[1][:, group] = 1 << (config.bits - 1)

    if act_order:
        for group in range(groups):
            fit(group, weight[:, group * size : (group + 1) * size])
    codes = torch.zeros_like(weight)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = weight.new_zeros(rows, end - start, dtype=torch.float32)
        for index in range(start, end):
            column = int(order[index])
            group = column // size
            if not act_order and column % size == 0:
                stop = min(column + size, columns)
                ahead = left[:, column:stop].clone()
                if stop > end:  # what this block has not carried on yet
                    ahead[:, end - column :] -= errors @ factor[start:end, end:stop]
                fit(group, ahead)
            scale, zero, offset = (grid[:, group] for grid in grids)
            value = left[:, index]
            steps = torch.where(scale == 0, 0.0, (value - offset) / torch.where(scale == 0, 1.0, scale))
            code = (steps.round() + zero).clamp(0, max_code(config.bits))
            codes[:, column] = code
            errors[:, index - start] = (value - (scale * (code - zero) + offset)) / factor[index, index]
            left[:, index + 1 : end] -= errors[:, index - start, None] * factor[index, index + 1 : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return codes, grids


def _inverse_factor(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """U, upper triangular float32 ``[K, K]``, with ``U^T U`` the inverse of the damped moments.

    Raises:
        ValueError: they are not positive definite in float64.
    """
    damped = moments.clone()
    unused = damped.diagonal() == 0
    damped.diagonal()[unused] = 1
    damped.diagonal().add_(damping * damped.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not bool(failed):
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if bool(failed):
        raise ValueError(
            f"damping: expected enough to make the moments of the inputs positive definite, got {damping}, which does "
            "not; give a larger one, such as 0.01, or inputs with more rows"
        )
    factor: torch.Tensor = upper.to(torch.float32)
    return factor


def _values_of(codes: torch.Tensor, grids: tuple[torch.Tensor, ...], size: int) -> torch.Tensor:
    group = torch.arange(codes.shape[1], device=codes.device) // size
    scale, zero, offset = (grid[:, group] for grid in grids)
    return scale * (codes - zero) + offset
