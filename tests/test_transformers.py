"""Models of transformers with packed weights: quantized when loaded, saved, loaded again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import SIZES, TOKENS, load, packed_layers, save_bert, save_llama, states
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from typer.testing import CliRunner

import bittensor
from bittensor.checkpoints import open_checkpoint
from bittensor.cli import app
from bittensor.transformers import BitTensorConfig, BitTensorQuantizer, prepare_saving_


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("transformers") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("transformers") / "llama")


def test_a_float_model_is_quantized_as_quantize_does(bert: Path) -> None:
    config = BitTensorConfig(bits=4, group_size=32, zero="float", method="mse", scale_dtype=torch.float16)
    model = load(bert, quantization_config=config)
    expected = load(bert)
    bittensor.quantize_(expected, bittensor.QuantizeConfig(4, 32, "float", "mse", torch.float16))
    assert packed_layers(model) == packed_layers(expected)
    assert len(packed_layers(model)) == 13
    assert torch.equal(states(model), states(expected))


@pytest.mark.parametrize(
    "config",
    [
        BitTensorConfig(bits=4, group_size=64),
        BitTensorConfig(bits=2, group_size=32, zero="float", scale_dtype="float16"),
        BitTensorConfig(bits=8, group_size=None, zero="integer", scale_dtype="bfloat16", activation_mode="float"),
    ],
)
def test_a_packed_model_saved_and_loaded_gives_the_same(config: BitTensorConfig, bert: Path, tmp_path: Path) -> None:
    model = load(bert, quantization_config=config)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert torch.equal(states(again), states(model))
    assert packed_layers(again) == packed_layers(model)
    first = again.get_submodule(packed_layers(again)[0])
    assert first.activation_mode == config.activation_mode
    assert first.weight.form == model.get_submodule(packed_layers(model)[0]).weight.form
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "bittensor"
    read = checkpoint.read("encoder.layer.1.output.dense.weight")
    assert isinstance(read, bittensor.QuantizedWeight)
    assert read.equal(again.encoder.layer[1].output.dense.weight)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


T5_SIZES = {"vocab_size": 40, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
FRONT = {"conv_dim": (32,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 16}
IMAGE = {"image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: T5Model(T5Config(**T5_SIZES)), {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :2]}),
        (
            lambda: MambaModel(MambaConfig(vocab_size=40, hidden_size=64, num_hidden_layers=1)),
            {"input_ids": TOKENS},
        ),
        (
            lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **FRONT, num_feat_extract_layers=1)),
            {"input_values": torch.ones(1, 400).cumsum(1)},
        ),
    ],
    ids=["t5", "mamba", "wav2vec2"],
)
@torch.inference_mode()
def test_models_that_initialize_layers_by_name(
    make: Callable[[], PreTrainedModel], inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Their `_init_weights` reads the weight, or the size, of layers that are loaded packed."""
    make().save_pretrained(tmp_path / "float")
    config = BitTensorConfig(group_size=32, modules_to_not_convert=["dt_proj"])  # Mamba multiplies its weight itself
    model = load(tmp_path / "float", quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert packed_layers(again) == packed_layers(model) != []
    assert torch.equal(again(**inputs)[0], model(**inputs)[0])


def vit(folder: Path) -> Any:
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SIZES, **IMAGE)).save_pretrained(folder)
    return ViTForImageClassification.from_pretrained(folder, quantization_config=BitTensorConfig(group_size=32))


@torch.inference_mode()
def test_names_that_transformers_changes(tmp_path: Path) -> None:
    """Tensors of a file do not have the names of modules."""
    model, images = vit(tmp_path / "float"), torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path / "packed")
    assert "vit.encoder.layer.0.attention.attention.key.words" in load_file(tmp_path / "packed" / "model.safetensors")
    again: Any = ViTForImageClassification.from_pretrained(tmp_path / "packed")
    assert packed_layers(again) == packed_layers(model)
    assert "vit.layers.0.attention.k_proj" in packed_layers(again)
    assert torch.equal(again(images).logits, model(images).logits)
    read = open_checkpoint(tmp_path / "packed").read("vit.encoder.layer.0.attention.attention.key.weight")
    assert isinstance(read, bittensor.QuantizedWeight)
    assert read.equal(model.vit.layers[0].attention.k_proj.weight)


