"""Experts of models of transformers: their stacked weights become layers, which are packed as any."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_transformers import packed_layers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.integrations.moe import use_experts_implementation
from typer.testing import CliRunner

import bittensor
from bittensor.cli import app
from bittensor.nn import ExpertLayers
from bittensor.transformers import BitTensorConfig, prepare_saving_

TOKENS = torch.tensor([[7, 1, 30, 33, 3, 9, 2], [4, 4, 8, 21, 39, 0, 11]])
SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2,
}  # fmt: skip
CONFIG = bittensor.QuantizeConfig(group_size=32)


def mixtral(layers: int = 2) -> PreTrainedModel:
    """Files have other names than modules."""
    return MixtralForCausalLM(MixtralConfig(**{**SIZES, "num_hidden_layers": layers}, num_local_experts=4))


def qwen3() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, moe_intermediate_size=32, num_experts=8))


def gpt_oss() -> PreTrainedModel:
    """Transposed, with biases, the outputs of gate and up projection in turns, and a rule of its own for them."""
    return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4))


MODELS = pytest.mark.parametrize("make", [mixtral, qwen3, gpt_oss])
Make = Callable[[], PreTrainedModel]


def filled(make: Make) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make().eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


@torch.inference_mode()
def logits(model: torch.nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return torch.as_tensor(model(tokens).logits)


def experts_of(model: torch.nn.Module) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


def but_the_head(name: str, _: object) -> bool:
    return name != "lm_head"


@MODELS
def test_layers_of_experts_compute_what_their_stacks_do(make: Make) -> None:
    stacked = experts_of(filled(make))[0]
    layers = ExpertLayers(stacked)
    memory = stacked.down_proj.untyped_storage().data_ptr()
    assert layers.get_parameter("3.down_proj.weight").untyped_storage().data_ptr() == memory
    x, weights = torch.randn(9, 64), torch.rand(9, 2)
    chosen = torch.rand(9, 4).argsort(dim=1)[:, :2]
    results = []
    for module in (stacked, layers):
        leaf = x.clone().requires_grad_()
        y = module(leaf, chosen, weights)
        y.square().sum().backward()
        results.append((y, leaf.grad))
    (expected, grad), (y, dx) = results
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dx, grad, rtol=1e-4, atol=1e-6)
    again = layers.stacked()
    assert type(again) is type(stacked)
    assert {name: value.tolist() for name, value in again.named_parameters()} == {
        name: value.tolist() for name, value in stacked.named_parameters()
    }
    assert torch.equal(again(x, chosen, weights), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_are_not_there_add_nothing(dtype: torch.dtype) -> None:
    layers = ExpertLayers(experts_of(filled(mixtral))[0]).to(dtype)
    x, weights = torch.randn(3, 64, dtype=dtype), torch.rand(3, 2)
    some = layers(x, torch.tensor([[0, 4], [4, 4], [3, -1]]), weights)
    for row, expert in ((0, 0), (2, 3)):
        one = slice(row, row + 1)
        assert torch.equal(some[one], layers(x[one], torch.tensor([[expert]]), weights[one, :1]))
    assert not some[1].any()
    assert some.dtype == dtype
    assert torch.equal(layers(x, torch.full((3, 2), 4), weights), torch.zeros_like(x))
    assert layers(x[:0], torch.zeros(0, 2, dtype=torch.int64), weights[:0]).shape == (0, 64)


@MODELS
def test_experts_are_quantized_in_place(make: Make) -> None:
    """The last ones, so that all tokens are sent to where they were."""
    model = filled(make)
    expected = logits(model)
    first, last = experts_of(model)
    stack = weakref.ref(last.down_proj)
    config = bittensor.QuantizeConfig(8, 32, activation_mode="float")
    report = bittensor.quantize_(model, config, lambda name, _: name.startswith("model.layers.1.mlp.experts."))
    del last
    gc.collect()
    assert stack() is None
    stacked, packed = experts_of(model)
    assert stacked is first
    assert isinstance(packed, ExpertLayers)
    assert packed.float_layers() == []
    assert list(report.quantized) == packed_layers(model)
    assert len(report.quantized) == (2 if make is gpt_oss else 3) * packed.num_experts
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_a_token_has_the_same_bits_in_any_batch() -> None:
    """Attention is torch's: the experts alone."""
    layers = ExpertLayers(experts_of(filled(qwen3))[0])
    model = torch.nn.ModuleDict({"experts": layers})
    bittensor.quantize_(model, CONFIG)
    x, weights, chosen = torch.randn(70, 64), torch.rand(70, 3), torch.rand(70, 8).argsort(dim=1)[:, :3]
    together = layers(x, chosen, weights)
    for row in range(70):
        one = slice(row, row + 1)
        assert torch.equal(layers(x[one], chosen[one], weights[one]), together[one])


