"""Replacing modules of a model, and what would be lost by it."""

from __future__ import annotations

import torch


class ModulePlaces:
    """Where the modules below a model are registered, some in several places: one walk for many replacements.

    It refers to modules that have children and to no others, so that a layer which was replaced is freed. `replace`
    alone may change the model from here on.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        for parent in model.modules():
            for key, child in parent._modules.items():
                if child is not None:
                    self._places.setdefault(id(child), []).append((parent, key))

    def replace(self, old: torch.nn.Module, new: torch.nn.Module) -> None:
        """Put `new` in every place of `old`, which was below the model from the beginning."""
        for parent, key in self._places.pop(id(old)):
            parent._modules[key] = new


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a call of the module, or its backward pass, runs hooks of its own."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)
