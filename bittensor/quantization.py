"""Quantization of weights without calibration data: round to nearest, least squares, half-quadratic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .checks import describe, dtype_name
from .codes import max_code, words_per_row
from .grids import FloatBlock, Grid, GroupBlock, IntegerBlock, SymmetricBlock
from .packing import pack_codes
from .prepared_weight import SCALE_DTYPES, WeightForm
from .quantized_weight import QuantizedWeight
from .weight_checks import check_choice, check_group_bits, check_group_size, check_scale_dtype

_BLOCK_ELEMENTS = 1 << 18
"""Weights fitted at once: a few arrays of float32 of this length stay in the caches."""

_UNSHIFTED = 16, (0.0,)
_SHIFTED = 10, (0.0, 1 / 3, -1 / 3)
"""How many fractions of a group's range are tried, from the whole down to `_SMALLEST_FRACTION`, and the steps by which
each is shifted. Kinds whose ends are free have every phase of a grid, to a sixth of a step."""

_SMALLEST_FRACTION = {2: 0.1, 4: 0.3, 8: 0.6}
"""By bits: fewer codes gain more from clipping. Heavy tails over a row of thousands come close to it."""

_END_FACTORS = (0.8, 0.8, 1.25, 0.9, 1.1, 1.04, 0.96, 1.02, 0.98)
"""Factors that move an end of the best range: first far, then within the distance of two fractions."""

_REFITS = 3

_POWER = 1.5
_BETA = 2.0
_BETA_GROWTH = 1.5
_TURNS = 3

Search = Callable[[GroupBlock], Grid]
"""A method: the grid that it lays over each group of a block."""

Loss = Callable[[GroupBlock, Grid], torch.Tensor]
"""Error of a grid over each group of a block: ``[R, 1]``."""


def quantize(
    weight: torch.Tensor,
    bits: int = 4,
    group_size: int | None = 128,
    zero: str = "symmetric",
    method: str = "rtn",
    scale_dtype: torch.dtype | None = None,
) -> QuantizedWeight:
    """Quantize a weight in groups of columns, from its values alone.

    Codes are nearest to the weights on the grid that dequantization will use: the one of the scale and the offset
    after their rounding to `scale_dtype`. An all-zero group has scale 0 and is exact, as is a constant group of any
    kind whose constant is a number of `scale_dtype` (above its subnormal range). The error of a weight that is not
    clipped is at most half a step, ``abs(scale) / 2``; with "rtn", "integer" and "float" clip no weight by more.

    Methods:
        "rtn": round to nearest on the grid that spans the group. "integer" and "float" span minimum to maximum, the
            former stretched to hold 0. "symmetric" puts the value of largest magnitude, with its sign, on either end
            of -2**(bits-1) to 2**(bits-1) - 1, whichever has the smaller squared error, so that a scale may be
            negative; a value of the other sign may be clipped by up to one step, before the scale is rounded to
            `scale_dtype`. The one step of a constant is the constant.
        "mse": the smallest squared error of a search over grids that span a fraction of the group, refined by
            alternating codes and least squares. Its error is never above that of "rtn".
        "hqq": half-quadratic quantization: minimizes the sum of ``abs(error) ** 1.5``, which forgives outliers more
            than the square does. That sum, not the squared error, is never above that of "rtn".

    Args:
        weight: finite float32, float16 or bfloat16 ``[N, K]`` on the CPU; N, K at least 1, any strides. Detached. Of
            a weight on meta the result lies there too, and has no values.
        bits: 2, 4 or 8.
        group_size: columns that share a scale: a multiple of 8 up to K, or K. None is K: one group for a row. The
            last group of a row may be shorter. A size above K is an error, also the default: a narrow layer takes
            None.
        zero: "symmetric" ``scale * (q - 2**(bits-1))``, "integer" ``scale * (q - zeros)``, or "float"
            ``scale * q + offsets``.
        method: "rtn", "mse" or "hqq".
        scale_dtype: torch.float16, torch.bfloat16 or torch.float32; None means the dtype of `weight`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a weight that is not finite (the message names the first index), a group whose scale or offset
            `scale_dtype` cannot hold, or arguments out of range.

    >>> import torch, bittensor
    >>> weight = torch.tensor([[0.5, -1.0, 0.25, 0.0], [3.0, 3.0, 3.0, 3.0]])
    >>> quantized = bittensor.quantize(weight, group_size=None)
    >>> quantized
    QuantizedWeight(shape=[2, 4], bits=4, group_size=4, zero='symmetric', scales=float32, 24 bytes, 24 bits per weight)
    >>> quantized.dequantize()
    tensor([[ 0.5000, -1.0000,  0.2500,  0.0000],
            [ 3.0000,  3.0000,  3.0000,  3.0000]])
    >>> large = torch.randn(256, 1024)
    >>> bittensor.quantize(large, zero="integer", method="mse", scale_dtype=torch.float16)
    QuantizedWeight(shape=[256, 1024], bits=4, group_size=128, zero='integer', scales=float16, 137 kB,
    4.188 bits per weight)
    """
    rows, columns = _check_weight(weight)
    bits = check_group_bits(bits)
    group_size = check_group_size(group_size, columns)
    check_choice("zero", zero, tuple(_BLOCKS))
    check_choice("method", method, METHODS)
    dtype = weight.dtype if scale_dtype is None else scale_dtype
    check_scale_dtype(dtype)

    if weight.is_meta:
        return empty_weight(WeightForm((rows, columns), bits, group_size, zero, dtype))

    def fit(values: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
        return fit_groups(values, width, bits, zero, method, dtype)

    whole = columns - columns % group_size
    blocks = []
    step = max(1, _BLOCK_ELEMENTS // columns)
    with torch.no_grad():
        for start in range(0, rows, step):
            values = weight.detach()[start : start + step].to(torch.float32)
            _check_finite_weights(values, start)
            parts = [fit(values[:, :whole], group_size)]
            if whole < columns:
                parts.append(fit(values[:, whole:], columns - whole))
            codes, *parameters = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
            _check_representable(parameters[0], parameters[2], bits, start)
            blocks.append((pack_codes(codes, bits), *parameters))
        words, scales, zeros, offsets = (torch.cat(tensors) for tensors in zip(*blocks, strict=True))
    return QuantizedWeight(
        words,
        scales,
        zeros if zero == "integer" else None,
        offsets if zero == "float" else None,
        shape=(rows, columns),
        group_size=group_size,
        bits=bits,
    )


def empty_weight(form: WeightForm) -> QuantizedWeight:
    """A weight of `form` on the meta device, to be loaded into."""

    def empty(columns: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(form.shape[0], columns, dtype=dtype, device="meta")

    return QuantizedWeight(
        empty(words_per_row(form.shape[1], form.bits), torch.int64),
        empty(form.groups, form.scale_dtype),
        empty(form.groups, torch.uint8) if form.zero == "integer" else None,
        empty(form.groups, form.scale_dtype) if form.zero == "float" else None,
        shape=form.shape,
        group_size=form.group_size,
        bits=form.bits,
    )


def fit_groups(
    values: torch.Tensor, width: int, bits: int, zero: str, method: str, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Codes, of the shape of `values` ``[rows, columns]``, then scales, zero points and offsets ``[rows, groups]``.

    `values` are finite float32, their columns groups of `width`; the other arguments are those of `quantize`.
    """
    block = _BLOCKS[zero](_groups(values, width), bits, dtype)
    grid = _SEARCHES[method](block)
    rows, columns = values.shape
    scales = (grid.scale * block.unit).to(block.dtype)
    zeros = torch.zeros_like(scales, dtype=torch.uint8) if grid.zero is None else grid.zero.to(torch.uint8)
    offsets = torch.zeros_like(scales) if grid.offset is None else (grid.offset * block.unit).to(block.dtype)
    codes = block.codes(grid).to(torch.uint8)
    count = rows * columns // codes.shape[1]  # without the copy of a lone group
    return (codes[:count].reshape(values.shape), *(each[:count].reshape(rows, -1) for each in (scales, zeros, offsets)))


