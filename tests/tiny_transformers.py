"""Tiny models of transformers, which the tests save, load and call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import bittensor

TOKENS = torch.tensor([[7, 1, 30, 33, 3, 9, 2, 15]])
SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}


def save_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    BertModel(config).save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).save_pretrained(folder)
    return folder


@torch.inference_mode()
def states(model: torch.nn.Module) -> torch.Tensor:
    return torch.as_tensor(model(TOKENS)[0])


def load(folder: Path, **settings: Any) -> Any:
    return AutoModel.from_pretrained(folder, **settings)


def packed_layers(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, bittensor.QuantizedLinear)]
