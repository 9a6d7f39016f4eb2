"""How much of a model no quantization of its layers reaches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .nn import WeightModule


@dataclass(frozen=True)
class MatricesElsewhere:
    """Parameters in matrices of modules that were not asked for. Its str is a sentence without a subject.

    Attributes:
        wanted: number of parameters in the matrices that were.
        others: number of parameters by the name of the type of module.
    """

    wanted: int
    others: Counter[str]

    @property
    def are_most(self) -> bool:
        """Whether they are more than those asked for."""
        return self.others.total() > self.wanted

    def kinds(self) -> str:
        """The largest types, or nothing."""
        return f" (instead: {', '.join(kind for kind, _ in self.others.most_common(3))})" if self.others else ""

    def __str__(self) -> str:
        part = self.others.total() / (self.wanted + self.others.total())
        return f"{part:.0%} of the parameters of its matrices stay floats: they are in no torch.nn.Linear{self.kinds()}"


def matrices_elsewhere(
    model: torch.nn.Module,
    wanted: Callable[[torch.nn.Module], bool],
    counts: Callable[[str], bool] = lambda _: True,
) -> MatricesElsewhere:
    """Parameters with two dimensions or more, each once, but those of embeddings, which are tables.

    Packed weights are as many of those asked for.

    Args:
        wanted: whether a module is asked for.
        counts: called with the name of a module: False leaves its parameters out, also where others share them.
    """
    modules = list(model.named_modules())
    left_out = {  # and then those seen
        id(parameter)
        for name, module in modules
        if isinstance(module, torch.nn.Embedding) or not counts(name)
        for parameter in module.parameters(recurse=False)
    }
    asked, others = 0, Counter[str]()
    for _, module in modules:
        if isinstance(module, WeightModule):
            asked += math.prod(module.weight.shape)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1 and id(parameter) not in left_out:
                left_out.add(id(parameter))
                if wanted(module):
                    asked += parameter.numel()
                else:
                    others[type(module).__name__] += parameter.numel()
    return MatricesElsewhere(asked, others)
