"""Replacing modules of a model, and what would be lost by it."""

from __future__ import annotations

import torch


def replace_module(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Put `new` in place of `old` everywhere below `model`: a module may be registered in several places."""
    places = [(parent, key) for parent in model.modules() for key, each in parent._modules.items() if each is old]
    for parent, key in places:
        parent._modules[key] = new


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a call of the module, or its backward pass, runs hooks of its own."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)
