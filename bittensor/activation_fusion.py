"""Activations that become part of the packed linear layer before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.fx import Graph

from .module_traces import forward_traces, runs_its_class
from .nn import QuantizedLinear
from .registry import current_backend

_EPILOGUES: Mapping[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
}
"""The epilogues of `bittensor.linear`, by functions that compute the same."""


def fuse_activations_(model: torch.nn.Module) -> tuple[str, ...]:
    """Make activations part of the `bittensor.nn.QuantizedLinear` before them, in place.

    Where a module has a packed layer and an activation as children of its own, and what the layer returns goes to the
    activation only, the layer takes the activation as its ``epilogue``, and a ``torch.nn.Identity`` takes the place of
    the activation. The model computes the same up to rounding, in one pass over the output less. The keys of its
    state_dict stay, so that states of fused and unfused models load into each other.

    Activations are ReLU, SiLU, and GELU without approximation: modules of torch, or of any other library if their
    forward is one call of such a function, as is that of ``GELUActivation`` of transformers.

    It is for models that are used as a whole. It cannot see a caller that reaches into a module, calls the linear layer
    itself and wants the result before the activation, or a hook that is put on the activation later. Therefore nothing
    does this unasked.

    Whether an output goes to the activation only is read from the forward of the module, which ``torch.fx`` traces, for
    training and for evaluation, with tensors as arguments. Left as they are:

    - modules whose forward cannot be traced, has arguments with defaults, or sets attributes; and those that do
      anything but call the layer, such as reading its bias, or that decide by the type of the activation;
    - layers of other types, subclasses among them; those that have an epilogue, have hooks, are called more than once,
      or are registered in several places of the model;
    - activations that have hooks, parameters or buffers, or are called more than once by the module. One that other
      modules have too stays there;
    - epilogues that the current backend does not declare.

    Args:
        model: changed in place.

    Returns:
        Names of the linear layers that took an activation, in the order of the model.

    Raises:
        TypeError: `model` is no module.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 10))
    >>> report = bittensor.quantize_(model, bittensor.QuantizeConfig(bits=4, group_size=32))
    >>> x = torch.randn(3, 64)
    >>> y = model(x)
    >>> bittensor.fuse_activations_(model)
    ('0',)
    >>> model[1]
    Identity()
    >>> torch.allclose(model(x), y, atol=1e-2)
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    fused: list[str] = []
    for name, parent in list(model.named_modules()):
        for pair in _pairs(parent, places):
            linear, activation = parent.get_submodule(pair.linear), parent.get_submodule(pair.activation)
            assert isinstance(linear, QuantizedLinear)
            linear.set_epilogue(pair.epilogue)
            parent._modules[pair.activation] = torch.nn.Identity().train(activation.training)
            fused.append(f"{name}.{pair.linear}" if name else pair.linear)
    return tuple(fused)


class _Pair(NamedTuple):
    """Names of a layer and the activation after it, in the module that has both, and what the activation computes."""

    linear: str
    activation: str
    epilogue: str


def _pairs(parent: torch.nn.Module, places: Mapping[int, int]) -> list[_Pair]:
    """What can be fused in a module, in the order of its calls; `places` counts where each module is registered."""
    children = {name: child for name, child in parent._modules.items() if child is not None}
    linears = [name for name, child in children.items() if _takes_epilogue(child) and places[id(child)] == 1]
    if not linears:
        return []
    declared = current_backend().capabilities.epilogues
    found = {name: _epilogue_of(child) for name, child in children.items()}
    epilogues = {name: each for name, each in found.items() if each is not None and each in declared}
    if not epilogues or (before := forward_traces(parent, {})) is None:
        return []
    first, *others = (_pairs_in(graph, linears, epilogues) for graph in before)
    pairs = [pair for pair in first if all(pair in other for other in others)]
    # Whoever reads more of these modules than their results, or has them from elsewhere, is now traced differently.
    stand_ins: dict[str, torch.nn.Module] = {pair.linear: torch.nn.Module() for pair in pairs}
    stand_ins |= {pair.activation: torch.nn.Identity() for pair in pairs}
    after = forward_traces(parent, stand_ins) if pairs else None
    return pairs if after is not None and list(map(str, before)) == list(map(str, after)) else []


def _pairs_in(graph: Graph, linears: Collection[str], epilogues: Mapping[str, str]) -> list[_Pair]:
    """Layers whose only use is that of the activation after them, each of both called once."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in linears or calls[node.target] != 1 or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        if user.op != "call_module" or user.target not in epilogues or calls[user.target] != 1:
            continue
        if user.args == (node,) and not user.kwargs:
            pairs.append(_Pair(str(node.target), str(user.target), epilogues[str(user.target)]))
    return pairs


def _takes_epilogue(module: torch.nn.Module) -> bool:
    """Whether it is a packed layer that can end with an activation."""
    return type(module) is QuantizedLinear and module.epilogue is None and runs_its_class(module)


def _epilogue_of(module: torch.nn.Module) -> str | None:
    """The epilogue that a module computes, and does nothing else; None if there is none."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()) or not runs_its_class(module):
        return None
    graphs = forward_traces(module, {})
    if graphs is None:
        return None
    first, *others = (_epilogue_in(graph, module) for graph in graphs)
    return first if all(each == first for each in others) and not module.state_dict() else None


def _epilogue_in(graph: Graph, module: torch.nn.Module) -> str | None:
    """The same for one trace of it."""
    if len(graph.nodes) != 3:
        return None
    given, called, returned = graph.nodes
    if given.op != "placeholder" or called.args != (given,) or returned.args != (called,):
        return None
    if called.op == "call_module":
        return None if called.kwargs else _epilogue_of(module.get_submodule(str(called.target)))
    settings = {name: value for name, value in called.kwargs.items() if name != "inplace"}
    if called.op != "call_function" or settings not in ({}, {"approximate": "none"}):
        return None
    return _EPILOGUES.get(called.target)