def _groups(values: torch.Tensor, width: int) -> torch.Tensor:
    """A copy of `values` as groups ``[R, width]``, R at least 2.

    A lone group is doubled: torch splits the sum over a single row among threads, and the sum of several rows row by
    row, so that only the latter is the same whatever their number.
    """
    groups = values.reshape(-1, width)
    return groups.repeat(2, 1) if len(groups) == 1 else groups.clone(memory_format=torch.contiguous_format)


def _round_to_nearest(block: GroupBlock) -> Grid:
    return Choice(block, _squared_error).grid


def _least_squares(block: GroupBlock) -> Grid:
    choice = Choice(block, _squared_error)
    choice.search_ranges()
    grid = choice.grid
    for _ in range(_REFITS):
        codes, _ = block.residual(grid)
        grid = block.refit(codes, block.values)
        choice.offer(grid)
    return choice.grid


def _half_quadratic(block: GroupBlock) -> Grid:
    """Half-quadratic quantization: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models",
    2023 (Mobius Labs), there for the zero point alone of a float kind, from the grid of "rtn" on.

    With D the dequantization by the parameters t of the grid, minimize ``sum |w - D_t(q)|**p`` by splitting off the
    error e (half-quadratic splitting: D. Geman and C. Yang, 1995)::

        min over e, t of  sum |e|**p + beta/2 * (e - (w - D_t(q)))**2

    in turns:

    - q: the nearest codes for t;
    - e: the minimum for the residual r = w - D_t(q), which for p = 3/2 is
      ``sign(r) * ((sqrt(9/4 + 4 * beta**2 * |r|) - 3/2) / (2 * beta))**2``: all of a large residual, little of a small;
    - t: least squares of D_t(q) on w - e. For s = scale, k = q - zero and y = w - e: symmetric
      ``s = <k, y> / <k, k>``; float, the line through (q, y); integer, that line, its zero point rounded to a code,
      and then the scale as for symmetric.

    beta grows each turn. Residuals are measured in steps of the scale, where the authors take those of the weights as
    they are, so that the result does not depend on the unit of the weights.

    Two things differ. The sum has many local minima, since codes change by leaps, and turns from the grid of "rtn" end
    in a near one: here they start from the best of grids over many ranges, each in three phases. And the authors have
    p = 0.7. docs/embedding_model.md shows what the power does: the better a sum with p below 1 is minimized, the more
    it clips, and the less of the model is left.
    """
    choice = Choice(block, _power_error)
    choice.search_ranges()
    grid, beta = choice.grid, _BETA
    for _ in range(_TURNS):
        codes, residual = block.residual(grid)
        error = residual.abs().mul_(4 * beta * beta).add_(_POWER * _POWER).sqrt_().sub_(_POWER).div_(2 * beta)
        error.square_().copysign_(residual)
        grid = block.refit(codes, block.values - error.mul_(grid.scale))
        choice.offer(grid)
        beta *= _BETA_GROWTH
    return choice.grid


