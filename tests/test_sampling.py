"""How the next token is chosen from logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bittensor.models import Sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_of_the_largest_logits_is_chosen(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 9.0], [3.0, 0.0], [2.0, 0.0], [3.0, 0.0]], dtype=dtype, requires_grad=True)
    assert Sampling().choose(logits[:, 0], torch.Generator()) == 1  # of a column, and no numbers of another


def test_draws_follow_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.2])

    def shares(sampling: Sampling) -> list[float]:
        draws = torch.tensor([sampling.choose(probabilities.log(), generator) for _ in range(2000)])
        return [float((draws == token).float().mean()) for token in range(3)]

    assert shares(Sampling(temperature=1.0)) == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    assert shares(Sampling(temperature=1.0, top_k=2)) == pytest.approx([0.625, 0.375, 0], abs=0.04)
    assert shares(Sampling(temperature=1.0, top_p=0.6)) == pytest.approx([0.625, 0.375, 0], abs=0.04)
    assert shares(Sampling(temperature=0.5)) == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.04)


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}]
)
def test_sampling_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)
