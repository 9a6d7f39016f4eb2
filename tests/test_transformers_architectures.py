"""Models of transformers whose layers, heads or names of weights are their own, packed by us and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import SIZES, TOKENS, packed_layers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

import bittensor
from bittensor.checkpoints import open_checkpoint
from bittensor.cli import app
from bittensor.transformers import BitTensorConfig, prepare_saving_

GPT2 = GPT2Config(vocab_size=40, n_embd=64, n_layer=1, n_head=4, n_positions=16)
T5 = T5Config(
    vocab_size=40, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4, decoder_start_token_id=0,
    relative_attention_num_buckets=64,
)  # fmt: skip
BART = BartConfig(
    vocab_size=40, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=32,
)  # fmt: skip


def quantize(source: Path, target: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["quantize", str(source), str(target), "--group-size", "32", *options])
    assert result.exit_code == 0, result.output
    return result.output


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    inputs: dict[str, Any] = {"input_ids": TOKENS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = TOKENS[:, :3]
    return torch.as_tensor(model(**inputs).logits)


def dequantized(source: Path, packed: Path, auto: Any) -> PreTrainedModel:
    """The float model with the values of the packed weights of a checkpoint, read without transformers."""
    model: PreTrainedModel = auto.from_pretrained(source)
    checkpoint = open_checkpoint(packed)
    names = {name.removeprefix("transformer.").removeprefix("model."): name for name in model.state_dict()}
    for name in checkpoint.entries:
        if isinstance(weight := checkpoint.read(name), bittensor.QuantizedWeight):
            layer = model.get_submodule(
                names[name.removeprefix("transformer.").removeprefix("model.")].removesuffix(".weight")
            )
            value = weight.dequantize()
            layer.weight = torch.nn.Parameter(value.t() if isinstance(layer, Conv1D) else value)
    return model


@pytest.mark.parametrize(
    ("model", "auto", "count"),
    [
        (lambda: GPT2LMHeadModel(GPT2), AutoModelForCausalLM, 4),
        (lambda: T5ForConditionalGeneration(T5), AutoModelForSeq2SeqLM, 16),
        (lambda: BartForConditionalGeneration(BART), AutoModelForSeq2SeqLM, 16),
        (
            lambda: FalconForCausalLM(
                FalconConfig(vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
            ),
            AutoModelForCausalLM,
            4,
        ),
    ],
    ids=["gpt2", "t5", "bart", "falcon"],
)
def test_a_checkpoint_of_the_command_is_loaded(model: Any, auto: Any, count: int, tmp_path: Path) -> None:
    """It computes as the float model with the same values does, and is saved as it was."""
    torch.manual_seed(0)
    model().save_pretrained(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "packed")
    packed = auto.from_pretrained(tmp_path / "packed")
    assert len(packed_layers(packed)) == count
    for module in packed.modules():
        if isinstance(module, bittensor.QuantizedLinear):
            module.activation_mode = "float"
    expected = logits(dequantized(tmp_path / "float", tmp_path / "packed", auto))
    torch.testing.assert_close(logits(packed), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    packed.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(auto.from_pretrained(tmp_path / "again")), logits(packed))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:quantize_. 1 of 5 layers not quantized. lm_head. its weight is shared:UserWarning")
def test_gpt2_is_quantized_in_place_and_when_it_is_loaded(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(**{**GPT2.to_dict(), "tie_word_embeddings": tied})
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    report = bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=32))
    assert list(report.quantized) == packed_layers(model)
    assert len(report.quantized) == (4 if tied else 5)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=BitTensorConfig(group_size=32)
    )
    assert packed_layers(loaded) == [name for name in packed_layers(model) if name != "lm_head"]
    if tied:
        assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(again), logits(loaded))
    floats = again.dequantize()
    assert isinstance(floats.transformer.h[0].attn.c_attn, Conv1D)
    floats.save_pretrained(tmp_path / "floats")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "floats")), logits(floats))


def test_gpt2_is_calibrated() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2).eval()
    expected = logits(model)
    bittensor.calibrate(
        model, [{"input_ids": TOKENS}], bittensor.QuantizeConfig(8, 32), lambda name, _: name != "lm_head"
    )
    assert len(packed_layers(model)) == 4
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_conv1d_is_not_written_as_compressed_tensors(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2).save_pretrained(tmp_path / "float")
    arguments = [str(tmp_path / "float"), str(tmp_path / "packed"), "--group-size", "32"]
    result = CliRunner().invoke(app, ["quantize", *arguments, "--format", "compressed-tensors"])
    assert result.exit_code == 2
    assert "Conv1D" in result.output
    assert not (tmp_path / "packed").exists()


def with_matrix(folder: Path, name: str) -> Path:
    """A checkpoint with a matrix more, such as a head that the configuration ties."""
    torch.manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.randn(40, 64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_packed_head_of_a_model_that_ties_heads_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=True, **SIZES)).save_pretrained(tmp_path / "float")
    quantize(with_matrix(tmp_path / "float", "lm_head.weight"), tmp_path / "packed")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert "lm_head" in packed_layers(packed)
    stored = open_checkpoint(tmp_path / "packed").read("lm_head.weight")
    assert isinstance(stored, bittensor.QuantizedWeight)
    assert packed.lm_head.weight.equal(stored)


def test_t5_with_a_head_of_its_own_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5).save_pretrained(tmp_path / "float")
    model = AutoModelForSeq2SeqLM.from_pretrained(with_matrix(tmp_path / "float", "lm_head.weight"))
    bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=32))
    assert "lm_head" in packed_layers(model)
    prepare_saving_(model)
    model.save_pretrained(tmp_path / "packed")
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "packed")), logits(model))


def test_a_packed_model_is_loaded_as_its_base_and_with_another_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=40, pad_token_id=0, **SIZES)).save_pretrained(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "packed")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    base = AutoModel.from_pretrained(tmp_path / "packed")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert len(packed_layers(whole)) == 8
    assert len(packed_layers(base)) == len(packed_layers(classifier)) == 7
    with torch.inference_mode():
        hidden = whole.model(TOKENS).last_hidden_state
        assert torch.equal(base(TOKENS).last_hidden_state, hidden)
        assert torch.equal(classifier.model(TOKENS).last_hidden_state, hidden)
    base.save_pretrained(tmp_path / "base")
    assert "lm_head.weight" not in json.loads((tmp_path / "base/config.json").read_text())["quantization_config"]


def test_a_packed_weight_without_a_module_in_the_body_is_refused(tmp_path: Path) -> None:
    """transformers would leave it out."""
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).save_pretrained(tmp_path / "float")
    quantize(with_matrix(tmp_path / "float", "model.layers.0.mlp.third_proj.weight"), tmp_path / "packed")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no module model\.layers\.0\.mlp\.third_proj"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


class Router(torch.nn.Linear):
    """A layer that computes something else."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


class Routed(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head = Router(config.hidden_size, config.vocab_size, bias=False)


def test_a_subclass_of_linear_is_not_loaded_packed(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).save_pretrained(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "packed")
    with pytest.raises(ValueError, match=r"expected a Linear of shape \[40, 64\] in the model, got Router"):
        Routed.from_pretrained(tmp_path / "packed")


@torch.inference_mode()
def test_models_that_read_the_dtype_of_a_weight() -> None:
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=40, hidden_size=64, num_hidden_layers=1, num_heads=4, head_dim=32, state_size=16, n_groups=1
    )
    model = Mamba2ForCausalLM(config).eval()
    expected = logits(model)
    bittensor.quantize_(model, bittensor.QuantizeConfig(8, 32), lambda name, _: name == "lm_head")
    assert packed_layers(model) == ["lm_head"]
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