@MODELS
def test_experts_are_loaded_and_saved(make: Make, tmp_path: Path) -> None:
    """Quantized on loading, in place, and by the command, they are the same."""
    model = filled(make)
    model.save_pretrained(tmp_path / "float")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=BitTensorConfig(group_size=32)
    )
    bittensor.quantize_(model, CONFIG, but_the_head)
    expected = logits(model)
    assert torch.equal(logits(loaded), expected)
    loaded.save_pretrained(tmp_path / "loaded")
    prepare_saving_(model)
    model.save_pretrained(tmp_path / "in place")
    folders = ["loaded", "in place"]
    if make is not gpt_oss:  # whose files have stacks, which the command leaves as they are
        arguments = ["quantize", str(tmp_path / "float"), str(tmp_path / "command"), "--group-size", "32"]
        assert CliRunner().invoke(app, [*arguments, "--skip", "lm_head*"]).exit_code == 0
        folders.append("command")
    for folder in folders:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert torch.equal(logits(again), expected)
        again.save_pretrained(tmp_path / "again")
        assert (
            load_file(tmp_path / "again/model.safetensors").keys()
            == load_file(tmp_path / folder / "model.safetensors").keys()
        )
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), expected)
    base = AutoModel.from_pretrained(tmp_path / "loaded")
    assert len(packed_layers(base)) == len(packed_layers(loaded))
    floats = again.dequantize()
    assert type(experts_of(floats)[0]) is type(experts_of(make())[0])
    floats.save_pretrained(tmp_path / "floats")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "floats")), logits(floats))


def test_what_is_not_to_be_packed_stays_stacked() -> None:
    model = filled(mixtral)
    stacked = experts_of(model)
    report = bittensor.quantize_(model, CONFIG, lambda name, _: ".experts." not in name)
    assert experts_of(model) == stacked
    assert len(report.excluded) == 24

    def fails(name: str, _: object) -> bool:
        raise LookupError(name)

    for quantize in (bittensor.quantize_, lambda *a: bittensor.calibrate(a[0], [{"input_ids": TOKENS}], *a[1:])):
        with pytest.raises(LookupError):
            quantize(model, CONFIG, fails)
        assert experts_of(model) == stacked


def test_experts_packed_in_part_are_not_saved(tmp_path: Path) -> None:
    model = filled(mixtral)
    bittensor.quantize_(model, CONFIG, lambda name, _: not name.endswith("experts.2.up_proj"))
    assert experts_of(model)[0].float_layers() == ["2.up_proj"]
    prepare_saving_(model)
    with pytest.raises(ValueError, match=r"mlp\.experts\.2\.up_proj: .* packed in part"):
        model.save_pretrained(tmp_path)
    with pytest.raises(AttributeError):
        experts_of(model)[0].stacked()


def test_experts_that_cannot_have_layers_are_named() -> None:
    model = filled(mixtral)
    first, second = experts_of(model)
    first.register_forward_hook(lambda *_: None)
    second.register_parameter("more", torch.nn.Parameter(torch.zeros(3)))
    with pytest.warns(UserWarning, match=r"0\.mlp\.experts: it has hooks .*1\.mlp\.experts: it has .*: more"):
        report = bittensor.quantize_(model, CONFIG)
    assert list(report.failed) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert experts_of(model) == [first, second]
    with pytest.warns(UserWarning, match="it cannot replace itself"):
        bittensor.quantize_(experts_of(filled(mixtral))[0], CONFIG)
    shared = filled(mixtral)
    first, second = experts_of(shared)
    second.down_proj = first.down_proj
    with pytest.warns(UserWarning, match="shared with another module"):
        bittensor.calibrate(shared, [{"input_ids": TOKENS}], CONFIG)
    assert experts_of(shared) == [first, second]


@use_experts_implementation(has_gate=False)
class WithoutGate(torch.nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up_proj = torch.nn.Parameter(torch.randn(3, 48, 64))
        self.down_proj = torch.nn.Parameter(torch.randn(3, 64, 48))
        self.act_fn = torch.nn.ReLU()
        self.num_experts = 3

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # called as transformers calls it: by its interface


def test_experts_without_gate() -> None:
    config = MixtralConfig()
    config._experts_implementation = "batched_mm"
    torch.manual_seed(0)
    stacked = WithoutGate(config)
    layers = ExpertLayers(stacked)
    assert "2.up_proj.weight" in layers.state_dict()
    arguments = torch.randn(5, 64), torch.tensor([[0], [2], [2], [1], [0]]), torch.rand(5, 1)
    torch.testing.assert_close(layers(*arguments), stacked(*arguments))
    assert torch.equal(layers.stacked()(*arguments), stacked(*arguments))


@pytest.mark.filterwarnings("ignore:calibrate. .* layers not quantized. .*the batches do not reach it:UserWarning")
def test_experts_are_calibrated_and_trained() -> None:
    calibrated, rounded, trained = (filled(lambda: mixtral(1)) for _ in range(3))
    expected = logits(calibrated)
    tokens = torch.randint(0, 40, (4, 30))
    bittensor.calibrate(calibrated, [{"input_ids": tokens}], CONFIG, but_the_head)
    bittensor.quantize_(rounded, CONFIG, but_the_head)
    assert packed_layers(calibrated) == packed_layers(rounded)
    assert (logits(calibrated) - expected).norm() < (logits(rounded) - expected).norm()
    bittensor.prepare_qat_(trained, CONFIG, but_the_head)
    trained(TOKENS, labels=TOKENS).loss.backward()
    assert any(bool(each.grad.any()) for each in experts_of(trained)[0].parameters() if each.grad is not None)
    y = logits(trained)
    assert list(bittensor.convert_qat_(trained)) == packed_layers(rounded)
    assert torch.equal(logits(trained), y)


def test_models_with_packed_experts_are_copied_and_compiled() -> None:
    model = filled(lambda: mixtral(1))
    bittensor.quantize_(model, CONFIG, but_the_head)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), expected)
    torch.testing.assert_close(logits(torch.compile(model, backend="eager")), expected, rtol=1e-5, atol=1e-5)
