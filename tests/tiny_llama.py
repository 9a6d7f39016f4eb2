"""A Llama with random weights and a tokenizer of bytes, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bittensor.models.llama import _gguf_name

WIDTH, HIDDEN, HEADS, KEY_VALUE_HEADS, LAYERS = 64, 96, 4, 2, 2
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}[answer]"


def write_tiny_llama(folder: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    head_size = WIDTH // HEADS
    tensors = {"model.embed_tokens.weight": matrix(len(alphabet), WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        tensors |= {
            layer + "input_layernorm.weight": torch.rand(WIDTH, generator=generator) + 0.5,
            layer + "post_attention_layernorm.weight": torch.rand(WIDTH, generator=generator) + 0.5,
            layer + "self_attn.q_proj.weight": matrix(WIDTH, WIDTH),
            layer + "self_attn.k_proj.weight": matrix(KEY_VALUE_HEADS * head_size, WIDTH),
            layer + "self_attn.v_proj.weight": matrix(KEY_VALUE_HEADS * head_size, WIDTH),
            layer + "self_attn.o_proj.weight": matrix(WIDTH, WIDTH),
            layer + "mlp.gate_proj.weight": matrix(HIDDEN, WIDTH),
            layer + "mlp.up_proj.weight": matrix(HIDDEN, WIDTH),
            layer + "mlp.down_proj.weight": matrix(WIDTH, HIDDEN),
        }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.BPE({text: token for token, text in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def write_tiny_gguf(path: Path, folder: Path, extra: dict[str, torch.Tensor] | None = None, **metadata: Any) -> Path:
    """Write the model of `folder`, which `write_tiny_llama` made, as GGUF; `metadata` of the tokenizer is added."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_context_length(CONFIG["max_position_embeddings"])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet[:-1], "ab"]  # an array of GGUF has values: one merge
    for key, value in ({"model": "gpt2", "tokens": tokens, "merges": ["a b"]} | metadata).items():
        add: Any = {
            str: writer.add_string, int: writer.add_int32, bool: writer.add_bool, list: writer.add_array
        }[type(value)]  # fmt: skip
        add(f"tokenizer.ggml.{key}", value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        for part, heads in (("q_proj", HEADS), ("k_proj", KEY_VALUE_HEADS)):
            if part in name:  # GGUF has the values that are turned together beside each other
                tensor = tensor.view(heads, 2, -1, WIDTH).transpose(1, 2).reshape(-1, WIDTH)
        writer.add_tensor(_gguf_name(name), tensor.numpy())
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
