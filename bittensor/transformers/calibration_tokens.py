"""Token ids to quantize or calibrate a model of transformers with, without data."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..checks import check_int
from ..nn import QuantizedEmbedding

_BATCH = 32
"""Sequences of one batch of `random_tokens`."""


def random_tokens(
    model: PreTrainedModel, sequences: int = 128, length: int = 32, *, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Token ids drawn alike from the whole vocabulary of a model, for `bittensor.quantize_` and `bittensor.calibrate`
    without any data.

    What layers are given for such tokens is not what text gives them, but nearer to it than the assumption of
    `bittensor.quantize`, that all columns of a weight count alike. A damping of 0.1 keeps layers from being fitted to
    these tokens too closely. docs/embedding_model.md has figures.

    Args:
        model: one that is called with token ids alone: an encoder, or a decoder.
        sequences, length: how many, and of how many tokens each.
        seed: the same seed gives the same tokens.

    Returns:
        Batches of up to 32 sequences: ``{"input_ids": int64 [B, length]}``.

    Raises:
        TypeError: a number that is not an int.
        ValueError: a model that is not called with token ids alone, or a number below 1.

    >>> import bittensor
    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> model = BertModel(BertConfig(vocab_size=20, **sizes))
    >>> config = bittensor.QuantizeConfig(bits=4, group_size=32, zero="float", method="hqq")
    >>> len(bittensor.quantize_(model, config, batches=random_tokens(model), damping=0.1).quantized)
    7
    """
    for name, value in (("sequences", sequences), ("length", length)):
        if check_int(name, value) < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    table = model.get_input_embeddings()
    if not isinstance(table, (torch.nn.Embedding, QuantizedEmbedding)) or model.config.is_encoder_decoder:
        raise ValueError(f"model: expected one that is called with token ids alone, got {type(model).__name__}")
    generator = torch.Generator("cpu").manual_seed(seed)
    tokens = torch.randint(table.num_embeddings, (sequences, length), generator=generator, device="cpu")
    return [{"input_ids": tokens[start : start + _BATCH]} for start in range(0, sequences, _BATCH)]
