"""docs/numerics.md, section 10: a convolution is the linear of its patches, to the bit or within its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, product
from typing import Any

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


def _exact(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes and capabilities.numerics == "exact"


@check("linear", cases=_MODES, applies=_exact)
def test_convolution_is_the_linear_of_patches(target: Target, bits: int, case: Mode) -> None:
    """Any stride, padding, dilation and groups, in each zero kind, with groups of columns whole and ragged."""
    within = scope(target.capabilities)
    dtypes = cycle(FLOAT_DTYPES)
    for (channels, outputs, groups, kernel, *places), zero, size in product(_SHAPES, within.zeros, (None, 8)):
        columns = channels * kernel[0] * kernel[1]
        weight = within.weight(bits, outputs * groups, columns, size if columns > 8 else None, zero, poison=columns)
        geometry = (kernel, *places, groups)
        names = {"weight": weight, "images": FloatFill(seed=columns), "channels": channels * groups}
        holds(target, _PATCHES, **names, geometry=geometry, mode=case, dtype=next(dtypes), bad=None)


@check("linear", cases=_MODES, applies=_exact)
def test_convolution_keeps_bad_values_apart(target: Target, bits: int, case: Mode) -> None:
    """A NaN or an infinity reaches the patches and the group of channels that hold it, and no others."""
    within = scope(target.capabilities)
    geometry = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 20)
    for zero, bad in product(within.zeros, ("nan", "inf", "-inf")):
        weight = within.weight(bits, 20, 9, None, zero)
        names = {"weight": weight, "images": FloatFill(seed=1), "channels": 20, "geometry": geometry}
        holds(target, _PATCHES, **names, mode=case, dtype="float32", bad=bad)


_PATCHES = """
(kh, kw), (sh, sw), (left, right, top, bottom), (dh, dw), groups = geometry
values = images.floats((2, 7, 9, channels), dtype)
if bad is not None:
    values[1, 3, 4, channels // 2] = np.float32(bad)
padded = np.pad(values, ((0, 0), (top, bottom), (left, right), (0, 0)))
lines = np.arange(0, padded.shape[1] - dh * (kh - 1), sh)[:, None] + dh * np.arange(kh)
columns = np.arange(0, padded.shape[2] - dw * (kw - 1), sw)[:, None] + dw * np.arange(kw)
patches = padded[:, lines[:, None, :, None], columns[None, :, None, :]].reshape(2, len(lines), len(columns), -1, groups,
                                                                             channels // groups)
backend, to = bittensor.current_backend(), getattr(torch, dtype)
prepared = backend.prepare(weight.quantized())
parts, reaches = [], []
for g in range(groups):
    rows = patches[..., g, :].reshape(*patches.shape[:3], -1)
    parts.append(backend.linear(torch.from_numpy(rows).to(to), prepared, None, mode, None).chunk(groups, dim=-1)[g])
    allowed = oracle_linear.linear_float(rows.reshape(-1, rows.shape[-1]), weight.weight, None, None, dtype)
    reaches.append(np.split(allowed.reach, groups, axis=1)[g].reshape(parts[g].shape))
expected, reach = torch.cat(parts, dim=-1), np.concatenate(reaches, axis=-1)
places = bittensor.convolution.ConvolutionGeometry(*geometry)
actual = backend.fused().conv2d(torch.from_numpy(values).to(to), prepared, None, places, mode, None)
assert actual.dtype is expected.dtype and actual.shape == expected.shape, (actual.dtype, actual.shape)
same(actual, expected, within=0.0 if mode == "int8" else 2 * reach)
assert torch.equal(actual.isfinite(), expected.isfinite()), "other results are infinite or NaN"
"""
