"""Quantization of the layers of a model, in place: packed at once, or trained for it first."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .module_replacement import replace_module
from .nn import FakeQuantizedLinear, QuantizedLinear
from .progress import with_progress
from .quantize_config import QuantizeConfig


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer: quantized, or left as it was for `reason`."""

    name: str
    outcome: str
    """ "quantized", "failed" (it could not be quantized) or "excluded" (`filter_fn` said so)."""
    reason: str = ""
    bytes_before: int = 0
    bytes_after: int = 0

    def __str__(self) -> str:
        change = f"{self.bytes_before} -> {self.bytes_after} bytes" if self.outcome == "quantized" else self.reason
        return f"{self.name or '(the model itself)'}: {self.outcome}" + (f", {change}" if change else "")


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize_` did: one entry for each layer, in the order of the model. Its str lists all of them."""

    layers: tuple[LayerReport, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that were quantized."""
        return self._names("quantized")

    @property
    def failed(self) -> dict[str, str]:
        """Names of the layers that could not be quantized, with the reasons."""
        return {layer.name: layer.reason for layer in self.layers if layer.outcome == "failed"}

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the layers that `filter_fn` excluded."""
        return self._names("excluded")

    def __str__(self) -> str:
        before, after = (sum(getattr(each, f"bytes_{when}") for each in self.layers) for when in ("before", "after"))
        head = (
            f"{len(self.quantized)} of {len(self.layers)} layers quantized, {before} -> {after} bytes; "
            f"{len(self.failed)} failed, {len(self.excluded)} excluded"
        )
        return "\n".join([head, *(f"  {layer}" for layer in self.layers)])

    def _names(self, outcome: str) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.outcome == outcome)


def quantize_(
    model: torch.nn.Module,
    config: QuantizeConfig | None = None,
    filter_fn: Callable[[str, torch.nn.Linear], bool] | None = None,
    *,
    progress: bool = True,
) -> QuantizeReport:
    """Replace every ``torch.nn.Linear`` of a model by a `bittensor.nn.QuantizedLinear`, in place.

    One layer after the other, each dropping its float weight before the next: the peak of memory is one layer above
    the model, as long as nothing else refers to the weights.

    What cannot be quantized stays as it is, and is named with the reason in one warning and in the report: a weight
    narrower than the group size, one that is not finite, one that is shared with another module, a subclass of
    Linear, a layer with hooks, a layer that is quantized already.

    Args:
        model: changed in place.
        config: `QuantizeConfig()` if None.
        filter_fn: called with the name and the layer; False leaves the layer as it is, without a warning.
        progress: show a progress bar on stderr if that is a terminal.

    Warns:
        UserWarning: layers that could not be quantized, or a model without any linear layer.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> config = bittensor.QuantizeConfig(bits=4, group_size=32)
    >>> print(bittensor.quantize_(model, config, filter_fn=lambda name, layer: name != "2"))
    1 of 2 layers quantized, 8192 -> 1280 bytes; 0 failed, 1 excluded
      0: quantized, 8192 -> 1280 bytes
      2: excluded
    """
    return _convert(model, QuantizedLinear.from_linear, "quantize_", config, filter_fn, progress)


def prepare_qat_(
    model: torch.nn.Module,
    config: QuantizeConfig | None = None,
    filter_fn: Callable[[str, torch.nn.Linear], bool] | None = None,
    *,
    progress: bool = True,
) -> QuantizeReport:
    """Replace every ``torch.nn.Linear`` of a model by a `bittensor.nn.FakeQuantizedLinear`, in place.

    The model then computes as it will when `convert_qat_` has packed it, and can be trained. Arguments, what stays as
    it is, and warnings are those of `quantize_`; the bytes of the report are those after `convert_qat_`.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> report = bittensor.prepare_qat_(model, bittensor.QuantizeConfig(bits=2, group_size=32))
    >>> x = torch.randn(3, 64)
    >>> model(x).square().sum().backward()  # and so on: train it
    >>> y = model(x)
    >>> bittensor.convert_qat_(model)
    ('0', '2')
    >>> torch.equal(model(x), y)
    True
    """
    return _convert(model, FakeQuantizedLinear.from_linear, "prepare_qat_", config, filter_fn, progress)


def convert_qat_(model: torch.nn.Module) -> tuple[str, ...]:
    """Pack every `bittensor.nn.FakeQuantizedLinear` of a model into a `bittensor.nn.QuantizedLinear`, in place.

    The outputs of the model stay the same, bit for bit.

    Returns:
        Names of the layers that were packed.

    Raises:
        ValueError: the model has none, or is one itself, or a weight or scale is no longer finite. Nothing has changed
            then.
    """
    if isinstance(model, FakeQuantizedLinear):
        raise ValueError("model: a layer cannot replace itself; use its method to_quantized")
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, FakeQuantizedLinear)]
    if not layers:
        raise ValueError(f"model: expected one with FakeQuantizedLinear layers, got {type(model).__name__} without")
    packed = [layer.to_quantized() for _, layer in layers]
    for (_, layer), quantized in zip(layers, packed, strict=True):
        replace_module(model, layer, quantized)
    return tuple(name for name, _ in layers)


def _convert(
    model: torch.nn.Module,
    make: Callable[[torch.nn.Linear, QuantizeConfig], QuantizedLinear | FakeQuantizedLinear],
    caller: str,
    config: QuantizeConfig | None,
    filter_fn: Callable[[str, torch.nn.Linear], bool] | None,
    progress: bool,
) -> QuantizeReport:
    config = QuantizeConfig() if config is None else config
    names = [name for name, module in model.named_modules() if _is_linear(module)]
    shared = _shared_parameters(model)
    layers = tuple(
        _convert_layer(model, make, name, config, filter_fn, shared)
        for name in with_progress(names, "quantizing", wanted=progress)
    )
    report = QuantizeReport(layers)
    if not layers:
        warnings.warn(f"{caller}: {type(model).__name__} has no torch.nn.Linear", stacklevel=3)
    if failed := report.failed:
        listed = "; ".join(f"{name or 'the model itself'}: {reason}" for name, reason in failed.items())
        warnings.warn(f"{caller}: {len(failed)} of {len(layers)} layers not quantized: {listed}", stacklevel=3)
    return report


def _convert_layer(
    model: torch.nn.Module,
    make: Callable[[torch.nn.Linear, QuantizeConfig], QuantizedLinear | FakeQuantizedLinear],
    name: str,
    config: QuantizeConfig,
    filter_fn: Callable[[str, torch.nn.Linear], bool] | None,
    shared: dict[int, list[str]],
) -> LayerReport:
    layer = model.get_submodule(name)
    if isinstance(layer, QuantizedLinear | FakeQuantizedLinear):
        return LayerReport(name, "failed", "it is quantized already")
    assert isinstance(layer, torch.nn.Linear)  # as _is_linear found it
    if filter_fn is not None and not filter_fn(name, layer):
        return LayerReport(name, "excluded")
    reason = _obstacle(model, name, layer, shared)
    if reason is not None:
        return LayerReport(name, "failed", reason)
    try:
        made = make(layer, config)
    except (TypeError, ValueError) as error:
        return LayerReport(name, "failed", str(error))
    before = layer.weight.numel() * layer.weight.itemsize
    form = made.weight.form if isinstance(made, QuantizedLinear) else made.form
    replace_module(model, layer, made)
    return LayerReport(name, "quantized", bytes_before=before, bytes_after=form.nbytes)


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, QuantizedLinear, FakeQuantizedLinear))


def _obstacle(model: torch.nn.Module, name: str, layer: torch.nn.Linear, shared: dict[int, list[str]]) -> str | None:
    """Why `layer` cannot be replaced; None if it can."""
    if layer is model:
        return "it cannot replace itself; use bittensor.nn.QuantizedLinear.from_linear"
    if type(layer) is not torch.nn.Linear:
        return f"{type(layer).__name__} is a subclass of torch.nn.Linear, which may compute something else"
    if not isinstance(layer._parameters.get("weight"), torch.nn.Parameter):
        return "its weight is computed, not a parameter"
    if others := [other for other in shared.get(id(layer.weight), []) if other != f"{name}.weight"]:
        return f"its weight is shared with {', '.join(others)}"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, kind) for kind in hooks):
        return "it has hooks, which would be lost"
    if isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.TransformerEncoderLayer):
        return "torch.nn.TransformerEncoderLayer computes with the weights of its layers, not with the layers"
    return None


def _shared_parameters(model: torch.nn.Module) -> dict[int, list[str]]:
    """Names of each parameter, by its identity; a module in several places counts once."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(f"{prefix}.{name}" if prefix else name)
    return names
