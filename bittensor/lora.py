"""Low-rank adapters of a quantized model: adding them, saving them alone, merging them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .model_quantization import check_model, parts_of_convolutions
from .module_replacement import ModulePlaces
from .nn import FeedForwardDown, LoRALinear, QuantizedLinear
from .quantization import METHODS
from .weight_checks import check_choice

_ENTRIES = ("lora_a", "lora_b", "alpha")


@dataclass(frozen=True)
class MergedLayer:
    """What merging cost a layer: `error` is the norm of the rounding, as a share of the norm of the update.

    ``|| merged - (base + update) || / || update ||``, Frobenius norms of the dequantized weights: at 1 the merged layer
    is as far from the adapted one as its base was. It is 0 for an update of 0, which leaves the weight as it is.
    """

    name: str
    error: float

    def __str__(self) -> str:
        return f"{self.name or '(the model itself)'}: rounding of {self.error:.3g} times the update"


def add_lora_(
    model: torch.nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    filter_fn: Callable[[str, QuantizedLinear], bool] | None = None,
) -> tuple[str, ...]:
    """Put a `bittensor.nn.LoRALinear` around every `bittensor.nn.QuantizedLinear` of a model, in place.

    Every other parameter of the model is frozen: those that still need a gradient afterwards are the adapters'. The
    layer inside a `bittensor.nn.QuantizedConv2d` gets no adapter: the convolution computes with its weight itself.

    Args:
        model: changed in place, for example by `quantize_` before.
        rank, alpha, dropout: as in `bittensor.nn.LoRALinear`.
        filter_fn: called with the name and the layer; False leaves the layer without an adapter.

    Returns:
        Names of the layers that have an adapter now.

    Raises:
        TypeError, ValueError: `model` is no module; as `bittensor.nn.LoRALinear`; or there is no layer to adapt, the
            model is one itself, or it has adapters already, or layers in one step. Nothing has changed then.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> report = bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=32))
    >>> bittensor.add_lora_(model, rank=4)
    ('0', '2')
    >>> sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    552
    """
    if isinstance(model, QuantizedLinear):
        raise ValueError("model: a layer cannot replace itself; use bittensor.nn.LoRALinear")
    if adapted := [name for name, _ in _adapters(model)]:
        raise ValueError(f"model: expected one without adapters, found them in {', '.join(adapted)}; merge_lora_ first")
    if joined := [name for name, module in model.named_modules() if isinstance(module, FeedForwardDown)]:
        raise ValueError(
            f"model: expected one with layers of their own, found two in one step in {', '.join(joined)}; adapt it "
            "before fuse_feed_forward_"
        )
    parts = parts_of_convolutions(model)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear) and module not in parts
    ]
    chosen = [(name, layer) for name, layer in layers if filter_fn is None or filter_fn(name, layer)]
    if not chosen:
        raise ValueError(
            f"model: expected a QuantizedLinear to adapt, got {type(model).__name__} with {len(layers)}, all of them "
            "excluded; quantize_ it first"
        )
    made = [LoRALinear(layer, rank, alpha, dropout) for _, layer in chosen]
    places = ModulePlaces(model)
    model.requires_grad_(False)
    for (_, layer), adapter in zip(chosen, made, strict=True):
        places.replace(layer, adapter)
    return tuple(name for name, _ in chosen)


def lora_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapters of a model alone: A, B and alpha of each, under the names of the layers.

    ``safetensors.torch.save_file`` takes it as it is; `load_lora_state_dict_` undoes it.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model has no adapters.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> report = bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=32))
    >>> names = bittensor.add_lora_(model, rank=4)
    >>> {name: list(tensor.shape) for name, tensor in bittensor.lora_state_dict(model).items()}
    {'0.lora_a': [4, 64], '0.lora_b': [32, 4], '0.alpha': []}
    """
    adapters = _adapters_of(model)
    return {_key(name, entry): getattr(adapter, entry).detach() for name, adapter in adapters for entry in _ENTRIES}


