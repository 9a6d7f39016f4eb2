"""Quantization grids: where the representable values of a group lie, for each zero kind.

A block of groups ``[R, g]`` is fitted at once. Its groups are first scaled by powers of two, which is exact, so that
squares neither overflow nor vanish whatever the magnitude of the weights; scales and offsets are rounded to the dtype
in which they will be kept before a code is chosen, so that codes are nearest to what dequantization will return.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from .codes import max_code

_BIT_PATTERN = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
_LARGEST_UNIT_EXPONENT = 126


@dataclass(frozen=True)
class Grid:
    """The values ``scale * (code - zero) + offset`` of each group of a block.

    All three are float32 ``[R, 1]`` in units of the block (`GroupBlock.unit`). A kind that has no zero point has
    zero = 0, one that has no offset has offset = 0, and None stands for an operand that is 0 throughout.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None
    offset: torch.Tensor | None

    def where(self, condition: torch.Tensor, other: Grid) -> Grid:
        """Choose, for each group, between two grids: `self` where `condition` ``[R, 1]`` holds, else `other`."""

        def choose(mine: torch.Tensor | None, theirs: torch.Tensor | None) -> torch.Tensor | None:
            return None if mine is None or theirs is None else torch.where(condition, mine, theirs)

        return Grid(
            torch.where(condition, self.scale, other.scale),
            choose(self.zero, other.zero),
            choose(self.offset, other.offset),
        )


