"""Experts of models of transformers, whose weights are stacked in parameters: found by what they have, unstacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .module_replacement import ModulePlaces
from .module_traces import runs_its_class
from .nn import ExpertLayers
from .nn.expert_layers import stacks_of


def is_stacked(module: Any) -> bool:
    """Whether a module has weights of experts, stacked as transformers does.

    >>> is_stacked(torch.nn.Linear(2, 3))
    False
    """
    if not all(hasattr(module, name) for name in ("is_transposed", "has_bias", "_apply_gate")):
        return False
    stacks = [module._parameters.get(name) for name in stacks_of(module)]
    return all(stack is not None and stack.dim() == 3 for stack in stacks)


@dataclass
class UnstackedExperts:
    """Experts with layers of their own, for now.

    Attributes:
        whole: modules that stay stacked, by name, and why.
        changing: to be filled: names of layers that will be replaced.
    """

    whole: dict[str, str]
    changing: list[str] = field(default_factory=list)


@contextmanager
def unstacked_experts(model: torch.nn.Module) -> Iterator[UnstackedExperts]:
    """Replace modules with stacked weights by `bittensor.nn.ExpertLayers`, in place; some of them for good.

    At the end those are stacked again that have none of the layers in `UnstackedExperts.changing`; after an error, all.
    The weights of the others are freed with the last layer on them.

    Args:
        model: changed in place.
    """
    stacked = {name: module for name, module in model.named_modules() if is_stacked(module)}
    owners = Counter(id(each) for module in model.modules() for each in module.parameters(recurse=False))
    places = ModulePlaces(model)
    experts = UnstackedExperts({})
    for name, module in list(stacked.items()):
        try:
            places.replace(module, _unstacked(model, module, owners))
        except ValueError as error:
            experts.whole[name] = str(error)
            del stacked[name]
    try:
        yield experts
    except BaseException:
        experts.changing.clear()
        raise
    finally:
        places = ModulePlaces(model)
        for name, module in stacked.items():
            if not any(layer.startswith(f"{name}.") for layer in experts.changing):
                places.replace(model.get_submodule(name), module)


def _unstacked(model: torch.nn.Module, module: torch.nn.Module, owners: Mapping[int, int]) -> ExpertLayers:
    if module is model:
        raise ValueError("it cannot replace itself; use bittensor.nn.ExpertLayers")
    if not runs_its_class(module):
        raise ValueError("it has hooks or a forward of its own, which would be lost")
    if any(owners[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
        raise ValueError("its weights are shared with another module")
    return ExpertLayers(module)