def load_lora_state_dict_(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load adapters that `lora_state_dict` gave, into a model that has the same ones.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model has no adapters, or entries are missing, or too many, or of another shape, such as that of
            another rank. Nothing has changed then.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> report = bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=32))
    >>> names = bittensor.add_lora_(model, rank=4)
    >>> state = {name: tensor.clone() for name, tensor in bittensor.lora_state_dict(model).items()}
    >>> _ = torch.nn.init.normal_(model[0].lora_b)
    >>> bittensor.load_lora_state_dict_(model, state)
    >>> model[0].lora_b.any()
    tensor(False)
    """
    own = lora_state_dict(model)
    if wrong := sorted(own.keys() ^ state.keys()):
        kinds = [f"{'missing' if key in own else 'unexpected'} {key!r}" for key in wrong]
        raise ValueError(f"state: expected the adapters of the model, got {', '.join(kinds)}")
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise ValueError(f"state: expected {key!r} of shape {list(tensor.shape)}, got {list(state[key].shape)}")
    for key, tensor in own.items():
        tensor.copy_(state[key])


def merge_lora_(model: torch.nn.Module, method: str = "mse") -> tuple[MergedLayer, ...]:
    """Replace every `bittensor.nn.LoRALinear` of a model by one `bittensor.nn.QuantizedLinear`, in place.

    The sum of base and update is quantized again, in the form of the base: an update that is small beside the steps of
    the base may not survive. The result tells how much of it did; keep the adapters where that is too little. Where the
    update is 0, the weight of the base is kept.

    Args:
        model: changed in place.
        method: as in `bittensor.quantize`.

    Raises:
        TypeError, ValueError: `model` is no module; it has no adapters, or is one itself; an unknown method; or a layer
            that cannot be merged, as in `bittensor.nn.LoRALinear.merged`: the message names it. Nothing has changed
            then.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> report = bittensor.quantize_(model, bittensor.QuantizeConfig(bits=8, group_size=32))
    >>> names = bittensor.add_lora_(model, rank=4)
    >>> _ = torch.nn.init.normal_(model[0].lora_b)  # in place of training
    >>> [layer] = bittensor.merge_lora_(model)
    >>> layer.error < 0.02
    True
    """
    adapters = _adapters_of(model)
    if isinstance(model, LoRALinear):
        raise ValueError("model: a layer cannot replace itself; use its method merged")
    check_choice("method", method, METHODS)
    made = [_merged(name, adapter, method) for name, adapter in adapters]
    places = ModulePlaces(model)
    for (_, adapter), (layer, _) in zip(adapters, made, strict=True):
        places.replace(adapter, layer)
    return tuple(cost for _, cost in made)


def _merged(name: str, adapter: LoRALinear, method: str) -> tuple[QuantizedLinear, MergedLayer]:
    update = adapter.update()
    if not bool(update.any()):
        return adapter.on_weight(adapter.base.weight), MergedLayer(name, 0.0)
    exact = adapter.base.weight.dequantize() + update
    try:
        layer = adapter.requantized(exact, method)
    except ValueError as error:
        raise ValueError(f"{name}: expected base and update to have a sum that can be quantized; {error}") from error
    rounding, size = (layer.weight.dequantize() - exact).norm().item(), update.norm().item()
    return layer, MergedLayer(name, rounding / size if size else float("inf") if rounding else 0.0)


def _adapters(model: torch.nn.Module) -> list[tuple[str, LoRALinear]]:
    check_model(model)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]


def _adapters_of(model: torch.nn.Module) -> list[tuple[str, LoRALinear]]:
    adapters = _adapters(model)
    if not adapters:
        raise ValueError(f"model: expected one with adapters, got {type(model).__name__} without; add_lora_ first")
    return adapters


def _key(name: str, entry: str) -> str:
    return f"{name}.{entry}" if name else entry
