"""Replacing modules of a model."""

from __future__ import annotations

import torch


def replace_module(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Put `new` in place of `old` everywhere below `model`: a module may be registered in several places."""
    places = [(parent, key) for parent in model.modules() for key, each in parent._modules.items() if each is old]
    for parent, key in places:
        parent._modules[key] = new
