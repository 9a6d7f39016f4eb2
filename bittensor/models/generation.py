"""Generation: one token after the other, the most likely or a random one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from .llama import KeyValueCache, Llama


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, logits are divided by it and a token is drawn.
        top_k: draw from this many of the likeliest tokens; 0 means all.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws.

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

    def choose(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """A token for logits float32 ``[vocabulary]``."""
        if self.temperature == 0:
            return int(logits.argmax())
        values, tokens = (logits / self.temperature).sort(descending=True, stable=True)
        if self.top_k:
            values, tokens = values[: self.top_k], tokens[: self.top_k]
        probabilities = values.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.where(before < self.top_p, 0.0)
        return int(tokens[probabilities.multinomial(1, generator=generator)])


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
    """
    if not prompt:
        raise ValueError("prompt: expected at least one token, got none")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    capacity = len(prompt) + max_new_tokens
    if capacity > model.config.context:
        raise ValueError(
            f"prompt: {len(prompt)} tokens and {max_new_tokens} new ones are more than the {model.config.context} "
            "that the model can attend to"
        )
    sampling = Sampling() if sampling is None else sampling
    generator = torch.Generator().manual_seed(sampling.seed)
    cache = KeyValueCache(model.config, capacity)
    tokens = torch.tensor(prompt)
    for _ in range(max_new_tokens):
        token = sampling.choose(model(tokens, cache, last=True)[0], generator)
        if token in stop:
            return
        yield token
        tokens = torch.tensor([token])
