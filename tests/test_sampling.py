"""How the next token is chosen from logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bittensor.models import Sampling
from bittensor.models.generation import _draw, _likeliest, _near_nucleus


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


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-39, 1e-38, 1e-30])
@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_a_tiny_temperature_is_greedy(temperature: float, limits: dict[str, Any]) -> None:
    sampling = Sampling(temperature=temperature, **limits)
    logits = torch.tensor([-torch.inf, 3.0, 7.5, -40.0])
    assert {sampling.choose(logits, torch.Generator().manual_seed(seed)) for seed in range(20)} == {2}


def test_a_huge_temperature_makes_finite_logits_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([-torch.inf, 3.0, 7.5])
    draws = [Sampling(temperature=1e300).choose(logits, generator) for _ in range(1000)]
    assert draws.count(1) == pytest.approx(500, abs=60)
    assert draws.count(0) == 0


@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 0.9}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_nothing_can_be_drawn_from(value: float, limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="logits: expected finite ones to draw a token from, the largest is"):
        Sampling(temperature=1.0, **limits).choose(torch.tensor([1.0, value, 2.0]), torch.Generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 40, 299, 300, 1000])
def test_the_likeliest_are_those_of_a_stable_sort(count: int, dtype: torch.dtype) -> None:
    """Also where some are equal: top_k=1 is the greedy choice."""
    generator = torch.Generator().manual_seed(count)
    logits = torch.randint(0, 30, (300,), generator=generator).to(dtype)
    first = logits.float().argsort(descending=True, stable=True)[:count]
    if count < 300:
        assert torch.equal(_likeliest(logits.float(), count), first)
    sampling = Sampling(temperature=1e6, top_k=count)  # nearly all alike
    drawn = {sampling.choose(logits, generator) for _ in range(3000)}
    assert drawn <= set(first.tolist())
    assert len(drawn) > 0.95 * len(first)


def test_no_draw_sorts_a_vocabulary() -> None:
    """A sort of 49152 logits takes several times as long as the draw."""
    sizes: list[int] = []

    class Sorts(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "sort" in function.__name__ and function.__name__ != "searchsorted":
                sizes.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    logits, generator = torch.arange(5000.0), torch.Generator()
    with Sorts():
        for limits in ({}, {"top_k": 40}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.9}):
            Sampling(temperature=1.0, **limits).choose(logits, generator)
    assert sizes[:2] == [40, 40]
    assert len(sizes) == 3
    assert sizes[2] < 20


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 0.9999, 1 - 1e-7])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
def test_the_nucleus_is_that_of_all_in_falling_order(spread: float, top_p: float) -> None:
    """Also where some are equal."""
    values = (torch.randn(700, generator=torch.Generator().manual_seed(0)) * spread * 4).round() / 4
    probabilities = values.softmax(-1)
    near = _near_nucleus(values, probabilities, top_p)
    falling = values.argsort(descending=True, stable=True)
    assert torch.equal(near, falling[: len(near)])
    before = probabilities[falling].cumsum(-1) - probabilities[falling]
    assert len(near) >= int((before < top_p).sum())


def test_a_draw_follows_its_weights_and_takes_no_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    draws = torch.tensor([_draw(weights, generator) for _ in range(4000)])
    shares = torch.bincount(draws, minlength=6) / 4000
    torch.testing.assert_close(shares, weights, atol=0.03, rtol=0)
    assert shares[weights == 0].sum() == 0


def test_a_draw_that_is_rounded_up_to_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **settings: torch.ones((), dtype=settings["dtype"]))
    assert _draw(torch.tensor([0.0, 0.4, 0.6, 0.0]), torch.Generator()) == 1


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}]
)
def test_sampling_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)
