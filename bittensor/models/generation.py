"""Generation: one token after the other, the most likely or a random one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from .caching import KeyValueCache
from .llama import Llama

_FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, logits are divided by it and a token is drawn.
        top_k: draw from this many of the likeliest tokens; 0 means all.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws; 64 bits.

    Raises:
        ValueError: a value out of range.

    >>> Sampling(temperature=0.8, top_p=0.95, seed=1).temperature
    0.8
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected above 0 and up to 1, got {self.top_p}")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed: expected -2**63 to 2**64 - 1, got {self.seed}")

    def choose(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """A token for logits ``[vocabulary]`` of any float dtype.

        Raises:
            ValueError: a draw from logits whose largest is not finite, or among which are NaNs.
        """
        if self.temperature == 0:  # the first of the largest; numpy takes a tenth of the time of torch
            return int(logits.detach().float().numpy().argmax())
        values = logits.detach().float()
        largest = float(values.max())
        if not math.isfinite(largest):
            raise ValueError(f"logits: expected finite ones to draw a token from, the largest is {largest}")
        tokens = _likeliest(values, self.top_k) if 0 < self.top_k < len(values) else None
        if tokens is not None:
            values = values[tokens]
        # The largest becomes 0 before the division, which therefore overflows to -inf at most.
        probabilities = ((values - largest) / min(max(self.temperature, _FLOAT32.tiny), _FLOAT32.max)).softmax(-1)
        if self.top_p < 1:
            if tokens is None:
                tokens = _near_nucleus(values, probabilities, self.top_p)
                probabilities = probabilities[tokens]
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.where(before < self.top_p, 0.0)
        drawn = _draw(probabilities, generator)
        return drawn if tokens is None else int(tokens[drawn])


def _draw(probabilities: torch.Tensor, generator: torch.Generator) -> int:
    """An index with a chance in proportion to its value. `torch.multinomial` draws a number for each."""
    ends = probabilities.cumsum(dim=-1, dtype=torch.float64)
    drawn = ends[-1] * torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    if drawn == ends[-1]:  # rounded up
        drawn = torch.zeros_like(drawn)
    return int(torch.searchsorted(ends, drawn, right=True))


def _near_nucleus(values: torch.Tensor, probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Indices of values in falling order, of equal ones the first, from which only some beyond `top_p` are missing.

    Those with so little have less than half of ``1 - top_p`` together. The others are few, and only they are sorted.
    """
    (candidates,) = (probabilities >= (1 - top_p) / (2 * len(values))).nonzero(as_tuple=True)
    return candidates[values[candidates].argsort(descending=True, stable=True)]


def _likeliest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` largest values, in falling order; of equal ones the first. Only those are sorted."""
    least = values.topk(count, sorted=False).values.min()
    (candidates,) = (values >= least).nonzero(as_tuple=True)  # more than `count` if several are equal to the least
    return candidates[values[candidates].argsort(descending=True, stable=True)[:count]]


def generate(
    model: Llama,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, until a token of `stop`, which is not yielded, or `max_new_tokens`.

    The greedy choice, and a draw with the same seed, are the same in every run.

    Raises:
        ValueError: no prompt, a token that the vocabulary does not have, or more tokens than the model's context.

    >>> from bittensor.models import LlamaConfig
    >>> sizes = {"embed_tokens": (50, 32), "gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    >>> sizes |= {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    >>> config = LlamaConfig(1, 32, 2, 1, head_size=16, norm_epsilon=1e-5, rope_base=10000.0, context=64)
    >>> model = Llama(config, lambda name: torch.randn(sizes.get(name.split(".")[-2], (32,))), tied=True)
    >>> tokens = list(generate(model, [1, 2, 3], 5))
    >>> len(tokens), tokens == list(generate(model, [1, 2, 3], 5)), list(generate(model, [1, 2, 3], 5, stop=tokens[:1]))
    (5, True, [])
    """
    for _, token in generate_together(model, [prompt], max_new_tokens, sampling, stop):
        yield token


def generate_together(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    ended: Collection[int] = (),
) -> Iterator[tuple[int, int]]:
    """Yield the tokens that follow several prompts: ``(number of the prompt, token)``, a round of tokens at a time.

    Prompts may differ in length. Each has a cache and a generator of its own, and leaves when it is done. A prompt also
    leaves whose number is in `ended`, which the caller may add to between tokens. On packed weights, the tokens of a
    prompt are those that `generate` yields for it alone.

    Raises:
        ValueError: as `generate`; no prompts.

    >>> from bittensor.models import LlamaConfig
    >>> sizes = {"embed_tokens": (50, 32), "gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
    >>> sizes |= {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    >>> config = LlamaConfig(1, 32, 2, 1, head_size=16, norm_epsilon=1e-5, rope_base=10000.0, context=64)
    >>> model = Llama(config, lambda name: torch.randn(sizes.get(name.split(".")[-2], (32,))), tied=True)
    >>> [number for number, token in generate_together(model, [[1, 2, 3], [4]], 3)]
    [0, 1, 0, 1, 0, 1]
    """
    if not prompts:
        raise ValueError("prompts: expected at least one, got none")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    for prompt in prompts:
        _check_prompt(model, prompt, max_new_tokens)
    sampling = Sampling() if sampling is None else sampling
    generators = [torch.Generator("cpu").manual_seed(sampling.seed) for _ in prompts]
    caches = [KeyValueCache(model.config, len(prompt) + max_new_tokens) for prompt in prompts]
    tokens = [torch.tensor(prompt, device="cpu") for prompt in prompts]
    running = list(range(len(prompts)))
    forward = model.bound()
    for _ in range(max_new_tokens):
        logits = forward([tokens[number] for number in running], [caches[number] for number in running], True)
        chosen = [sampling.choose(row, generators[number]) for row, number in zip(logits, running, strict=True)]
        going_on = [(number, token) for number, token in zip(running, chosen, strict=True) if token not in stop]
        yield from going_on
        running = [number for number, _ in going_on if number not in ended]
        if not running:
            return
        for number, token in going_on:
            tokens[number] = torch.tensor([token], device="cpu")


def _check_prompt(model: Llama, prompt: Sequence[int], max_new_tokens: int) -> None:
    if not prompt:
        raise ValueError("prompt: expected at least one token, got none")
    vocabulary = model.vocabulary
    if (wrong := next((token for token in prompt if not 0 <= token < vocabulary), None)) is not None:
        raise ValueError(f"prompt: expected tokens 0..{vocabulary - 1}, got {wrong}")
    if len(prompt) + max_new_tokens > model.config.context:
        raise ValueError(
            f"prompt: {len(prompt)} tokens and {max_new_tokens} new ones are more than the {model.config.context} "
            "that the model can attend to"
        )