class Choice:
    """The best grid so far for each group of a block, from the grids that span the group on."""

    def __init__(self, block: GroupBlock, loss: Loss) -> None:
        self.block = block
        self.loss = loss
        self.grid, *others = block.full_range()
        self.least = loss(block, self.grid)
        for grid in others:
            self.offer(grid)

    def offer(self, grid: Grid) -> torch.Tensor:
        """Take `grid` for the groups where its loss is less; returns where: ``[R, 1]``.

        A scale of 0 is never taken: positions on the grid, and so the loss, have no meaning there. The grid that
        spans a group has it where all values are alike, and then it is exact.
        """
        loss = self.loss(self.block, grid)
        better = (loss < self.least) & (grid.scale != 0) & self.block.holds(grid)
        self.grid = grid.where(better, self.grid)
        self.least = torch.where(better, loss, self.least)
        return better

    def search_ranges(self) -> None:
        """Offer grids that span parts of each group."""
        low, high = self.try_ranges(*(_SHIFTED if self.block.ends_are_free else _UNSHIFTED))
        self.move_ends(low, high)

    def try_ranges(self, count: int, shifts: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Offer grids that span `count` fractions of each group, each of them shifted by some steps.

        Returns the fractions below and above the center that were best: ``[R, 1]`` each.
        """
        low = high = torch.ones_like(self.least)
        smallest = _SMALLEST_FRACTION[self.block.bits]
        for index in range(count):
            fraction = 1 - (1 - smallest) * index / (count - 1)
            for shift in shifts:
                if index == 0 and shift == 0:
                    continue  # the grid that spans the group
                tilt = 2 * fraction * shift / max_code(self.block.bits)  # a fraction is of half the range, or about so
                below, above = torch.full_like(low, fraction + tilt), torch.full_like(low, fraction - tilt)
                better = self.offer(self.block.shrunk(below, above))
                low, high = torch.where(better, below, low), torch.where(better, above, high)
        return low, high

    def move_ends(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Offer grids whose ends are moved by each factor, first the lower one, then the upper; both, if not free."""
        for factor in _END_FACTORS:
            low = torch.where(self.offer(self.block.shrunk(low * factor, high)), low * factor, low)
            if self.block.ends_are_free:
                high = torch.where(self.offer(self.block.shrunk(low, high * factor)), high * factor, high)


def _squared_error(block: GroupBlock, grid: Grid) -> torch.Tensor:
    _, residual = block.residual(grid)
    # Multiplied one by one: the square of a scale may overflow where the product does not.
    return residual.square_().sum(dim=1, keepdim=True) * grid.scale * grid.scale


def _power_error(block: GroupBlock, grid: Grid) -> torch.Tensor:
    _, residual = block.residual(grid)
    residual.abs_()
    return (residual.sqrt() * residual).sum(dim=1, keepdim=True) * grid.scale.abs() ** _POWER


def _check_weight(weight: object) -> tuple[int, int]:
    expected = "weight: expected float32, float16 or bfloat16 [N, K]"
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{expected}, got {type(weight).__name__}")
    if weight.layout is not torch.strided:
        raise TypeError(f"{expected} of strided layout, got {weight.layout}")
    if weight.dtype not in SCALE_DTYPES:
        raise TypeError(f"{expected}, got {describe(weight)}")
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"{expected} with N and K at least 1, got {describe(weight)}")
    if weight.device.type not in ("cpu", "meta"):
        raise ValueError(f"{expected} on cpu, got one on {weight.device}")
    return weight.shape[0], weight.shape[1]