class GroupBlock(ABC):
    """Groups of equal width, and the grids of one zero kind that can be laid over them.

    Args:
        groups: finite float32 ``[R, g]``; overwritten.
        bits: width of a code.
        dtype: dtype in which scales and offsets will be kept.
    """

    ends_are_free = True
    """Whether `shrunk` takes two fractions; otherwise it takes `low` for both."""

    def __init__(self, groups: torch.Tensor, bits: int, dtype: torch.dtype) -> None:
        self.bits = bits
        self.dtype = dtype
        self.low, self.high = groups.aminmax(dim=1, keepdim=True)
        self.unit = _power_of_two(torch.maximum(-self.low, self.high))
        self.values = groups.div_(self.unit)
        self.low = self.low / self.unit
        self.high = self.high / self.unit
        self.magnitude = torch.maximum(-self.low, self.high)
        # One step from 0, so that their scale is the constant itself: a part of it might not be a number of the dtype.
        self.constant = self.low == self.high
        self._positions = torch.empty_like(groups)
        self._residual = torch.empty_like(groups)

    @abstractmethod
    def full_range(self) -> list[Grid]:
        """Grids that span each group, the first one preferred."""

    @abstractmethod
    def shrunk(self, low: torch.Tensor, high: torch.Tensor) -> Grid:
        """The grid that spans the fractions `low` and `high` ``[R, 1]`` of each group, below and above its center."""

    @abstractmethod
    def refit(self, codes: torch.Tensor, target: torch.Tensor) -> Grid:
        """The grid of least squares for the codes ``[R, g]`` of `target` ``[R, g]``."""

    def codes(self, grid: Grid) -> torch.Tensor:
        """Nearest code of every value: float32 integers ``[R, g]``. By division, which rounds only once."""
        scale = torch.where(grid.scale == 0, torch.inf, grid.scale)
        values = self.values if grid.offset is None else self.values - grid.offset
        positions = values / scale
        if grid.zero is not None:
            # Round before the shift: a sum could round to the wrong side of a half.
            return positions.round_().add_(grid.zero).clamp_(0, max_code(self.bits))
        return positions.round_().clamp_(0, max_code(self.bits))

    def residual(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and residuals in steps of the scale, both ``[R, g]``, in buffers that the next call overwrites."""
        # By division, as `codes`: with a reciprocal, a grid that has a value may seem not to.
        scale = torch.where(grid.scale == 0, torch.inf, grid.scale)
        codes, residual = self._positions, self._residual
        if grid.offset is None:
            torch.div(self.values, scale, out=residual)
        else:
            torch.sub(self.values, grid.offset, out=residual)
            residual.div_(scale)
        if grid.zero is not None:
            residual.add_(grid.zero)
        torch.round(residual, out=codes)
        codes.clamp_(0, max_code(self.bits))
        residual.sub_(codes)
        return codes, residual

    def holds(self, grid: Grid) -> torch.Tensor:
        """Whether the largest multiple of a scale is finite in float32, as it must be: bool ``[R, 1]``."""
        return (grid.scale * self.unit * max_code(self.bits)).isfinite()

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """`value` ``[R, 1]`` as the kept dtype holds it."""
        return (value * self.unit).to(self.dtype).to(torch.float32) / self.unit

    def rounded_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """`scale` as the kept dtype holds it; one that is not 0 stays so, as the smallest subnormal number."""
        rounded = self.rounded(scale)
        lost = (rounded == 0) & (scale != 0)
        return torch.where(lost, self.stepped(rounded.copysign(scale), 1), rounded + 0.0)  # makes 0 of -0

    def stepped(self, value: torch.Tensor, step: int) -> torch.Tensor:
        """The next number of the kept dtype after `value`, away from 0 (`step` 1) or towards it (-1)."""
        kept = (value * self.unit).to(self.dtype)
        kept = (kept.view(_BIT_PATTERN[self.dtype]) + step).view(self.dtype)
        return kept.to(torch.float32) / self.unit

    def covering_scale(self, scale: torch.Tensor, reach: torch.Tensor, steps: float) -> torch.Tensor:
        """`scale` as the kept dtype holds it, one larger where `steps` and a half would not span `reach`.

        Rounding to nearest clips by less than half a step, except where the dtype is coarse beside the range: in
        its subnormal numbers, or with the 8 significant bits of bfloat16 under 255 steps.
        """
        rounded = self.rounded_scale(scale)
        return torch.where(reach > rounded.abs() * (steps + 0.5), self.stepped(rounded, 1), rounded)


class SymmetricBlock(GroupBlock):
    """scale * (code - 2**(bits-1)): the steps run from -2**(bits-1) to 2**(bits-1) - 1.

    The scale takes the sign that puts the value of largest magnitude where the grid reaches farther, as Q4_0 of
    llama.cpp does, or spans it with the shorter side, whichever has the smaller error. The second is what holds the
    other extreme, if it is as large; together they reproduce what rounding to nearest on either returned.
    """

    ends_are_free = False

    def __init__(self, groups: torch.Tensor, bits: int, dtype: torch.dtype) -> None:
        super().__init__(groups, bits, dtype)
        self.half = float(1 << (bits - 1))
        self.zero = torch.full_like(self.unit, self.half)
        self.extreme = torch.where(-self.low > self.high, self.low, self.high)

    def full_range(self) -> list[Grid]:
        longer, shorter = self.half, self.half - 1
        scale = self.covering_scale(self.extreme / -longer, self.magnitude, longer)
        return [
            Grid(torch.where(self.constant, self.rounded_scale(self.extreme), scale), self.zero, None),
            Grid(self.covering_scale(self.extreme / shorter, self.magnitude, shorter), self.zero, None),
        ]

    def shrunk(self, low: torch.Tensor, high: torch.Tensor) -> Grid:
        return Grid(self.rounded_scale(self.extreme * (low / -self.half)), self.zero, None)

    def refit(self, codes: torch.Tensor, target: torch.Tensor) -> Grid:
        steps = codes - self.half
        return Grid(self.rounded_scale(_ratio(_dot(steps, target), _dot(steps, steps))), self.zero, None)


class IntegerBlock(GroupBlock):
    """scale * (code - zero), zero a code: the range holds 0, which a code represents exactly."""

    def full_range(self) -> list[Grid]:
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        scale = self.covering_scale((high - low) / max_code(self.bits), high - low, max_code(self.bits))
        zero = self.zero_point(-low, scale)
        clipped = high > (max_code(self.bits) + 0.5 - zero) * scale
        scale = torch.where(clipped, self.stepped(scale, 1), scale)
        scale = torch.where(self.constant, self.rounded_scale(self.magnitude), scale)
        return [Grid(scale, self.zero_point(-low, scale), None)]

    def shrunk(self, low: torch.Tensor, high: torch.Tensor) -> Grid:
        bottom, top = self.low.clamp(max=0) * low, self.high.clamp(min=0) * high
        scale = self.rounded_scale((top - bottom) / max_code(self.bits))
        return Grid(scale, self.zero_point(-bottom, scale), None)

    def refit(self, codes: torch.Tensor, target: torch.Tensor) -> Grid:
        scale, offset = _line(codes, target)
        zero = self.zero_point(-offset, scale)
        steps = codes - zero
        return Grid(self.rounded_scale(_ratio(_dot(steps, target), _dot(steps, steps))), zero, None)

    def zero_point(self, below: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Code that stands for 0 in a grid that reaches `below` under 0."""
        return _ratio(below, scale).round_().clamp_(0, max_code(self.bits))


class FloatBlock(GroupBlock):
    """scale * code + offset: any range, whether it holds 0 or not."""

    def __init__(self, groups: torch.Tensor, bits: int, dtype: torch.dtype) -> None:
        super().__init__(groups, bits, dtype)
        self.mean = self.values.mean(dim=1, keepdim=True)

    def full_range(self) -> list[Grid]:
        return [self.spanning(self.low, self.high)]

    def spanning(self, low: torch.Tensor, high: torch.Tensor) -> Grid:
        """The grid from `low` to `high`, whose offset is not above `low` by more than half a step."""
        steps = max_code(self.bits)
        offset = self.rounded(low)
        beneath = torch.where(offset > 0, self.stepped(offset, -1), self.stepped(-offset.abs(), 1))
        offset = torch.where(offset - low > (high - offset) / (2 * steps), beneath, offset)
        return Grid(self.covering_scale((high - offset) / steps, high - offset, steps), None, offset)

    def shrunk(self, low: torch.Tensor, high: torch.Tensor) -> Grid:
        # About the mean: with heavy tails the middle of the range may lie far from most values.
        return self.spanning(self.mean - (self.mean - self.low) * low, self.mean + (self.high - self.mean) * high)

    def refit(self, codes: torch.Tensor, target: torch.Tensor) -> Grid:
        scale, offset = _line(codes, target)
        scale, offset = self.rounded_scale(scale), self.rounded(offset)
        return Grid(scale, None, offset)


def _power_of_two(magnitude: torch.Tensor) -> torch.Tensor:
    """A power of two near `magnitude`, such that it and its inverse are normal numbers of float32."""
    exponent = magnitude.frexp().exponent.clamp(-_LARGEST_UNIT_EXPONENT, _LARGEST_UNIT_EXPONENT)
    return ((exponent + 127) << 23).view(torch.float32)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left * right).sum(dim=1, keepdim=True)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Their quotient, 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def _line(codes: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and intercept of the least-squares line through (code, target), for each group."""
    mean = codes.mean(dim=1, keepdim=True)
    target_mean = target.mean(dim=1, keepdim=True)
    centered = codes - mean
    slope = _ratio(_dot(centered, target), _dot(centered, centered))
    return slope, target_mean - slope * mean
