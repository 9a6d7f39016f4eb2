"""Weights in the format "pack-quantized" of compressed-tensors.

``weight_packed`` int32 ``[N, ceil(K * bits / 32)]`` holds signed codes plus 2**(bits-1) along K, lowest bits first:
our words. ``weight_scale`` is ``[N, G]``, ``weight_shape`` the integers N and K, ``weight_zero_point`` if there is one
int32 ``[ceil(N * bits / 32), G]``, packed along N in the same way, or int8 ``[N, G]``, and ``weight_g_idx`` int32
``[K]`` the group of each column. One scale, and one int8 zero point, may stand for the whole weight. A code q is
``scale * (q - zero)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..prepared_weight import SCALE_DTYPES
from ..quantized_weight import QuantizedWeight
from ..weight_checks import check_shape, check_tensor
from .checkpoint import Stored
from .gptq import zero_points
from .int32_words import from_words, pack, to_words, unpack, words_per_int32_row
from .packed_format import PackedFormat, ReadPart, Shapes, matrix_shape, type_name
from .reordered_weight import ReorderedWeight, order_of_groups

METHOD = "compressed-tensors"
"""``quant_method`` in the configuration."""

FORMAT = "pack-quantized"
"""``format`` in the configuration."""


@dataclass(frozen=True)
class Scheme:
    """A group of the configuration: codes of `bits` bits, and columns of a group, None for one group a row."""

    bits: int
    group_size: int | None


@dataclass(frozen=True)
class CompressedTensorsFormat(PackedFormat):
    """Format "pack-quantized" with the schemes of the configuration; its shapes tell which one a weight has."""

    schemes: tuple[Scheme, ...]

    name = METHOD
    marker = "weight_packed"
    parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")

    def describe(self, weight: str, shapes: Shapes, read: ReadPart) -> tuple[str, tuple[int, int]]:
        shape = _shape(read("weight_shape"))
        bits, group_size = self._scheme(shape, matrix_shape(shapes, "weight_packed"), shapes["weight_scale"])
        zero = "integer" if "weight_zero_point" in shapes else "symmetric"
        return type_name(bits, group_size, zero), shape

    def decode(self, tensors: Mapping[str, torch.Tensor]) -> Stored:
        packed, scale, shape = tensors["weight_packed"], tensors["weight_scale"], _shape(tensors["weight_shape"])
        outputs, columns = shape
        bits, group_size = self._scheme(shape, tuple(packed.shape), tuple(scale.shape))
        groups = -(-columns // group_size)
        check_tensor("weight_packed", packed, (torch.int32,), [outputs, words_per_int32_row(columns, bits)])
        if scale.numel() == 1:  # one for the whole tensor
            scale = scale.reshape(1, 1).expand(outputs, 1).contiguous()
        check_tensor("weight_scale", scale, SCALE_DTYPES, [outputs, groups])
        weight = QuantizedWeight(
            to_words(packed),
            scale,
            _zeros(tensors.get("weight_zero_point"), outputs, groups, bits),
            shape=shape,
            group_size=group_size,
            bits=bits,
        )
        order = _order(tensors.get("weight_g_idx"), columns, groups, group_size)
        if order is None:
            return weight
        sorted_codes = weight.codes()[:, order]
        weight = QuantizedWeight.from_codes(sorted_codes, scale, weight.zeros, bits=bits, group_size=group_size)
        return ReorderedWeight(weight, order)

    def _scheme(self, shape: tuple[int, int], packed: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int]:
        """Bits and group size of a weight of `shape` whose parts have these shapes."""
        outputs, columns = shape
        found = set()
        for scheme in self.schemes:
            group_size = columns if scheme.group_size is None else min(scheme.group_size, columns)
            scales = {(outputs, -(-columns // group_size))} | ({(1,), (1, 1), ()} if group_size == columns else set())
            if packed == (outputs, words_per_int32_row(columns, scheme.bits)) and scale in scales:
                found.add((scheme.bits, group_size))
        if len(found) != 1:
            listed = ", ".join(f"{each.bits} bits group {each.group_size or 'row'}" for each in self.schemes)
            raise ValueError(
                f"weight_packed {list(packed)} and weight_scale {list(scale)} of a weight {list(shape)} fit "
                f"{'more than one' if found else 'none'} of the schemes of the configuration: {listed}"
            )
        return found.pop()


def encode(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The parts of a weight.

    Raises:
        ValueError: the format cannot hold it: it has float offsets, or a last group that is shorter.
    """
    if weight.zero == "float":
        raise ValueError("compressed-tensors holds integer zero points only; the weight has float offsets")
    columns = weight.shape[1]
    if columns % weight.group_size:
        raise ValueError(
            f"compressed-tensors needs columns in whole groups; the weight has {columns} in groups of "
            f"{weight.group_size}"
        )
    tensors = weight.tensors()
    parts = {
        "weight_packed": from_words(tensors["words"], columns, weight.bits),
        "weight_scale": tensors["scales"],
        "weight_shape": torch.tensor(weight.shape, device="cpu"),
    }
    if weight.zero == "integer":
        parts["weight_zero_point"] = pack(tensors["zeros"].t(), weight.bits).t().contiguous()
    return parts


