"""The experts of a mixture with linear layers of their own, where a model has stacks of their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..tracing import never_compiled


class ExpertLayers(torch.nn.Module):
    """What a module with stacked weights of experts computes, by linear layers for each of them.

    Models of transformers have the weights of all experts in parameters of three dimensions, ``gate_up_proj`` or
    ``up_proj``, and ``down_proj``, which no layer holds that could be packed. Here the layers of expert 3 are
    ``3.gate_proj``, ``3.up_proj`` and ``3.down_proj``, as most checkpoints name them; where the stack has the outputs
    of gate and up projection in turns, ``3.gate_up_proj``. They share the memory of the stacks.

    Each row goes through the experts that it is sent to. Their results are added in the order of the experts, so that a
    row has the same bits in any batch if the layers do, as packed ones do.

    Args:
        stacked: a module for which `bittensor.stacked_experts.is_stacked` holds. It stays as it is.

    Raises:
        ValueError: it has parameters besides these weights and their biases, or some of the experts only.
    """

    def __init__(self, stacked: torch.nn.Module) -> None:
        super().__init__()
        source: Any = stacked
        stacks = stacks_of(source)
        known = {*stacks, *(f"{stack}_bias" for stack in stacks if trait_of(source, "has_bias"))}
        if others := sorted({name for name, _ in stacked.named_parameters(recurse=False)} - known):
            raise ValueError(f"it has parameters besides its weights: {', '.join(others)}")
        if trait_of(source, "_is_expert_parallel"):
            raise ValueError("it has some of the experts only")
        self.num_experts = len(source.down_proj)
        for name, child in stacked.named_children():
            self.add_module(name, child)
        # What is computed between the layers is a method of its class: a copy without weights is called for that. It is
        # no submodule, as its own ones are here already.
        rules: Any = copy.copy(stacked)
        rules._parameters = {}
        self._rules = (rules,)
        for expert in range(self.num_experts):
            layers = _Expert()
            for stack, names in stacks.items():
                for place, name in enumerate(names):
                    layers.add_module(name, _linear(source, stack, expert, place, len(names)))
            self.add_module(str(expert), layers)
        self.train(stacked.training)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Rows through the experts that they are sent to.

        Args:
            hidden_states: ``[rows, features]``.
            top_k_index: the experts of each row, int64 ``[rows, k]``. A number that is none of an expert is nowhere.
            top_k_weights: what the results are multiplied by, floats ``[rows, k]``.

        Returns:
            ``[rows, features]`` in the dtype of `hidden_states`.
        """
        # How many rows each expert gets depends on values: torch.compile would make a program for each number.
        result: torch.Tensor = never_compiled(self._routed, hidden_states, top_k_index, top_k_weights)
        return result

    def _routed(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        chosen = top_k_index.reshape(-1)
        known = ((chosen >= 0) & (chosen < self.num_experts)).nonzero().squeeze(1)
        order = known[chosen[known].argsort(stable=True)]
        if not len(order):
            return torch.zeros_like(hidden_states)
        rows = order // top_k_index.shape[-1]
        experts, counts = torch.unique_consecutive(chosen[order], return_counts=True)
        calls = list(zip(experts.tolist(), counts.tolist(), strict=True))
        rules: Any = self._rules[0]
        first, last = stacks_of(rules).values()
        inner = torch.cat(self._each(first, calls, hidden_states[rows]), dim=-1)
        inner = rules._apply_gate(inner) if trait_of(rules, "has_gate") else rules.act_fn(inner)
        (y,) = self._each(last, calls, inner)
        if trait_of(rules, "has_post_expert_norm"):
            y = rules.post_expert_norm(y)
        weighted = y * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        return weighted.new_zeros(hidden_states.shape).index_add(0, rows, weighted).to(hidden_states.dtype)

    def _each(self, names: Sequence[str], calls: Sequence[tuple[int, int]], x: torch.Tensor) -> list[torch.Tensor]:
        """Results of the layers `names` of the experts, each on its rows of x, which follow each other."""
        results: list[list[torch.Tensor]] = [[] for _ in names]
        for (expert, _), part in zip(calls, torch.split(x, [count for _, count in calls]), strict=True):
            layers = self._modules[str(expert)]
            for name, result in zip(names, results, strict=True):
                result.append(getattr(layers, name)(part))
        return [torch.cat(result) for result in results]

    def float_layers(self) -> list[str]:
        """Names of the layers that are not packed."""
        return [name for name, layer in self.named_modules() if isinstance(layer, torch.nn.Linear)]

    def stacked(self) -> torch.nn.Module:
        """The module with stacks of the weights again; they are copies.

        Raises:
            AttributeError: a layer is packed.
        """
        rules: Any = self._rules[0]
        stacked: Any = copy.copy(rules)
        stacked._parameters = {}
        for stack, names in stacks_of(rules).items():
            layers = [[self.get_submodule(f"{expert}.{name}") for name in names] for expert in range(self.num_experts)]
            weights = [torch.cat([layer.get_parameter("weight").detach() for layer in each]) for each in layers]
            weights = [weight.t() for weight in weights] if trait_of(rules, "is_transposed") else weights
            stacked.register_parameter(stack, torch.nn.Parameter(torch.stack(weights)))
            if trait_of(rules, "has_bias"):
                biases = [torch.cat([layer.get_parameter("bias").detach() for layer in each]) for each in layers]
                stacked.register_parameter(f"{stack}_bias", torch.nn.Parameter(torch.stack(biases)))
        return stacked.train(self.training)  # type: ignore[no-any-return]


_TRAITS = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_concatenated": True,
    "is_transposed": False,
    "_is_expert_parallel": False,
}
"""What the decorator ``use_experts_implementation`` of transformers says of a module, and what holds where a version of
it does not say so. That gate and up projection are one after the other is then true of names at most: the outputs of
both are put together again in the order of the stack."""


def trait_of(stacked: Any, name: str) -> bool:
    """One of what transformers says of a module with stacked weights."""
    return bool(getattr(stacked, name, _TRAITS[name]))


def stacks_of(stacked: Any) -> Mapping[str, tuple[str, ...]]:
    """The stacks of weights of a module, with the layers that one expert has of each, in the order of their outputs."""
    if not trait_of(stacked, "has_gate"):
        return {"up_proj": ("up_proj",), "down_proj": ("down_proj",)}
    inner = ("gate_proj", "up_proj") if trait_of(stacked, "is_concatenated") else ("gate_up_proj",)
    return {"gate_up_proj": inner, "down_proj": ("down_proj",)}


class _Expert(torch.nn.Module):
    """The layers of an expert. `ExpertLayers` calls them."""


def _linear(stacked: Any, stack: str, expert: int, part: int, parts: int) -> torch.nn.Linear:
    """A layer on views of the stacks: on one of as many parts of the outputs of an expert."""
    weights = getattr(stacked, stack)
    tensors = [weights.detach()[expert].t() if trait_of(stacked, "is_transposed") else weights.detach()[expert]]
    if trait_of(stacked, "has_bias"):
        tensors.append(getattr(stacked, f"{stack}_bias").detach()[expert])
    weight, *bias = (torch.nn.Parameter(tensor.chunk(parts)[part], weights.requires_grad) for tensor in tensors)
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = weight
    linear.register_parameter("bias", bias[0] if bias else None)
    return linear
