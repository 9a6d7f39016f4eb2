"""Token ids that models of transformers are quantized and calibrated with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_transformers import load, save_bert, save_llama, states
from transformers import AutoModelForCausalLM, T5Config, T5Model, ViTConfig, ViTModel

import bittensor
from bittensor.transformers import random_tokens


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("transformers") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("transformers") / "llama")


def test_random_tokens_are_those_of_the_vocabulary(bert: Path) -> None:
    model = load(bert)
    batches = random_tokens(model, 40, 50)
    assert [batch["input_ids"].shape for batch in batches] == [(32, 50), (8, 50)]
    tokens = torch.cat([batch["input_ids"] for batch in batches])
    assert tokens.dtype is torch.int64
    assert set(tokens.flatten().tolist()) == set(range(40))
    again = random_tokens(model, 40, 50)
    assert torch.equal(tokens, torch.cat([batch["input_ids"] for batch in again]))
    assert not torch.equal(tokens[:32], random_tokens(model, 32, 50, seed=1)[0]["input_ids"])


def test_random_tokens_leave_the_global_generator_alone(bert: Path) -> None:
    state = torch.get_rng_state()
    random_tokens(load(bert), 1, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_tokens_calibrate_a_model(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    config = bittensor.QuantizeConfig(4, 32, "float", "hqq")
    report = bittensor.calibrate(model, random_tokens(model), config, lambda name, _: name != "lm_head")
    assert len(report.quantized) == 7
    assert not report.failed
    plain = AutoModelForCausalLM.from_pretrained(llama)
    bittensor.quantize_(plain, config, lambda name, _: name != "lm_head")
    assert not torch.equal(states(model), states(plain))


def test_random_tokens_need_a_model_that_takes_nothing_else(bert: Path) -> None:
    sizes = {"vocab_size": 40, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    with pytest.raises(ValueError, match="expected one that is called with token ids alone, got T5Model"):
        random_tokens(T5Model(T5Config(**sizes)))
    image = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, image_size=32)
    with pytest.raises(ValueError, match="expected one that is called with token ids alone, got ViTModel"):
        random_tokens(ViTModel(image))
    with pytest.raises(ValueError, match="length: expected at least 1, got 0"):
        random_tokens(load(bert), length=0)
    with pytest.raises(TypeError, match="sequences: expected an int, got float"):
        random_tokens(load(bert), sequences=1.5)  # type: ignore[arg-type]