def _check_finite_weights(values: torch.Tensor, first_row: int) -> None:
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"weight: expected finite values, got {float(values[row, column])} at index {[first_row + row, column]}"
        )


def _check_representable(scales: torch.Tensor, offsets: torch.Tensor, bits: int, first_row: int) -> None:
    """Scales and offsets are finite in their dtype, and so is in float32 the largest multiple of a scale."""
    largest = scales.to(torch.float32) * max_code(bits)
    wrong = ~(largest.isfinite() & offsets.isfinite())
    if bool(wrong.any()):
        row, group = wrong.nonzero()[0].tolist()
        dtype = scales.dtype
        raise ValueError(
            f"weight: group {group} of row {first_row + row} is too large for a scale or offset of "
            f"{dtype_name(dtype)} (up to {torch.finfo(dtype).max:.3g}); scale the weight down"
            + (", or pass scale_dtype=torch.bfloat16 or torch.float32" if dtype is torch.float16 else "")
        )


_BLOCKS: dict[str, type[GroupBlock]] = {"symmetric": SymmetricBlock, "integer": IntegerBlock, "float": FloatBlock}
_SEARCHES: dict[str, Search] = {"rtn": _round_to_nearest, "mse": _least_squares, "hqq": _half_quadratic}
METHODS = tuple(_SEARCHES)