def scheme_config(weight: QuantizedWeight) -> dict[str, Any]:
    """What the configuration says of a weight, as ``weights`` in a group of ``config_groups``."""
    whole_row = weight.group_size == weight.shape[1]
    return {
        "num_bits": weight.bits,
        "type": "int",
        "symmetric": weight.zero == "symmetric",
        "strategy": "channel" if whole_row else "group",
        "group_size": None if whole_row else weight.group_size,
        "dynamic": False,
    }


def config(schemes: Mapping[str, list[str]], ignored: list[str]) -> dict[str, Any]:
    """The entry for the quantization in ``config.json``.

    Args:
        schemes: names of layers, by their `scheme_config` as JSON.
        ignored: names of layers with a weight that is not packed.
    """
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": {"targets": layers, "weights": json.loads(scheme)}  # a tied head is in no list
            for index, (scheme, layers) in enumerate(schemes.items())
        },
        "ignore": ignored,
    }


def _shape(weight_shape: torch.Tensor) -> tuple[int, int]:
    if weight_shape.dtype not in (torch.int32, torch.int64) or weight_shape.shape != (2,):
        raise ValueError(f"weight_shape: expected two integers, got {weight_shape.dtype} {list(weight_shape.shape)}")
    return check_shape(weight_shape.tolist())


def _zeros(zero_point: torch.Tensor | None, outputs: int, groups: int, bits: int) -> torch.Tensor | None:
    if zero_point is None:
        return None
    if zero_point.dtype is torch.int8:
        if zero_point.numel() == 1:  # one for the whole tensor
            zero_point = zero_point.reshape(1, 1).expand(outputs, 1)
        check_tensor("weight_zero_point", zero_point, (torch.int8,), [outputs, groups])
        shifted = zero_point.to(torch.int16) + (1 << (bits - 1))
        if int(shifted.min()) < 0:
            raise ValueError(f"weight_zero_point: expected codes of {bits} bits, got {int(zero_point.min())}")
        return zero_points(shifted.to(torch.uint8).t(), bits)
    check_tensor("weight_zero_point", zero_point, (torch.int32,), [words_per_int32_row(outputs, bits), groups])
    return zero_points(unpack(zero_point.t(), outputs, bits), bits)


def _order(g_idx: torch.Tensor | None, columns: int, groups: int, group_size: int) -> torch.Tensor | None:
    if g_idx is None or bool((g_idx == -1).all()):  # -1: not in use
        return None
    check_tensor("weight_g_idx", g_idx, (torch.int32, torch.int64), [columns])
    return order_of_groups(g_idx, groups, group_size)