def test_names_that_transformers_changes_in_a_hierarchy(tmp_path: Path) -> None:
    sizes = {"patch_size": 4, "embed_dim": 32, "depths": [1], "num_heads": [2], "window_size": 4}
    SwinForImageClassification(SwinConfig(image_size=16, **sizes)).save_pretrained(tmp_path / "float")
    config = BitTensorConfig(group_size=32)
    model: Any = SwinForImageClassification.from_pretrained(tmp_path / "float", quantization_config=config)
    model.save_pretrained(tmp_path / "packed")
    again: Any = SwinForImageClassification.from_pretrained(tmp_path / "packed")
    assert packed_layers(again) == packed_layers(model) != []


def test_names_that_transformers_changes_of_the_command_line(tmp_path: Path) -> None:
    model = vit(tmp_path / "float")
    arguments = ["quantize", str(tmp_path / "float"), str(tmp_path / "out"), "--group-size", "32"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    again: Any = ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert packed_layers(again) == packed_layers(model)
    for name in packed_layers(model):
        assert again.get_submodule(name).weight.equal(model.get_submodule(name).weight)


@pytest.mark.parametrize("part", ["words", "form", "bias"])
def test_a_part_is_missing_under_a_changed_name(part: str, tmp_path: Path) -> None:
    vit(tmp_path / "float").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"vit.encoder.layer.0.attention.attention.key.{part}"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"vit\.layers\.0\.attention\.k_proj\.weight: {part}: missing in "):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_the_file_is_smaller(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=BitTensorConfig(bits=2, group_size=None))
    model.save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path))
    assert not any(name.endswith("q_proj.weight") for name in after)
    assert "lm_head.weight" in after, "output embeddings stay floats"
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert states(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(states(model))


def test_layers_packed_after_loading_are_saved(llama: Path, tmp_path: Path) -> None:
    config = BitTensorConfig(group_size=32, activation_mode="float")
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=config)
    with pytest.warns(UserWarning, match="it is quantized already"):
        bittensor.quantize_(model, bittensor.QuantizeConfig(8, 64, activation_mode="float"))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "lm_head" in packed_layers(again)
    assert torch.equal(states(again), states(model))


