"""Convolutions as the linear of patches (docs/numerics.md, section 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

PATCH_VALUES = 1 << 19
"""Values of patches that exist at once, unless one row of the result takes more: 2 MiB of float32."""


@dataclass(frozen=True)
class ConvolutionGeometry:
    """Where the kernel of a convolution goes.

    Attributes:
        kernel_size, stride, dilation: for the height and the width.
        padding: zeros at the left, right, top and bottom: the order of ``torch.nn.functional.pad``.
        groups: of channels that do not mix.

    >>> geometry = ConvolutionGeometry((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), groups=1)
    >>> geometry.result_size(9, 10)
    (5, 5)
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an image; not positive for one that is smaller than the kernel."""
        left, right, top, bottom = self.padding
        (kh, kw), (sh, sw), (dh, dw) = self.kernel_size, self.stride, self.dilation
        return (height + top + bottom - dh * (kh - 1) - 1) // sh + 1, (
            width + left + right - dw * (kw - 1) - 1
        ) // sw + 1


def composed_conv2d(
    linear: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, geometry: ConvolutionGeometry
) -> torch.Tensor:
    """Images ``[B, H, W, channels]`` to ``[B, H', W', out_channels]``, around any linear of patches.

    A patch holds the values under the kernel, in the order kernel row, kernel column, channel. Patches are made for a
    part of the result at a time. Those of each group of channels meet all rows of the weight, and only the results of
    the group's own rows are kept: with many groups, most of the work is for nothing.
    """
    left, right, top, bottom = geometry.padding
    height, width = geometry.result_size(images.shape[1], images.shape[2])
    if any(geometry.padding):
        images = F.pad(images, (0, 0, left, right, top, bottom))
    parts = [_multiply(linear, *part, geometry).flatten(0, 2) for part in _parts(images, height, width, geometry)]
    return torch.unflatten(torch.cat(parts), 0, (images.shape[0], height, width))


def _parts(
    images: torch.Tensor, height: int, width: int, geometry: ConvolutionGeometry
) -> Iterator[tuple[torch.Tensor, int, int]]:
    """What the parts of the result need of the images, and their height and width: whole images, or rows of one."""
    kh, kw = geometry.kernel_size
    if torch.compiler.is_compiling():  # the number of parts would make constants of the sizes
        yield images, height, width
        return
    count, row_values = len(images), width * images.shape[3] * kh * kw
    rows = min(height, max(1, PATCH_VALUES // row_values))
    together = max(1, PATCH_VALUES // (row_values * height)) if rows == height else 1
    if not count:
        yield images, height, width
    for first, row in product(range(0, count, together), range(0, height, rows)):
        yield images[first : first + together, row * geometry.stride[0] :], min(rows, height - row), width


def _multiply(
    linear: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    height: int,
    width: int,
    geometry: ConvolutionGeometry,
) -> torch.Tensor:
    """The result of images in which the kernel has `height` times `width` positions."""
    for dimension, taken in ((1, height), (2, width)):
        kernel, stride, dilation = (
            each[dimension - 1] for each in (geometry.kernel_size, geometry.stride, geometry.dilation)
        )
        reach = dilation * (kernel - 1) + 1
        images = images.narrow(dimension, 0, (taken - 1) * stride + reach)
        images = images.unfold(dimension, reach, stride)[..., ::dilation]
    # A view [images, rows, columns, channels, kernel rows, kernel columns]. Of a row of the kernel all columns and
    # channels follow each other in memory, unless it is dilated, and are copied as one run.
    if geometry.groups == 1:
        return linear(images.permute(0, 1, 2, 4, 5, 3).flatten(3))
    of_groups = torch.unflatten(images, 3, (geometry.groups, -1)).permute(3, 0, 1, 2, 5, 6, 4).flatten(4)
    results = [linear(patches).chunk(geometry.groups, dim=3) for patches in of_groups]
    return torch.cat([result[group] for group, result in enumerate(results)], dim=3)
