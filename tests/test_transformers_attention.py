"""The attention implementation "bittensor" of transformers, beside that of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformers import TOKENS, load, save_bert, save_llama
from transformers import AutoModelForCausalLM, ViTConfig, ViTModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

import bittensor
from bittensor.transformers import BitTensorConfig, attend, padding_mask

PADDED = {
    "input_ids": torch.tensor([[7, 1, 30, 33, 3, 9], [5, 2, 8, 0, 0, 0], [11, 12, 13, 14, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]),
}
SEEN = PADDED["attention_mask"].bool()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("transformers") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("transformers") / "llama")


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_attention_is_that_of_torch(backend: str, dtype: torch.dtype, bert: Path) -> None:
    expected = load(bert, dtype=dtype)(**PADDED).last_hidden_state
    model = load(bert, attn_implementation="bittensor", dtype=dtype)
    with bittensor.use_backend(backend):
        states = model(**PADDED).last_hidden_state
    assert states.dtype is dtype
    assert torch.allclose(states[SEEN], expected[SEEN], atol=1e-5 if dtype is torch.float32 else 0.05)
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(**PADDED).last_hidden_state, expected)


@torch.inference_mode()
def test_attention_of_images() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images).last_hidden_state
    model.set_attn_implementation("bittensor")
    assert torch.allclose(model(images).last_hidden_state, expected, atol=1e-5)


@torch.inference_mode()
def test_a_sentence_is_embedded_alike_in_any_batch(bert: Path) -> None:
    config = BitTensorConfig(group_size=32)
    model = load(bert, quantization_config=config, attn_implementation="bittensor")
    together = model(**PADDED).last_hidden_state
    for i, length in enumerate(SEEN.sum(dim=1).tolist()):
        alone = model(PADDED["input_ids"][i : i + 1, :length]).last_hidden_state
        assert torch.equal(alone[0], together[i, :length])


@torch.inference_mode()
def test_attention_is_compiled(bert: Path) -> None:
    model = load(bert, quantization_config=BitTensorConfig(group_size=32), attn_implementation="bittensor")
    program = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (PADDED, {name: tensor[:2, :5] for name, tensor in PADDED.items()}):
        assert torch.equal(program(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_attention_that_is_refused(bert: Path, llama: Path) -> None:
    model = load(bert, attn_implementation="bittensor")
    with pytest.raises(RuntimeError, match=r"has no gradient: call the model under torch\.inference_mode"):
        model(**PADDED)
    with torch.inference_mode():
        square = torch.ones(3, 1, 6, 6, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"attention_mask: expected one of padding, \[B, S\], got bool \[3, 1, 6"):
            model(PADDED["input_ids"], attention_mask=square)
        with pytest.raises(ValueError, match=r"dropout: expected 0, got 0\.1: call model\.eval"):
            model.train()(**PADDED)
        decoder = AutoModelForCausalLM.from_pretrained(llama, attn_implementation="bittensor")
        with pytest.raises(ValueError, match="every token sees every other, an encoder; use 'sdpa' or 'eager'"):
            decoder(TOKENS)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"is_causal": True}, "is_causal: expected False, got True"),
        ({"sliding_window": 4}, "sliding_window: expected none, got 4"),
        ({"softcap": 30.0}, "softcap: expected none, got 30.0"),
        ({"output_attentions": True}, "output_attentions: expected none, got True"),
        ({"position_bias": torch.zeros(1, 2, 3, 3)}, r"position_bias: expected none, got a tensor \[1, 2, 3, 3\]"),
        ({"cu_seq_lens_q": torch.tensor([0, 3])}, r"cu_seq_lens_q: expected none, got a tensor \[2\]"),
    ],
)
def test_arguments_of_attention_that_are_refused(settings: dict[str, Any], reason: str) -> None:
    module, x = torch.nn.Module(), torch.randn(1, 2, 3, 16)
    others = {"sliding_window": None, "output_attentions": False, "position_ids": torch.arange(3)}
    assert attend(module, x, x, x, None, **others)[0].shape == (1, 3, 2, 16)
    with pytest.raises(ValueError, match=reason):
        attend(module, x, x, x, None, **settings)
    module.is_causal = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="is_causal"):
        attend(module, x, x, x, None)


def test_masks_of_padding() -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert padding_mask(kv_length=5, mask_function=bidirectional_mask_function, attention_mask=mask) is mask
    assert padding_mask(kv_length=5, mask_function=bidirectional_mask_function) is None
    with pytest.raises(ValueError, match="attention_mask: expected 6 tokens, got 5"):
        padding_mask(kv_length=6, mask_function=bidirectional_mask_function, attention_mask=mask)
    with pytest.raises(ValueError, match="an encoder"):
        padding_mask(kv_length=5, mask_function=causal_mask_function, attention_mask=mask)
