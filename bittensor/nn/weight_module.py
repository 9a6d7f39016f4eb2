"""Modules that hold a group-quantized weight: how they save, load, move and share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..checks import dtype_name
from ..form_entry import FORM_VERSION, form_entry
from ..prepared_weight import SCALE_DTYPES, ZERO_KINDS, WeightForm
from ..quantized_weight import QuantizedWeight

WEIGHT_ENTRIES = ("words", "scales", "zeros", "offsets", "form")
"""Entries of a state_dict that make up the weight; zeros and offsets where its form has them."""


class WeightModule(torch.nn.Module):
    """A module on a `bittensor.QuantizedWeight`: `QuantizedLinear` and `QuantizedEmbedding`.

    The weight is held once, in the layout of the backend that last used it. A state_dict holds it in canonical form,
    whichever backend that was: ``words``, ``scales``, ``zeros`` or ``offsets``, and ``form``, int64 numbers that tell
    its shape, bits, group size, kind of zero and scale dtype; `load_state_dict` refuses another form.

    Modules may share a weight: those that are given the same object hold one copy of it, which loading and moving
    change for all of them, and their state_dicts have the same tensors.
    """

    weight: QuantizedWeight

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.weight = weight

    words = property(
        lambda self: self.weight.words, doc="As `QuantizedWeight.words`; each entry of a state_dict is one."
    )
    scales = property(lambda self: self.weight.scales, doc="As `QuantizedWeight.scales`.")
    zeros = property(lambda self: self.weight.zeros, doc="As `QuantizedWeight.zeros`.")
    offsets = property(lambda self: self.weight.offsets, doc="As `QuantizedWeight.offsets`.")
    form = property(lambda self: form_entry(self.weight.form), doc="int64: the entry of a state_dict.")

    def _prepare(self) -> None:
        """Put the weight into the layout of the current backend now: a compiled program depends on the layout."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> WeightModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.weight.device
        if fn(torch.empty(0, dtype=torch.int64, device=device)).device != device:
            self.weight.assign(self.weight.convert(lambda tensor: fn(_as_integers(tensor)).view(tensor.dtype)))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.weight.tensors().items():
            destination[prefix + name] = tensor
        destination[prefix + "form"] = form_entry(self.weight.form)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = {prefix + name for name in WEIGHT_ENTRIES}
        others = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        given = {name: state_dict[prefix + name] for name in WEIGHT_ENTRIES if prefix + name in state_dict}
        expected = {"zeros": "integer", "offsets": "float"}
        needed = [name for name in WEIGHT_ENTRIES if expected.get(name, self.weight.zero) == self.weight.zero]
        missing = [prefix + name for name in needed if name not in given]
        if "form" in given and (error := _form_error(given["form"], self.weight.form)):
            error_msgs.append(f"{prefix}form: {error}")
        elif missing:
            missing_keys.extend(missing)
        else:
            unexpected_keys.extend(prefix + name for name in given if name not in needed)
            assign = local_metadata.get("assign_to_params_buffers", False)
            tensors = {name: tensor for name, tensor in given.items() if name in needed and name != "form"}
            for name, tensor in tensors.items():
                if not isinstance(tensor, torch.Tensor):
                    error_msgs.append(f"{prefix}{name}: expected a tensor, got {type(tensor).__name__}")
                    return
                if tensor.is_meta and not assign and self.weight.device.type != "meta":
                    error_msgs.append(f"{prefix}{name}: expected values, got a tensor on the device meta")
                    return
            try:
                if not assign:
                    with torch.inference_mode(False):  # of which no gradient could be taken through what it makes
                        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
                self.weight.assign(_weight_of(tensors, self.weight, assign))
                self._prepare()
            except (TypeError, ValueError, RuntimeError) as error:
                error_msgs.append(f"{prefix}{error}")


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of floats: `Module.to` converts floats, and moves integers as they are."""
    return tensor.view({4: torch.int32, 2: torch.int16}[tensor.itemsize]) if tensor.is_floating_point() else tensor


def _weight_of(tensors: dict[str, torch.Tensor], like: QuantizedWeight, assign: bool) -> QuantizedWeight:
    """A weight of `tensors`, of the form of `like`, and on its device unless they are taken over as they are."""
    form = like.form
    weight = QuantizedWeight(**tensors, shape=form.shape, group_size=form.group_size, bits=form.bits)
    if weight.form != form:
        raise ValueError(f"scales: expected {dtype_name(form.scale_dtype)}, got {dtype_name(weight.form.scale_dtype)}")
    return weight if assign else weight.to(like.device)


def _form_error(entry: object, form: WeightForm) -> str | None:
    """What is wrong with the entry "form" for a layer of `form`; None if nothing is."""
    expected = form_entry(form)
    if not isinstance(entry, torch.Tensor) or entry.dtype is not torch.int64 or entry.shape != expected.shape:
        return f"expected int64 [{len(expected)}], the form of a quantized weight"
    if entry.is_meta:
        return "expected numbers, got a tensor on the device meta"
    version, *numbers = entry.tolist()
    if version != FORM_VERSION:
        return f"expected version {FORM_VERSION} of the format, got {version}"
    names = ("out_features", "in_features", "bits", "group_size", "zero", "scale dtype")
    choices: dict[str, tuple[object, ...]] = {"zero": ZERO_KINDS, "scale dtype": SCALE_DTYPES}

    def shown(name: str, number: int) -> object:
        return choices[name][number] if name in choices and 0 <= number < len(choices[name]) else number

    wrong = [
        f"{name}={shown(name, own)}, but the saved weight has {shown(name, number)}"
        for name, number, own in zip(names, numbers, expected.tolist()[1:], strict=True)
        if number != own
    ]
    return f"the layer has {'; '.join(wrong)}" if wrong else None