def test_a_model_that_quantize_packed_is_saved(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    form = bittensor.QuantizeConfig(2, 32, "float", scale_dtype=torch.float16, activation_mode="float")
    bittensor.quantize_(model, form, lambda name, _: name != "lm_head")
    config = prepare_saving_(model)
    assert config is model.config.quantization_config
    assert config.layers == form
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert packed_layers(again) == packed_layers(model)
    assert torch.equal(states(again), states(model))
    assert prepare_saving_(again) is again.config.quantization_config


def test_models_without_anything_to_save_packed(llama: Path) -> None:
    with pytest.raises(TypeError, match="expected a PreTrainedModel of transformers, got Linear"):
        prepare_saving_(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_pretrained(llama)
    with pytest.raises(ValueError, match="expected packed layers, got a LlamaForCausalLM without any"):
        prepare_saving_(model)
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="expected one without another quantization, got object"):
        prepare_saving_(model)


def test_layers_that_could_not_be_loaded_are_not_saved(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=BitTensorConfig(group_size=32))
    before = states(model)
    bittensor.add_lora_(model, rank=2)
    with pytest.raises(ValueError, match=r"q_proj: from_pretrained could not load a LoRALinear: .*merge_lora_"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    bittensor.merge_lora_(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(states(again), states(model))
    assert torch.allclose(states(again), before, atol=0.1)
    bittensor.quantize_(model, bittensor.QuantizeConfig(8, 64), kinds=(torch.nn.Embedding,))
    with pytest.raises(ValueError, match=r"model\.embed_tokens: from_pretrained could not load a QuantizedEmbedding"):
        model.save_pretrained(tmp_path / "embedding")


def test_activation_modes_that_differ_are_not_saved(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=BitTensorConfig(group_size=32))
    model.model.layers[0].mlp.up_proj.activation_mode = "float"
    with pytest.raises(ValueError, match=r"mlp\.up_proj: activation_mode: expected 'int8', as .*, got 'float'"):
        model.save_pretrained(tmp_path)


def test_modules_to_not_convert(bert: Path, tmp_path: Path) -> None:
    config = BitTensorConfig(group_size=32, modules_to_not_convert=["pooler", "encoder.layer.0", "key"])
    model = load(bert, quantization_config=config)
    names = packed_layers(model)
    assert len(names) == 5
    assert all(name.startswith("encoder.layer.1.") and "key" not in name for name in names)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert packed_layers(again) == names
    assert again.config.quantization_config.modules_to_not_convert == ["pooler", "encoder.layer.0", "key"]
    assert torch.equal(states(again), states(model))


def test_nothing_to_pack_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ResNetModel(config).save_pretrained(tmp_path / "float")
    with pytest.warns(UserWarning, match=r"ResNetModel: nothing is quantized: .*\(instead: Conv2d\)") as warned:
        model = load(tmp_path / "float", quantization_config=BitTensorConfig())
    assert len(warned) == 1
    model.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert packed_layers(again) == []
    with torch.inference_mode():
        image = torch.ones(1, 3, 32, 32)
        assert torch.equal(again(image).last_hidden_state, model(image).last_hidden_state)


def test_a_model_that_is_mostly_not_packed(tmp_path: Path) -> None:
    sizes = {**SIZES, "intermediate_size_mlp": 96, "head_dim": 16}
    Llama4ForCausalLM(Llama4TextConfig(vocab_size=40, **sizes, num_local_experts=4)).save_pretrained(tmp_path)
    told = r"Llama4ForCausalLM: 6\d% of the parameters .*\(instead: Llama4TextExperts\)"
    config = BitTensorConfig(group_size=32, modules_to_not_convert=["lm_head", "router"])
    with pytest.warns(UserWarning, match=told) as warned:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert len(warned) == 1
    assert len(packed_layers(model)) == 7
    with pytest.warns(UserWarning, match=f"quantize_: {told}") as warned:
        bittensor.quantize_(model, config.layers, lambda name, _: name == "lm_head")
    assert len(warned) == 1


def test_layers_that_cannot_be_packed_are_named(bert: Path) -> None:
    with pytest.warns(UserWarning, match=r"not quantized: .*group_size: expected at most the 64 columns"):
        model = load(bert, quantization_config=BitTensorConfig(group_size=96))
    assert packed_layers(model) == ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]


@pytest.mark.parametrize("part", ["base", "whole"])
def test_what_the_command_line_writes_is_loaded(part: str, llama: Path, tmp_path: Path) -> None:
    """With the prefix of the base model in the file, into a model with it and into one without."""
    arguments = ["quantize", str(llama), str(tmp_path / "out"), "--group-size", "32", "--skip", "lm_head*"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    loader: Any = AutoModel if part == "base" else AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path / "out")
    expected = loader.from_pretrained(llama)
    bittensor.quantize_(
        expected, bittensor.QuantizeConfig(4, 32), filter_fn=lambda name, _: name != "lm_head", progress=False
    )
    assert packed_layers(model) == packed_layers(expected)
    assert torch.equal(states(model), states(expected))


def test_dequantize(bert: Path) -> None:
    model = load(bert, quantization_config=BitTensorConfig(bits=8, group_size=32, activation_mode="float"))
    packed = states(model)
    floats = model.dequantize()
    assert packed_layers(floats) == []
    assert torch.allclose(states(floats), packed, atol=1e-5)


def test_bfloat16(bert: Path, tmp_path: Path) -> None:
    model = load(bert, quantization_config=BitTensorConfig(group_size=32), dtype=torch.bfloat16)
    assert states(model).dtype is torch.bfloat16
    model.save_pretrained(tmp_path)
    assert torch.equal(states(load(tmp_path)), states(model))


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"bits": 3}, ValueError, "bits: expected one of"),
        ({"zero": "none"}, ValueError, "zero: expected one of"),
        ({"scale_dtype": "float64"}, ValueError, "scale_dtype: expected one of"),
        ({"modules_to_not_convert": "pooler"}, TypeError, "expected a list of names, got 'pooler'"),
        ({"version": 2}, ValueError, "expected version 1 of the format, got 2"),
        ({"quant_method": "gptq"}, ValueError, "quant_method: expected 'bittensor', got 'gptq'"),
        ({"grupsize": 2}, TypeError, "grupsize"),
    ],
)
def test_configurations_that_are_refused(settings: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        BitTensorConfig(**settings)


@pytest.mark.parametrize("device_map", ["cuda", {"": "cuda"}, {"encoder": "cpu", "pooler": "cuda"}])
def test_other_devices_are_refused(device_map: Any) -> None:
    with pytest.raises(ValueError, match="device_map: expected the CPU for method 'bittensor', got 'cuda'"):
        BitTensorQuantizer(BitTensorConfig()).validate_environment(device_map=device_map)


@pytest.fixture
def saved(bert: Path, tmp_path: Path) -> Path:
    load(bert, quantization_config=BitTensorConfig(group_size=32)).save_pretrained(tmp_path)
    return tmp_path


NAME = "encoder.layer.0.attention.self.query"


def test_a_configuration_without_weights(saved: Path) -> None:
    path = saved / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["weights"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantization_config has no weights"):
        load(saved)


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"]["weights"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.clear(), r"describes 0 packed weights, but .*model\.safetensors has 13"),
        (lambda weights: weights.pop(f"{NAME}.weight"), "describes 12 packed weights"),
        (lambda weights: weights[f"{NAME}.weight"].update(bits=2), "ignore_mismatched_sizes"),
        (lambda weights: weights[f"{NAME}.weight"].update(bits=5), f"{NAME}.weight: bits: expected one of"),
        (lambda weights: weights[f"{NAME}.weight"].update(shape=[8, 8]), f"{NAME}.weight: "),
        (lambda weights: weights[f"{NAME}.weight"].pop("zero"), f"{NAME}.weight: expected an object with"),
        (
            lambda weights: weights.update({"other.weight": weights[f"{NAME}.weight"]}),
            "other.weight: the model has no module",
        ),
    ],
)
def test_a_configuration_that_does_not_fit(change: Callable[[Any], Any], reason: str, saved: Path) -> None:
    change_weights(saved, change)
    with pytest.raises((ValueError, RuntimeError), match=reason):
        load(saved)


@pytest.mark.parametrize("part", ["words", "scales", "form"])
def test_a_file_without_a_part(part: str, saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors[f"{NAME}.{part}"]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{NAME}\.weight: {part}: missing"):
        load(saved)


def test_ordered_columns_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors") | {f"{NAME}.order": torch.arange(64)}
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"query\.order: weights with ordered columns \(act-order\) do not fit"):
        load(saved)


def test_without_the_extra(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = "import sys, bittensor; assert 'transformers' not in sys.modules; sys.modules['transformers'] = None\n"
    process = run_python("-c", f"{code}import bittensor.transformers")
    assert "bittensor.transformers needs transformers, which is not installed: pip install" in process.stderr
    assert "'packed-bittensor[transformers]'" in process.stderr
