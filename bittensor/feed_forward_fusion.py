"""Feed-forward networks of encoders whose two packed layers become one step."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from .module_traces import forward_traces, runs_its_class
from .nn import FeedForwardDown, FeedForwardUp, QuantizedLinear

_METHODS = ("feed_forward_chunk", "ff_chunk")
"""The methods of layers in transformers that compute the feed-forward network, of some of the tokens."""


def fuse_feed_forward_(model: torch.nn.Module) -> tuple[str, ...]:
    """Compute both layers of feed-forward networks in one step, in place, without storing what lies between them.

    Layers of encoders in transformers (BERT and many others) have a method ``feed_forward_chunk`` or ``ff_chunk``.
    Where it calls two packed layers, and what the first returns goes to the second only, a
    `bittensor.nn.FeedForwardUp` and a `bittensor.nn.FeedForwardDown` take their places: the first leaves its product to
    the second. Outputs have the same bits. The keys of the state_dict stay, so that states of fused and unfused models
    load into each other.

    An activation between the two must be part of the first: call `bittensor.fuse_activations_` before this, or have
    `bittensor.quantize_` do it.

    It is for models that are used as a whole. It cannot see a caller that reaches into a layer, calls the first of the
    two itself and wants its result, or a hook that is put on it later; both would get what the layer is given.
    Therefore nothing does this unasked. `bittensor.add_lora_` refuses such models.

    Where results go is read from a trace of the method and of the modules that it calls, by ``torch.fx``, for training
    and for evaluation, with tensors as arguments. Left as they are:

    - networks whose method cannot be traced, has arguments with defaults, or sets attributes, and those that do
      anything but call the two layers, such as reading their bias;
    - layers that another method of the class reaches by the same name, and those that have hooks, or are registered in
      several places of the model, or are in modules of which this is so;
    - layers of other types, subclasses among them, and those that are called more than once;
    - pairs with anything but ``torch.nn.Identity`` in between, with different activation modes, or with an epilogue of
      the second.

    Args:
        model: changed in place.

    Returns:
        Names of the second layers, in the order of the model.

    Raises:
        TypeError: `model` is no module.

    >>> import torch, bittensor
    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> model = BertModel(BertConfig(vocab_size=20, **sizes)).eval()
    >>> config = bittensor.QuantizeConfig(bits=4, group_size=32)
    >>> report = bittensor.quantize_(model, config, fuse_activations=True)
    >>> x = torch.tensor([[1, 2, 3]])
    >>> y = model(x).last_hidden_state
    >>> fuse_feed_forward_(model)
    ('encoder.layer.0.output.dense',)
    >>> torch.equal(model(x).last_hidden_state, y)
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    fused: list[str] = []
    for name, parent in list(model.named_modules()):
        for method in _METHODS:
            for pair in _pairs(parent, method, places):
                up = FeedForwardUp(_layer(parent, pair.up))
                down = FeedForwardDown(_layer(parent, pair.down), up)
                parent.set_submodule(pair.up, up)
                parent.set_submodule(pair.down, down)
                fused.append(f"{name}.{pair.down}" if name else pair.down)
    return tuple(fused)


class _Pair(NamedTuple):
    """Names of the two layers, in the module that has the method."""

    up: str
    down: str


def _pairs(parent: torch.nn.Module, method: str, places: Mapping[int, int]) -> list[_Pair]:
    """What can be fused of a method; `places` counts where each module is registered."""
    if not inspect.isfunction(getattr(type(parent), method, None)):
        return []
    before = forward_traces(parent, {}, method, _is_traced_too)
    if before is None:
        return []
    first, *others = (list(_pairs_in(graph, parent)) for graph in before)
    pairs = [pair for pair in first if all(pair in other for other in others)]
    elsewhere = _names_in_other_methods(type(parent), method)
    pairs = [pair for pair in pairs if all(_is_reached_once(parent, name, places, elsewhere) for name in pair)]
    # Whoever reads more of these layers than their results, or has them from elsewhere, is now traced differently.
    stand_ins = {name: torch.nn.Module() for pair in pairs for name in pair}
    after = forward_traces(parent, stand_ins, method, _is_traced_too) if pairs else None
    return pairs if after is not None and list(map(str, before)) == list(map(str, after)) else []


def _pairs_in(graph: Graph, parent: torch.nn.Module) -> Iterator[_Pair]:
    """Layers whose only use is that of another, each of both called once."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if not _calls_layer(node, parent, calls):
            continue
        user = _only_use(node)
        while user is not None and _calls_identity(user, parent):
            user = _only_use(user)
        if user is None or not _calls_layer(user, parent, calls):
            continue
        up, down = _layer(parent, str(node.target)), _layer(parent, str(user.target))
        if down.epilogue is None and up.activation_mode == down.activation_mode and up.out_features == down.in_features:
            yield _Pair(str(node.target), str(user.target))


def _calls_layer(node: Node, parent: torch.nn.Module, calls: Mapping[object, int]) -> bool:
    """Whether it is the only call of a packed layer, on one value."""
    if node.op != "call_module" or calls[node.target] != 1 or len(node.args) != 1 or node.kwargs:
        return False
    module = parent.get_submodule(str(node.target))
    return type(module) is QuantizedLinear and runs_its_class(module)


def _calls_identity(node: Node, parent: torch.nn.Module) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    module = parent.get_submodule(str(node.target))
    return type(module) is torch.nn.Identity and runs_its_class(module)


def _only_use(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_traced_too(module: torch.nn.Module) -> bool:
    return any(child is not None for child in module._modules.values()) and runs_its_class(module)


def _is_reached_once(parent: torch.nn.Module, name: str, places: Mapping[int, int], elsewhere: Set[str]) -> bool:
    """Whether a call of the method is the only way to a layer."""
    path = name.split(".")
    modules = [parent.get_submodule(".".join(path[: length + 1])) for length in range(len(path))]
    return path[0] not in elsewhere and all(places[id(each)] == 1 for each in modules)


def _names_in_other_methods(of: type, method: str) -> Set[str]:
    """Names of attributes that a class reads beside the method, but for its constructor, which makes them."""
    names: set[str] = set()
    for each in of.__mro__[: of.__mro__.index(torch.nn.Module)]:
        for name, value in vars(each).items():
            function: Any = value.fget if isinstance(value, property) else value
            function = inspect.unwrap(function)
            if name not in (method, "__init__") and inspect.isfunction(function):
                names |= _names_in(function.__code__)
    return names


def _names_in(code: CodeType) -> set[str]:
    """The same of a piece of code, with those in it."""
    inner = [_names_in(each) for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*inner)


def _layer(parent: torch.nn.Module, name: str) -> QuantizedLinear:
    layer = parent.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    return layer
