"""docs/numerics.md, section 10: a convolution is the linear of its patches, to the bit or within its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, product
from typing import Any

import torch

from bittensor.backend import Capabilities

from ..catalogue import check
from ..float_fills import FloatFill
from ..linear_cases import Mode
from ..linear_strategies import FLOAT_DTYPES, scope
from ..scripts import holds
from ..targets import Target

_MODES: Mapping[str, Mode] = {"int8": "int8", "float": "float"}

# Channels and outputs of a group, groups, kernel, stride, padding, dilation.
_SHAPES = (
    (3, 20, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (40, 5, 1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    (5, 12, 3, (2, 3), (2, 1), (0, 1, 2, 0), (3, 2)),
    (1, 1, 40, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),  # depthwise
    (1, 2, 19, (3, 2), (2, 3), (5, 4, 3, 0), (2, 1)),
    (4, 4, 16, (3, 3), (1, 2), (1, 1, 1, 1), (1, 1)),
    (1, 1, 33, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
)


# Images, height and width, and the rest as above: wide ones, large kernels, no images.
_IMAGES = (
    ((2, 20, 37), (3, 5, 1, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1))),
    ((1, 9, 40), (6, 4, 2, (1, 7), (1, 2), (3, 3, 0, 0), (1, 1))),
    ((2, 12, 33), (1, 1, 24, (5, 3), (1, 1), (1, 1, 2, 2), (1, 1))),
    ((0, 7, 9), (3, 20, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
)
_LAYOUTS = ("contiguous", "channels_first", "sliced")


def _declared(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes


def _exact(capabilities: Capabilities, mode: Any) -> bool:
    return _declared(capabilities, mode) and capabilities.numerics == "exact"


@check("linear", cases=_MODES, applies=_declared)
def test_convolution_is_the_linear_of_patches(target: Target, bits: int, case: Mode) -> None:
    """Any stride, padding, dilation and groups, in each zero kind, with groups of columns whole and ragged; with and
    without bias and epilogue; images in any strides, which stay as they are.
    """
    within = scope(target.capabilities)
    dtypes, layouts, epilogues, biased = map(cycle, (FLOAT_DTYPES, _LAYOUTS, within.epilogues, (True, False, True)))
    cases = [*product([((2, 7, 9), shape) for shape in _SHAPES], within.zeros, (None, 8))]
    cases += zip(_IMAGES, cycle(within.zeros), cycle((8, None)), strict=False)
    for (images, (channels, outputs, groups, kernel, *places)), zero, size in cases:
        columns = channels * kernel[0] * kernel[1]
        weight = within.weight(bits, outputs * groups, columns, size if columns > 8 else None, zero, poison=columns)
        names = {"weight": weight, "images": FloatFill(seed=columns), "shape": (*images, channels * groups)}
        ends = {"bias": FloatFill(seed=9) if next(biased) else None, "epilogue": next(epilogues)}
        holds(
            target, _PATCHES, **names, **ends, geometry=(kernel, *places, groups), layout=next(layouts), mode=case,
            dtype=next(dtypes), bad=None, exact=target.is_exact,
        )  # fmt: skip


@check("linear", cases=_MODES, applies=_exact)
def test_convolution_keeps_bad_values_apart(target: Target, bits: int, case: Mode) -> None:
    """A NaN or an infinity reaches the patches and the group of channels that hold it, and no others."""
    within = scope(target.capabilities)
    geometry = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 20)
    for zero, bad in product(within.zeros, ("nan", "inf", "-inf")):
        weight = within.weight(bits, 20, 9, None, zero)
        names = {"weight": weight, "images": FloatFill(seed=1), "shape": (2, 7, 9, 20), "geometry": geometry}
        ends = {"bias": None, "epilogue": None, "layout": "contiguous"}
        holds(target, _PATCHES, **names, **ends, mode=case, dtype="float32", bad=bad, exact=True)


@check("linear", cases=_MODES, applies=_declared)
def test_convolution_on_any_number_of_threads(target: Target, bits: int, case: Mode) -> None:
    """2, 3, 5 and 8 threads give what one gives, in memory of its own."""
    within = scope(target.capabilities)
    threads = torch.get_num_threads()
    try:
        for channels, outputs, groups in ((16, 20, 1), (1, 1, 40)):
            weight = within.weight(bits, outputs * groups, channels * 9, None, within.zeros[-1])
            geometry = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups)
            names = {"weight": weight, "channels": channels * groups, "geometry": geometry, "mode": case}
            holds(target, _THREADS, **names, exact=target.is_exact)
    finally:
        torch.set_num_threads(threads)


_PATCHES = """
(kh, kw), (sh, sw), (left, right, top, bottom), (dh, dw), groups = geometry
count, height, width, channels = shape
values = images.floats(shape, dtype)
if bad is not None:
    values[1, 3, 4, channels // 2] = np.float32(bad)
padded = np.pad(values, ((0, 0), (top, bottom), (left, right), (0, 0)))
lines = np.arange(0, padded.shape[1] - dh * (kh - 1), sh)[:, None] + dh * np.arange(kh)
columns = np.arange(0, padded.shape[2] - dw * (kw - 1), sw)[:, None] + dw * np.arange(kw)
patches = padded[:, lines[:, None, :, None], columns[None, :, None, :]]
patches = patches.reshape(count, len(lines), len(columns), kh * kw, groups, channels // groups)
backend, to = bittensor.current_backend(), getattr(torch, dtype)
prepared = backend.prepare(weight.quantized())
added = None if bias is None else bias.floats((weight.n,))
given_bias = None if bias is None else torch.from_numpy(added)
bound = oracle_linear.linear_float if mode == "float" else oracle_linear.linear_int8_bound
parts, reaches = [], []
for g in range(groups):
    rows = patches[..., g, :].reshape(*patches.shape[:3], weight.k)
    whole = backend.linear(torch.from_numpy(rows).to(to), prepared, given_bias, mode, epilogue)
    parts.append(whole.chunk(groups, dim=-1)[g])
    reach = np.zeros((0, weight.n))
    if count:
        reach = bound(rows.reshape(-1, weight.k), weight.weight, added, epilogue, dtype).reach
    reaches.append(np.split(reach, groups, axis=1)[g].reshape(parts[g].shape))
expected, reach = torch.cat(parts, dim=-1), np.concatenate(reaches, axis=-1)
given = torch.from_numpy(values).to(to)
if layout == "channels_first":
    given = given.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
if layout == "sliced":
    parent = torch.full((count, height + 2, 2 * width, channels + 3), float("nan"), dtype=to)
    parent[:, 1:-1, ::2, :channels] = given
    given = parent[:, 1:-1, ::2, :channels]
before = given.clone()
places = bittensor.convolution.ConvolutionGeometry(*geometry)
actual = backend.fused().conv2d(given, prepared, given_bias, places, mode, epilogue)
same(given, before)
assert actual.dtype is expected.dtype and actual.shape == expected.shape, (actual.dtype, actual.shape)
same(actual, expected, within=0.0 if exact and mode == "int8" else 2 * reach)
assert torch.equal(actual.isfinite(), expected.isfinite()), "other results are infinite or NaN"
"""
_THREADS = """
backend = bittensor.current_backend()
prepared, places = backend.prepare(weight.quantized()), bittensor.convolution.ConvolutionGeometry(*geometry)
images = torch.from_numpy(FloatFill(seed=1).floats((2, 16, 24, channels)))
def call(threads, images):
    torch.set_num_threads(threads)
    return backend.fused().conv2d(images, prepared, None, places, mode, None)
results = [call(1, images)]
reach = 0 if exact else 1e-2 * float(results[0].abs().max())
for threads in (2, 3, 5, 8, 2, 3):
    other = call(threads, -images)  # kept, so that no call finds the values of another in its memory
    results += [call(threads, images), other]
    same(results[-2], results[0], reach)
assert len({each.untyped_storage().data_ptr() for each in results}) == len(results), "two results share memory"
"""
