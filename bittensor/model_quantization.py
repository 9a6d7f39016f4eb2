"""Quantization of the layers of a model, in place: packed at once, or trained for it first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from .activation_fusion import fuse_activations_
from .linear_classes import computes_linear, has_transposed_weight, linear_of
from .matrices_elsewhere import matrices_elsewhere
from .module_replacement import ModulePlaces, has_hooks
from .module_traces import runs_its_class
from .nn import FakeQuantizedLinear, QuantizedConv2d, QuantizedEmbedding, QuantizedLinear, WeightModule
from .progress import with_progress
from .quantize_config import QuantizeConfig
from .quantized_weight import QuantizedWeight
from .stacked_experts import is_stacked, unstacked_experts

Make = Callable[[Any, QuantizeConfig], torch.nn.Module]
"""What makes the packed layer of a layer."""

_Shared = dict[int, tuple[str, QuantizedWeight] | None]
"""The first layer and the packed weight of each parameter that several layers have."""

_PACKED: Mapping[type[torch.nn.Module], Make] = {
    torch.nn.Linear: QuantizedLinear.from_linear,
    torch.nn.Embedding: QuantizedEmbedding.from_embedding,
    torch.nn.Conv2d: QuantizedConv2d.from_conv,
}
_TRAINED: Mapping[type[torch.nn.Module], Make] = {torch.nn.Linear: FakeQuantizedLinear.from_linear}
_DONE: Mapping[type[torch.nn.Module], tuple[type[torch.nn.Module], ...]] = {
    torch.nn.Linear: (QuantizedLinear, FakeQuantizedLinear),
    torch.nn.Embedding: (QuantizedEmbedding,),
    torch.nn.Conv2d: (QuantizedConv2d,),
}
"""The layers that the others become."""


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer: quantized, or left as it was for `reason`. A weight counts for its first layer."""

    name: str
    outcome: str
    """ "quantized", "failed" (it could not be quantized) or "excluded" (`filter_fn` said so)."""
    reason: str = ""
    bytes_before: int = 0
    bytes_after: int = 0

    def __str__(self) -> str:
        change = self.reason or (f"{self.bytes_before} -> {self.bytes_after} bytes" if self.bytes_before else "")
        return f"{self.name or '(the model itself)'}: {self.outcome}" + (f", {change}" if change else "")


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize_` did: one entry for each layer, in the order of the model. Its str lists all of them.

    `fused` are the names of linear layers that took the activation after them.
    """

    layers: tuple[LayerReport, ...]
    fused: tuple[str, ...] = ()

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
        if self.fused:
            head += f"; {len(self.fused)} fused"
        fused = (f"{name}: fused with the activation after it" for name in self.fused)
        return "\n".join([head, *(f"  {line}" for line in (*self.layers, *fused))])

    def _names(self, outcome: str) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.outcome == outcome)


def quantize_(
    model: torch.nn.Module,
    config: QuantizeConfig | None = None,
    filter_fn: Callable[[str, Any], bool] | None = None,
    *,
    kinds: Collection[type[torch.nn.Module]] = (torch.nn.Linear,),
    batches: Sequence[Any] | None = None,
    damping: float = 0.01,
    fuse_activations: bool = False,
    progress: bool = True,
) -> QuantizeReport:
    """Replace every ``torch.nn.Linear`` of a model by a `bittensor.nn.QuantizedLinear`, in place.

    One layer after the other, each dropping its float weight before the next: the peak of memory is one layer above
    the model, as long as nothing else refers to the weights. Linear layers and embeddings that share a weight, and are
    both of the `kinds`, share the packed one.

    What cannot be quantized stays as it is, and is named with the reason in one warning and in the report: a weight
    narrower than the group size, one that is not finite, one that is shared with a module that stays, a subclass of
    Linear, a layer with hooks or with a forward set on it, a layer that is quantized already. ``FalconLinear`` and
    ``Conv1D`` of transformers, which GPT-2 has, count as Linear. Experts of transformers, whose weights are stacked in
    parameters of three dimensions, get a Linear for each expert and matrix first: `bittensor.nn.ExpertLayers`.

    Args:
        model: changed in place.
        config: `QuantizeConfig()` if None.
        filter_fn: called with the name and the layer; False leaves the layer as it is, without a warning. Layers that
            are quantized already are asked for too, as what they are now.
        kinds: the layers to replace, out of ``torch.nn.Linear``, ``torch.nn.Embedding``, which becomes a
            `bittensor.nn.QuantizedEmbedding`, and ``torch.nn.Conv2d``, which becomes a
            `bittensor.nn.QuantizedConv2d`.
        batches: what the model is called with, if errors are to count as its inputs make them: the same as
            `bittensor.calibrate`, which runs the model, and does not share weights. If None, each weight is
            rounded by itself. Models of transformers get some without data from `bittensor.transformers.random_tokens`.
        damping: with batches, how little they are trusted, as in `bittensor.calibrate`: 0.01 where they are what the
            model will be used with, 0.1 for random tokens.
        fuse_activations: at the end, make activations part of the linear layers before them, as
            `bittensor.fuse_activations_` does, which says when that is safe. The report names these layers.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        TypeError: `model` is no module.
        ValueError: a kind of layer that cannot be quantized, or not with batches. Nothing has changed then.
        TypeError, ValueError: batches that `bittensor.calibrate` refuses.

    Warns:
        UserWarning: layers that could not be quantized, a model without any layer of the kinds, or one with more than
            half of its parameters in other matrices.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> config = bittensor.QuantizeConfig(bits=4, group_size=32)
    >>> print(bittensor.quantize_(model, config, filter_fn=lambda name, layer: name != "2"))
    1 of 2 layers quantized, 8192 -> 1280 bytes; 0 failed, 1 excluded
      0: quantized, 8192 -> 1280 bytes
      2: excluded
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> bittensor.quantize_(model, config, fuse_activations=True).fused
    ('0',)
    """
    check_model(model)
    if unknown := [kind for kind in kinds if kind not in _PACKED]:
        known = ", ".join(f"torch.nn.{kind.__name__}" for kind in _PACKED)
        raise ValueError(f"kinds: expected some of {known}, got {unknown}")
    others = matrices_elsewhere(model, lambda module: is_packable(module) or isinstance(module, tuple(kinds)))
    if batches is not None:
        if set(kinds) != {torch.nn.Linear}:
            raise ValueError(f"kinds: with batches expected (torch.nn.Linear,), got {tuple(kinds)}")
        from .calibration import calibrate  # it builds on this module

        report = calibrate(model, batches, config, filter_fn, damping=damping, progress=progress)
    else:
        report = pack_layers_(model, config, filter_fn, kinds, progress)
    if others.are_most and report.layers:
        warnings.warn(f"quantize_: {type(model).__name__}: {others}", stacklevel=2)
    return replace(report, fused=fuse_activations_(model)) if fuse_activations else report


def pack_layers_(
    model: torch.nn.Module,
    config: QuantizeConfig | None,
    filter_fn: Callable[[str, Any], bool] | None,
    kinds: Collection[type[torch.nn.Module]] = (torch.nn.Linear,),
    progress: bool = True,
) -> QuantizeReport:
    """What `quantize_` does without batches, but for its warning of other matrices."""
    makers = {kind: make for kind, make in _PACKED.items() if kind in kinds}
    return _convert(model, makers, "quantize_", config, filter_fn, progress, stacklevel=4)


def prepare_qat_(
    model: torch.nn.Module,
    config: QuantizeConfig | None = None,
    filter_fn: Callable[[str, Any], bool] | None = None,
    *,
    progress: bool = True,
) -> QuantizeReport:
    """Replace every ``torch.nn.Linear`` of a model by a `bittensor.nn.FakeQuantizedLinear`, in place.

    The model then computes as it will when `convert_qat_` has packed it, and can be trained. Arguments, what stays as
    it is, and warnings are those of `quantize_`; a weight that is shared stays. What is frozen stays frozen: scales
    and shifts with their weight, a bias by itself. The bytes of the report are those after `convert_qat_`.

    Raises:
        TypeError: `model` is no module.

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
    check_model(model)
    return _convert(model, _TRAINED, "prepare_qat_", config, filter_fn, progress)


def convert_qat_(model: torch.nn.Module) -> tuple[str, ...]:
    """Pack every `bittensor.nn.FakeQuantizedLinear` of a model into a `bittensor.nn.QuantizedLinear`, in place.

    The outputs of the model stay the same, bit for bit.

    Returns:
        Names of the layers that were packed.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model has none, or is one itself, or a weight or scale is no longer finite. Nothing has changed
            then.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> report = bittensor.prepare_qat_(model, bittensor.QuantizeConfig(bits=2, group_size=32))
    >>> bittensor.convert_qat_(model)
    ('0', '2')
    >>> model[2]
    QuantizedLinear(in_features=32, out_features=10, bits=2, group_size=32, zero='symmetric', scales=float32,
    bias=True, activation_mode='int8')
    """
    check_model(model)
    if isinstance(model, FakeQuantizedLinear):
        raise ValueError("model: a layer cannot replace itself; use its method to_quantized")
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, FakeQuantizedLinear)]
    if not layers:
        raise ValueError(f"model: expected one with FakeQuantizedLinear layers, got {type(model).__name__} without")
    packed = [layer.to_quantized() for _, layer in layers]
    places = ModulePlaces(model)
    for (_, layer), quantized in zip(layers, packed, strict=True):
        places.replace(layer, quantized)
    return tuple(name for name, _ in layers)


def _convert(
    model: torch.nn.Module,
    makers: Mapping[type[torch.nn.Module], Make],
    caller: str,
    config: QuantizeConfig | None,
    filter_fn: Callable[[str, Any], bool] | None,
    progress: bool,
    stacklevel: int = 3,
) -> QuantizeReport:
    config = QuantizeConfig() if config is None else config
    with unstacked_experts(model) if torch.nn.Linear in makers else nullcontext() as experts:
        plan = _plan(model, makers, filter_fn, experts.whole if experts else {})
        if experts:
            experts.changing += [name for name, stays in plan.items() if stays is None]
    # Shared parameters by identity, which they keep until all their layers are replaced.
    shared: _Shared = {key: None for key, names in shared_parameters(model).items() if len(names) > 1}
    places = ModulePlaces(model)
    report = QuantizeReport(
        tuple(
            plan[name] or _convert_layer(model, places, makers, name, config, shared)
            for name in with_progress(list(plan), "quantizing", wanted=progress)
        )
    )
    if not plan:
        wanted = " or ".join(f"torch.nn.{kind.__name__}" for kind in makers)
        warnings.warn(f"{caller}: {type(model).__name__} has no {wanted}", stacklevel=stacklevel)
    if failed := report.failed:
        listed = "; ".join(f"{name or 'the model itself'}: {reason}" for name, reason in failed.items())
        warnings.warn(f"{caller}: {len(failed)} of {len(plan)} layers not quantized: {listed}", stacklevel=stacklevel)
    return report


def _plan(
    model: torch.nn.Module,
    makers: Mapping[type[torch.nn.Module], Make],
    filter_fn: Callable[[str, Any], bool] | None,
    whole: Mapping[str, str],
) -> dict[str, LayerReport | None]:
    """The layers of the kinds by name: None for those that are to be replaced, a report for those that stay.

    So do modules that are `whole`, for these reasons.
    """
    done = tuple(each for kind in makers for each in _DONE[kind])
    known: tuple[type[torch.nn.Module], ...] = (*done, *makers)
    parts = parts_of_convolutions(model)
    plan: dict[str, LayerReport | None] = {}
    for name, layer in model.named_modules():
        is_known = isinstance(layer, known) or (torch.nn.Linear in makers and computes_linear(layer))
        if layer in parts or not (is_known or name in whole):
            continue
        if filter_fn is not None and not filter_fn(name, layer):
            plan[name] = LayerReport(name, "excluded")
        elif name in whole:
            plan[name] = LayerReport(name, "failed", whole[name])
        elif isinstance(layer, done):
            plan[name] = LayerReport(name, "failed", "it is quantized already")
        else:
            reason = _obstacle(model, name, layer, makers)
            plan[name] = None if reason is None else LayerReport(name, "failed", reason)
    replaced = {name for name, stays in plan.items() if stays is None}
    for names in shared_parameters(model).values():
        owners = [name.removesuffix(".weight") for name in names]
        if len(names) > 1 and not (replaced.issuperset(owners) and _can_share(model, owners, makers)):
            for owner in replaced.intersection(owners):
                others = ", ".join(name for name in names if name != f"{owner}.weight")
                plan[owner] = LayerReport(owner, "failed", f"its weight is shared with {others}")
    return plan


def _can_share(model: torch.nn.Module, names: Collection[str], makers: Mapping[type[torch.nn.Module], Make]) -> bool:
    """Whether the packed layers of these can hold one weight: convolutions and transposed ones order it otherwise."""
    layers = [model.get_submodule(name) for name in names]
    ordered = any(isinstance(layer, torch.nn.Conv2d) or has_transposed_weight(layer) for layer in layers)
    return makers is not _TRAINED and not ordered


def _convert_layer(
    model: torch.nn.Module,
    places: ModulePlaces,
    makers: Mapping[type[torch.nn.Module], Make],
    name: str,
    config: QuantizeConfig,
    shared: _Shared,
) -> LayerReport:
    layer: Any = model.get_submodule(name)
    before, key = layer.weight.numel() * layer.weight.itemsize, id(layer.weight)
    first, weight = shared.get(key) or (name, None)
    try:
        own = layer if type(layer) in makers else linear_of(layer)
        made = makers[type(own)](own, config) if weight is None else _on(weight, own, config)
    except (TypeError, ValueError) as error:
        return LayerReport(name, "failed", str(error))
    places.replace(layer, made)
    if weight is not None:
        return LayerReport(name, "quantized", f"with the weight of {first}")
    if isinstance(made, WeightModule):
        if key in shared:
            shared[key] = (name, made.weight)
        after = made.weight.nbytes
    else:
        assert isinstance(made, (QuantizedConv2d, FakeQuantizedLinear))
        after = made.nbytes
    return LayerReport(name, "quantized", bytes_before=before, bytes_after=after)


def _on(weight: QuantizedWeight, layer: torch.nn.Linear | torch.nn.Embedding, config: QuantizeConfig) -> WeightModule:
    """The packed layer of `layer` on a weight that another has."""
    if isinstance(layer, torch.nn.Embedding):
        made: WeightModule = QuantizedEmbedding(weight, layer.padding_idx, dtype=layer.weight.dtype)
    else:
        bias = None if layer.bias is None else layer.bias.detach().clone()
        made = QuantizedLinear(weight, bias, activation_mode=config.activation_mode)
    return made.train(layer.training)


def _obstacle(
    model: torch.nn.Module, name: str, layer: torch.nn.Module, makers: Mapping[type[torch.nn.Module], Make]
) -> str | None:
    """Why `layer` cannot be replaced, whatever it shares; None if it can."""
    if layer is model:
        kind = next((kind for kind in makers if isinstance(layer, kind)), torch.nn.Linear)
        return f"it cannot replace itself; use bittensor.nn.{makers[kind].__qualname__}"
    if type(layer) not in makers and not computes_linear(layer):
        kind = next(kind for kind in makers if isinstance(layer, kind))
        return f"{type(layer).__name__} is a subclass of torch.nn.{kind.__name__}, which may compute something else"
    if not isinstance(layer._parameters.get("weight"), torch.nn.Parameter):
        return "its weight is computed, not a parameter"
    if not runs_its_class(layer):
        own = "hooks" if has_hooks(layer) else "a forward of its own, set on the layer"
        return f"it has {own}, which would be lost"
    if isinstance(layer, torch.nn.Embedding) and layer.max_norm is not None:
        return "it has a max_norm, which changes the table as it is used"
    if isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.TransformerEncoderLayer):
        return "torch.nn.TransformerEncoderLayer computes with the weights of its layers, not with the layers"
    return None


def check_model(model: object) -> None:
    """`model` is a module.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def is_linear(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer, quantized or not."""
    return isinstance(module, (torch.nn.Linear, *_DONE[torch.nn.Linear])) or computes_linear(module)


def is_packable(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer, quantized or not, or has the weights of linear layers of experts."""
    return is_linear(module) or is_stacked(module)


def parts_of_convolutions(model: torch.nn.Module) -> set[torch.nn.Module]:
    """The linear layers that hold the weights of packed convolutions: they are not layers of the model on their own."""
    return {part for module in model.modules() if isinstance(module, QuantizedConv2d) for part in module.children()}


def obstacle(model: torch.nn.Module, name: str, layer: Any, shared: dict[int, list[str]]) -> str | None:
    """Why a linear layer cannot be replaced alone; None if it can. `shared` is of `shared_parameters`."""
    if reason := _obstacle(model, name, layer, {torch.nn.Linear: _PACKED[torch.nn.Linear]}):
        return reason
    others = [other for other in shared.get(id(layer.weight), []) if other != f"{name}.weight"]
    return f"its weight is shared with {', '.join(others)}" if others else None


def shared_parameters(model: torch.nn.Module) -> dict[int, list[str]]:
    """Names of each parameter, by its identity; a module in several places counts once."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), []).append(f"{prefix}.{name}" if prefix else name)
    return names
