"""The method "bittensor" of transformers: models are quantized when they are loaded, and packed ones read."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ..checkpoints import native
from ..linear_classes import computes_linear, has_transposed_weight, linear_of
from ..matrices_elsewhere import matrices_elsewhere
from ..model_quantization import is_packable, pack_layers_
from ..nn import (
    ExpertLayers,
    FakeQuantizedLinear,
    FeedForwardDown,
    LinearWeightModule,
    LoRALinear,
    PackedLinear,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    ScaledInputLinear,
)
from ..stacked_experts import unstacked_experts
from .packed_parts import PackedParts
from .quantization_config import BitTensorConfig
from .tensor_names import WEIGHT, WORDS, expert_renamings, layer_of, names_in_file, names_in_model, stored_names

_FLOAT_LAYER = "keep its float layer, or save the state_dict with torch.save"
_NOT_LOADED: dict[type[torch.nn.Module], str] = {
    LoRALinear: "save its update alone (bittensor.lora_state_dict), or merge it first (bittensor.merge_lora_)",
    FakeQuantizedLinear: "pack it first (bittensor.convert_qat_)",
    **dict.fromkeys((ScaledInputLinear, QuantizedConv2d, QuantizedEmbedding, PackedLinear), _FLOAT_LAYER),
}
"""Layers that `from_pretrained` could not load, and what to do instead of saving them."""


@register_quantizer(native.METHOD)
class BitTensorQuantizer(HfQuantizer):
    """What `from_pretrained` does for a `BitTensorConfig`.

    A float model is quantized when it is loaded. Of a packed one, every packed layer waits as a `PackedParts`, which
    transformers fills as any module, and becomes a `bittensor.QuantizedLinear` then.
    """

    quantization_config: BitTensorConfig

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._transposed: set[str] = set()

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse places that are not the CPU.

        Raises:
            ValueError: `device_map` names one.
        """
        places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
        if wrong := [place for place in places if place is not None and str(place) not in ("cpu", "auto")]:
            raise ValueError(f"device_map: expected the CPU for method {native.METHOD!r}, got {wrong[0]!r}")

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if not self.pre_quantized:
            return
        weights = self.quantization_config.weights
        if weights is None:
            raise ValueError("config.json: quantization_config has no weights; was it written by save_pretrained?")
        stored = stored_names(checkpoint_files)
        packed = [name.removesuffix(WORDS) for name in sorted(stored) if name.endswith(WORDS)]
        if (count := sum(f"{name}.form" in stored for name in packed)) > len(weights):
            raise ValueError(
                f"config.json: quantization_config describes {len(weights)} packed weights, but "
                f"{', '.join(map(str, checkpoint_files or ()))} has {count}"
            )
        if ordered := [name for name in packed if f"{name}.order" in stored]:
            raise ValueError(
                f"{ordered[0]}.order: weights with ordered columns (act-order) do not fit into a model of "
                "transformers; bittensor.models runs them"
            )
        described = {name: f"{name.removesuffix(WEIGHT)}{WORDS}" for name in weights}
        renamed = names_in_model(model, stored.union(described.values()), self)
        with unstacked_experts(model) as experts:
            packed = [renamed[name] for name in described.values()]
            experts.changing += [f"{name}." for name in _experts_of(model, packed)]
        layers = {name: layer_of(model, name, renamed[described[name]].removesuffix(WORDS)) for name in weights}
        if weights and not any(layers.values()):
            raise ValueError(f"{next(iter(weights))}: the model {type(model).__name__} has no layer of the packed ones")
        for name, layer in layers.items():
            if layer is None:  # of another head: transformers names its tensors as unexpected
                if described[name] not in stored:
                    raise ValueError(f"config.json: {name}: the model has no module of this name, the file no tensors")
                continue
            module = model.get_submodule(layer)
            linear = linear_of(module) if computes_linear(module) else None
            try:
                form = native.form_of_config(weights[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"config.json: {name}: {error}") from None
            if linear is None or tuple(linear.weight.shape) != form.shape:
                raise ValueError(f"{name}: expected a Linear of shape {list(form.shape)} in the model, got {module}")
            self._note_transposed(layer, module)
            model.set_submodule(layer, PackedParts(form, linear.bias))
            model.all_tied_weights_keys.pop(f"{layer}{WEIGHT}", None)  # it is of its own then

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        config = self.quantization_config
        if self.pre_quantized:
            for name, module in list(model.named_modules()):
                if isinstance(module, PackedParts):
                    if missing := module.missing():
                        raise ValueError(f"{name}{WEIGHT}: {missing[0]}: missing in {model.name_or_path}")
                    try:
                        model.set_submodule(name, module.layer(config.activation_mode))
                    except (TypeError, ValueError) as error:
                        raise ValueError(f"{name}{WEIGHT}: {error}") from None
        else:
            kept_whole = list(model._keep_in_fp32_modules or ())
            skip = self.get_modules_to_not_convert(model, config.modules_to_not_convert, kept_whole)
            converted = {name for name, _ in model.named_modules() if should_convert_module(name, skip)}
            for name in converted:
                self._note_transposed(name, model.get_submodule(name))
            if _check_matrices(model, converted):
                pack_layers_(model, config.layers, lambda name, _: bool(should_convert_module(name, skip)))
        config.weights = _forms(model)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *model: PreTrainedModel) -> list[Any]:
        """Let packed weights of experts keep a name for each: transformers stacks float ones.

        Args:
            model: transformers 5.17 does not pass it, 5.23 does.
        """
        updated = list(super().update_weight_conversions(weight_conversions, *model))  # type: ignore[no-untyped-call]
        return updated + expert_renamings(updated)

    def get_state_dict_and_metadata(self, model: PreTrainedModel, *_: Any, **__: Any) -> tuple[None, dict[str, Any]]:
        """Bring the configuration up to date with the layers that are saved: some may have been packed or merged since.

        Raises:
            ValueError: the model has a layer that could not be loaded, or layers with different activation modes.
        """
        config = self.quantization_config
        modes: dict[str, str] = {}
        for name, module in model.named_modules():
            for kind, advice in _NOT_LOADED.items():
                if isinstance(module, kind):
                    raise ValueError(f"{name}: from_pretrained could not load a {kind.__name__}: {advice}")
            if isinstance(module, LinearWeightModule):
                modes.setdefault(module.activation_mode, name)
            if isinstance(module, ExpertLayers) and (floats := module.float_layers()):
                raise ValueError(
                    f"{name}.{floats[0]}: from_pretrained could not load experts that are packed in part: pack all of "
                    "them or none"
                )
        if len(modes) > 1:
            (mode, name), (other_mode, other), *_more = modes.items()
            raise ValueError(
                f"{other}: activation_mode: expected {mode!r}, as {name} has it, got {other_mode!r}: the configuration "
                "has one for all layers"
            )
        config.activation_mode = next(iter(modes), config.activation_mode)
        forms = _forms(model)
        in_file = names_in_file(model, forms)
        config.weights = {in_file[name]: form for name, form in forms.items()}
        model.config.quantization_config = config
        return None, {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # some configurations have its name
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        if fused := [name for name, module in model.named_modules() if isinstance(module, FeedForwardDown)]:
            raise ValueError(f"{fused[0]}: expected a layer of its own, to become a Linear, got one of two in one step")
        for name, layer in layers:
            if layer.epilogue is not None:  # after fuse_activations_
                raise ValueError(
                    f"{name}: expected a layer without epilogue, to become a Linear, got {layer.epilogue!r}"
                )
        for name, layer in layers:
            weight = layer.weight.dequantize().to(dtype)
            linear: Any
            if name in self._transposed:
                linear = Conv1D(1, 1)  # type: ignore[no-untyped-call]
                linear.nx, linear.nf = layer.in_features, layer.out_features
                linear.weight = torch.nn.Parameter(weight.t().contiguous())
            else:
                linear = torch.nn.Linear(1, 1, bias=layer.bias is not None)
                linear.in_features, linear.out_features = layer.in_features, layer.out_features
                linear.weight = torch.nn.Parameter(weight)
            if layer.bias is not None:
                linear.bias = torch.nn.Parameter(layer.bias.detach().to(dtype))
            model.set_submodule(name, linear)
        for name, module in list(model.named_modules()):
            if isinstance(module, ExpertLayers):
                model.set_submodule(name, module.stacked())
        return model

    def _note_transposed(self, name: str, layer: torch.nn.Module) -> None:
        """Layers that `_dequantize` has to make again as they were: their float weights are saved as they are."""
        if has_transposed_weight(layer):
            self._transposed.add(name)

    def is_serializable(self) -> bool:
        """True: `save_pretrained` writes the packed weights."""
        return True

    @property
    def is_trainable(self) -> bool:
        """False: packed weights are constants."""
        return False

    @property
    def is_compileable(self) -> bool:
        """True: see docs/pytorch.md."""
        return True


def _check_matrices(model: PreTrainedModel, converted: Collection[str]) -> bool:
    """Whether any of these modules is a layer that is quantized, with a warning if most of what they hold stays floats.

    Warns:
        UserWarning: there is none, or other layers have more than half of the parameters.
    """
    others = matrices_elsewhere(model, is_packable, lambda name: name in converted)
    layers = any(name in converted and is_packable(module) for name, module in model.named_modules())
    if not layers:
        missing = f"nothing is quantized: it has no torch.nn.Linear that is not kept whole{others.kinds()}"
        warnings.warn(f"{type(model).__name__}: {missing}", stacklevel=3)
    elif others.are_most:
        warnings.warn(f"{type(model).__name__}: {others}", stacklevel=3)
    return layers


def _experts_of(model: PreTrainedModel, weights: Iterable[str]) -> list[str]:
    """Modules with the layers of experts that packed weights are of.

    Args:
        weights: names of tensors; the prefix of the base model may be there or not.
    """
    prefix = f"{model.base_model_prefix}."
    parents = {name.removesuffix(WORDS).rpartition(".")[0].rpartition(".")[0].removeprefix(prefix) for name in weights}
    experts = (name for name, module in model.named_modules() if isinstance(module, ExpertLayers))
    return [name for name in experts if name.removeprefix(prefix) in parents]


def _forms(model: torch.nn.Module) -> dict[str, Any]:
    """What the configuration says of each packed weight."""
    return {
        f"{name}{WEIGHT}": native.form_config(module.weight.form)
        for name, module in model.named_modules()
        if isinstance(module, LinearWeightModule)
    }
