"""What a method of a module does, as torch.fx traces it: where the results of the modules that it calls go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.fx import Graph, Tracer

from .module_replacement import has_hooks


def forward_traces(
    module: torch.nn.Module,
    stand_ins: Mapping[str, torch.nn.Module],
    method: str = "forward",
    enters: Callable[[torch.nn.Module], bool] = lambda _: False,
) -> list[Graph] | None:
    """A method of a module for evaluation and for training, called with tensors, and with `stand_ins` for some modules.

    Args:
        stand_ins: by their names in `module`.
        method: of its class; it is not what an attribute of the same name does.
        enters: whether a module that is called is traced too, and not one step.

    Returns:
        The two traces; None if it cannot be traced, or if the traces may not be all that it does.
    """
    if method in vars(module):
        return None
    graphs = []
    for training in (False, True):
        copies: list[torch.nn.Module] = []
        copy = _copy(module, training, stand_ins, "", enters, copies)
        before = [dict(vars(each)) for each in copies]
        tracer = _Tracer(method, {id(each) for each in copies})
        try:
            with torch.random.fork_rng(devices=()):
                graph = tracer.trace(copy)
        except Exception:  # the method is code of others, which may fail in any way without tensors
            return None
        constants = set(tracer.tensor_attrs.values())  # which the tracer put there
        for each, attributes in zip(copies, before, strict=True):
            changed = {name for name, value in vars(each).items() if attributes.get(name) is not value}
            if changed - (constants - attributes.keys()):
                return None
        if any(node.op == "placeholder" and (node.args or str(node.target).startswith("*")) for node in graph.nodes):
            return None  # who leaves out an argument may take another path
        graphs.append(graph)
    return graphs


def runs_its_class(module: torch.nn.Module) -> bool:
    """Whether a call is that of the forward of its class, without hooks."""
    return "forward" not in vars(module) and not has_hooks(module)


def _copy(
    module: torch.nn.Module,
    training: bool,
    stand_ins: Mapping[str, torch.nn.Module],
    prefix: str,
    enters: Callable[[torch.nn.Module], bool],
    copies: list[torch.nn.Module],
) -> torch.nn.Module:
    """A copy, which the method may change: its own dictionaries, the same tensors, and copies of what is traced too."""
    copy = object.__new__(type(module))
    copies.append(copy)
    vars(copy).update(vars(module), training=training)
    for kind in ("_parameters", "_buffers", "_modules"):
        vars(copy)[kind] = dict(vars(module)[kind])
    for name, child in copy._modules.items():
        if prefix + name in stand_ins:
            copy._modules[name] = stand_ins[prefix + name]
        elif child is not None and enters(child):
            copy._modules[name] = _copy(child, training, stand_ins, f"{prefix}{name}.", enters, copies)
    return copy


class _Tracer(Tracer):
    """Traces one method: the modules that it calls are steps, but for those entered, and so are reads of tensors."""

    proxy_buffer_attributes = True  # or the trace would run what changes them

    def __init__(self, method: str, entered: set[int]) -> None:
        super().__init__()
        self.traced_func_name = method
        self._entered = entered

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._entered
