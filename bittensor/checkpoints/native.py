"""Our own format: the tensors that a state_dict of `bittensor.nn.QuantizedLinear` has, in safetensors.

The weight of layer ``L`` is ``L.words``, ``L.scales``, ``L.zeros`` or ``L.offsets``, and ``L.form``, as
docs/checkpoints.md says; ``L.order`` beside them if its columns are ordered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..checks import dtype_name
from ..form_entry import form_entry, form_of
from ..prepared_weight import SCALE_DTYPES, ZERO_KINDS, WeightForm
from ..quantized_weight import QuantizedWeight
from ..weight_checks import check_choice, check_group_bits, check_group_size, check_shape, check_tensor
from .checkpoint import Stored
from .packed_format import PackedFormat, ReadPart, Shapes, type_name
from .reordered_weight import ReorderedWeight

METHOD = "bittensor"
"""``quant_method`` in the configuration."""

VERSION = 1
"""``version`` in the configuration."""


_FORM_KEYS = frozenset({"shape", "bits", "group_size", "zero", "scale_dtype"})


@dataclass(frozen=True)
class NativeFormat(PackedFormat):
    """Canonical words, scales, and zero points or offsets.

    `weights` is what the configuration says of each weight, by name, as `form_config` makes it; None if there is no
    configuration.
    """

    weights: Mapping[str, Any] | None = None

    name = METHOD
    marker = "words"
    parts = ("words", "scales", "zeros", "offsets", "form", "order")

    def describe(self, weight: str, shapes: Shapes, read: ReadPart) -> tuple[str, tuple[int, int]]:
        form = form_of(read("form"))
        if self.weights is not None and self.weights.get(weight) != form_config(form):
            raise ValueError(f"form: says {form_config(form)}, but config.json {self.weights.get(weight)}")
        return type_name(form.bits, form.group_size, form.zero), form.shape

    def missing(self, weights: Collection[str]) -> str | None:
        return min((self.weights or {}).keys() - weights, default=None)

    def decode(self, tensors: Mapping[str, torch.Tensor]) -> Stored:
        form = form_of(tensors["form"])
        weight = QuantizedWeight(
            tensors["words"],
            tensors["scales"],
            tensors.get("zeros"),
            tensors.get("offsets"),
            shape=form.shape,
            group_size=form.group_size,
            bits=form.bits,
        )
        if weight.form != form:
            raise ValueError(f"form: says {_shown(form)}, but the tensors are {_shown(weight.form)}")
        order = tensors.get("order")
        if order is None:
            return weight
        columns = form.shape[1]
        check_tensor("order", order, (torch.int64,), [columns])
        if not torch.equal(order.sort().values, torch.arange(columns, device=order.device)):
            raise ValueError(f"order: expected each of 0..{columns - 1} once")
        return ReorderedWeight(weight, order)


def encode(stored: QuantizedWeight | ReorderedWeight) -> dict[str, torch.Tensor]:
    """The parts of a weight."""
    if isinstance(stored, ReorderedWeight):
        return encode(stored.weight) | {"order": stored.order}
    return stored.tensors() | {"form": form_entry(stored.form)}


def form_config(form: WeightForm) -> dict[str, Any]:
    """What the configuration says of a weight."""
    return {
        "shape": list(form.shape),
        "bits": form.bits,
        "group_size": form.group_size,
        "zero": form.zero,
        "scale_dtype": dtype_name(form.scale_dtype),
    }


def form_of_config(entry: object) -> WeightForm:
    """Undo `form_config`.

    Raises:
        TypeError, ValueError: an entry that is missing, or numbers and names that no weight has.
    """
    if not isinstance(entry, Mapping) or _FORM_KEYS - entry.keys():
        raise ValueError(f"expected an object with {', '.join(sorted(_FORM_KEYS))}, got {entry!r}")
    shape, bits = check_shape(entry["shape"]), check_group_bits(entry["bits"])
    check_choice("zero", entry["zero"], ZERO_KINDS)
    dtypes = {dtype_name(dtype): dtype for dtype in SCALE_DTYPES}
    check_choice("scale_dtype", entry["scale_dtype"], tuple(dtypes))
    group_size = check_group_size(entry["group_size"], shape[1])
    return WeightForm(shape, bits, group_size, entry["zero"], dtypes[entry["scale_dtype"]])


def config(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The entry for the quantization in ``config.json``; `weights` are `form_config` of each weight, by name."""
    return {"quant_method": METHOD, "version": VERSION, "weights": dict(weights)}


def _shown(form: WeightForm) -> str:
    return f"zero {form.zero!r} with scales of {form.scale_dtype}"
