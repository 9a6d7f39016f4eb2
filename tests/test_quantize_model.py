"""`quantize_`: which layers of a model it replaces, what it says about the others, what it costs in memory."""

from __future__ import annotations

import gc
import subprocess
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear, quantize_

CONFIG = QuantizeConfig(bits=4, group_size=16, zero="integer")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 48)
        self.second = nn.Linear(48, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.LayerNorm(32), Block(), nn.Linear(32, 10))


@pytest.mark.parametrize("mode", ["int8", "float"])
def test_every_linear_is_replaced(backend: Backend, mode: str) -> None:
    network = model().eval()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    expected = network(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = quantize_(network, QuantizeConfig(bits=8, group_size=16, activation_mode=mode))
    assert report.quantized == ("0.first", "0.second", "2.first", "2.second", "3")
    assert (report.failed, report.excluded) == ({}, ())
    assert not any(isinstance(module, nn.Linear) for module in network.modules())
    assert {each.activation_mode for each in network.modules() if isinstance(each, QuantizedLinear)} == {mode}
    assert torch.allclose(network(x), expected, atol=0.05)
    assert not any(module.training for module in network.modules())


def test_state_dict_of_a_model(backend: Backend) -> None:
    network, twin = model(), model()
    quantize_(network, CONFIG)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    quantize_(twin, CONFIG)
    x = torch.randn(5, 32)
    assert not torch.equal(twin(x), network(x))
    assert twin.load_state_dict(network.state_dict()) == ([], [])
    assert torch.equal(twin(x), network(x))


def test_filter_and_report() -> None:
    seen = []

    def wanted(name: str, layer: nn.Linear) -> bool:
        seen.append((name, layer.in_features))
        return name != "3"

    network = model()
    report = quantize_(network, CONFIG, wanted)
    assert seen == [("0.first", 32), ("0.second", 48), ("2.first", 32), ("2.second", 48), ("3", 32)]
    assert report.excluded == ("3",)
    assert type(network[3]) is nn.Linear
    lines = str(report).splitlines()
    assert lines[0].startswith("4 of 5 layers quantized, ")
    assert lines[0].endswith("0 failed, 1 excluded")
    assert lines[1].startswith("  0.first: quantized, 6144 -> ")
    assert lines[5] == "  3: excluded"


def test_the_filter_is_asked_before_a_layer_is_quantized_already() -> None:
    network, seen = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), []

    def second(name: str, layer: nn.Module) -> bool:
        seen.append((name, type(layer)))
        return name == "2"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(network, QuantizeConfig(bits=4, group_size=32), lambda name, _: name == "0")
        report = quantize_(network, QuantizeConfig(bits=8, group_size=32), second)
    assert seen == [("0", QuantizedLinear), ("2", nn.Linear)]
    assert (report.excluded, report.quantized, report.failed) == (("0",), ("2",), {})
    assert [network[index].weight.bits for index in (0, 2)] == [4, 8]


class Odd(nn.Module):
    """Layers that cannot be quantized, each for a reason of its own, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(32, 8)
        self.narrow = nn.Linear(8, 8)
        self.broken = nn.Linear(32, 8)
        self.broken.weight.data[3, 5] = torch.nan
        self.embedding = nn.Embedding(8, 32)
        self.tied = nn.Linear(32, 8)
        self.tied.weight = self.embedding.weight
        self.scaled = Scaled(32, 8)
        self.hooked = nn.Linear(32, 8)
        self.hooked.register_forward_hook(lambda *_: None)
        self.patched = nn.Linear(32, 8)
        self.patched.forward = lambda x: x[..., :8]  # as hooks of accelerate do
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 8))
        self.done = QuantizedLinear.from_linear(nn.Linear(32, 8), CONFIG)
        self.encoder = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.wide = nn.Linear(32, 8, dtype=torch.float64)


def test_what_cannot_be_quantized_is_named() -> None:
    network = Odd()
    before = dict(network.named_modules())
    with pytest.warns(UserWarning, match="quantize_: 12 of 13 layers not quantized: narrow: ") as caught:
        report = quantize_(network, CONFIG)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert report.quantized == ("good",)
    reasons = {
        "narrow": "group_size: expected at most the 8 columns",
        "broken": "weight: expected finite values, got nan at index [3, 5]",
        "tied": "its weight is shared with embedding.weight",
        "scaled": "Scaled is a subclass of torch.nn.Linear",
        "hooked": "it has hooks, which would be lost",
        "patched": "it has a forward of its own, set on the layer, which would be lost",
        "normed": "is a subclass of torch.nn.Linear",
        "done": "it is quantized already",
        "encoder.self_attn.out_proj": "NonDynamicallyQuantizableLinear is a subclass",
        "encoder.linear1": "torch.nn.TransformerEncoderLayer computes with the weights",
        "encoder.linear2": "torch.nn.TransformerEncoderLayer computes with the weights",
        "wide": "got float64",
    }
    assert set(report.failed) == set(reasons)
    for name, reason in reasons.items():
        assert reason in report.failed[name], name
        assert network.get_submodule(name) is before[name]
        assert name in str(caught[0].message)
        assert f"  {name}: failed, {report.failed[name]}" in str(report)


def test_a_layer_in_several_places(backend: Backend) -> None:
    layer = nn.Linear(32, 32)
    network = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    report = quantize_(network, CONFIG)
    assert report.quantized == ("a",)
    assert isinstance(network["a"], QuantizedLinear)
    assert network["b"][0] is network["a"]


class Counted(nn.Sequential):
    walks = 0

    def modules(self) -> Iterator[nn.Module]:
        Counted.walks += 1
        return super().modules()

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        Counted.walks += 1
        return super().named_modules(*args, **kwargs)


def test_how_often_a_model_is_walked_does_not_depend_on_its_layers() -> None:
    def walks(convert: Callable[[nn.Module], object], network: nn.Module) -> int:
        Counted.walks = 0
        convert(network)
        return Counted.walks

    few, many = (Counted(*(nn.Linear(16, 16) for _ in range(count))) for count in (2, 20))
    steps = (
        lambda network: bittensor.prepare_qat_(network, CONFIG),
        bittensor.convert_qat_,
        lambda network: bittensor.add_lora_(network, rank=1),
        bittensor.merge_lora_,
    )
    for convert in steps:
        assert walks(convert, many) == walks(convert, few)


def test_layers_that_share_a_weight() -> None:
    network = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    network[1].weight = network[0].weight
    with pytest.warns(UserWarning, match=r"0: its weight is shared with 1\.weight"):
        assert not quantize_(network, CONFIG, lambda name, layer: name == "0").quantized
    with pytest.warns(
        UserWarning, match=r"0: its weight is shared with 1\.weight; 1: its weight is shared with 0\.weight"
    ):
        assert not bittensor.prepare_qat_(network, CONFIG).quantized
    report = quantize_(network, CONFIG)
    assert report.quantized == ("0", "1")
    assert str(report.layers[1]) == "1: quantized, with the weight of 0"
    assert network[0].weight is network[1].weight
    assert network[0].bias is not network[1].bias


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32, padding_idx=3)
        self.block = Block()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embedding(tokens)))


def test_kinds(backend: Backend) -> None:
    network, kinds = LanguageModel(), (nn.Linear, nn.Embedding, nn.Conv2d)
    expected, tokens = network.head.weight.detach(), torch.tensor([1, 3, 49])
    y = network(tokens)
    for wrong in ((nn.Linear, nn.Conv1d), ("Linear",)):
        with pytest.raises(ValueError, match=r"kinds: expected some of torch.nn.Linear, .*Embedding, torch.nn.Conv2d"):
            quantize_(network, CONFIG, kinds=wrong)
    with pytest.warns(UserWarning, match=r"1 of 5 layers not quantized: convolution: group_size: .* 9 columns"):
        report = quantize_(network, QuantizeConfig(8, 16), kinds=kinds)
    assert report.quantized == ("embedding", "block.first", "block.second", "head")
    assert network.head.weight is network.embedding.weight
    assert network.embedding.padding_idx == 3
    assert network.head.weight.equal(bittensor.quantize(expected, 8, 16))
    assert torch.allclose(network(tokens), y, atol=0.2)
    assert report.layers[-1].bytes_before == 0
    assert quantize_(network, QuantizeConfig(group_size=None), kinds=(nn.Conv2d,)).quantized == ("convolution",)
    with pytest.warns(UserWarning, match="3 of 3 layers not quantized: block.first: it is quantized already"):
        quantize_(network, CONFIG)
    with pytest.warns(UserWarning, match="has no torch.nn.Linear or torch.nn.Embedding"):
        quantize_(nn.Sequential(nn.ReLU()), CONFIG, kinds=kinds[:2])


def test_the_model_itself() -> None:
    with pytest.warns(UserWarning, match="the model itself: it cannot replace itself"):
        quantize_(nn.Linear(32, 8), CONFIG)


@pytest.mark.parametrize(
    "function",
    [
        quantize_,
        lambda model: bittensor.calibrate(model, [torch.ones(1, 32)]),
        bittensor.prepare_qat_,
        bittensor.convert_qat_,
        bittensor.add_lora_,
        bittensor.lora_state_dict,
        bittensor.merge_lora_,
    ],
)
def test_what_is_no_module_is_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got list$"):
        function([nn.Linear(32, 8)])


def test_no_linear_layer() -> None:
    with pytest.warns(UserWarning, match="quantize_: Sequential has no torch.nn.Linear"):
        report = quantize_(nn.Sequential(nn.ReLU()), CONFIG)
    assert str(report).startswith("0 of 0 layers quantized")


def test_float_weights_are_dropped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(*(nn.Linear(32, 32) for _ in range(6)))
    weights = [weakref.ref(layer.weight) for layer in network]
    alive = []
    original = QuantizeConfig.quantize

    def counting(self: QuantizeConfig, weight: torch.Tensor) -> Any:
        gc.collect()
        alive.append(sum(each() is not None for each in weights))
        return original(self, weight)

    monkeypatch.setattr(QuantizeConfig, "quantize", counting)
    quantize_(network, CONFIG)
    assert alive == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bits": 3}, ValueError, "bits: expected one of"),
        ({"group_size": 0}, ValueError, "group_size: expected a multiple of 8"),
        ({"group_size": -8}, ValueError, "group_size: expected a multiple of 8"),
        ({"group_size": "row"}, TypeError, "group_size: expected an int"),
        ({"zero": "some"}, ValueError, "zero: expected one of"),
        ({"method": "gptq"}, ValueError, "method: expected one of"),
        ({"scale_dtype": torch.int8}, TypeError, "scale_dtype: expected float16"),
        ({"activation_mode": "fp8"}, ValueError, "activation_mode: expected one of"),
    ],
)
def test_config_refuses_what_no_layer_can_have(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantizeConfig(**settings)


def test_silent_without_a_terminal(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = (
        "import torch, bittensor\n"
        "model = torch.nn.Sequential(torch.nn.Linear(128, 8))\n"
        "print(len(bittensor.quantize_(model).quantized))"
    )
    process = run_python("-c", code)
    assert (process.returncode, process.stdout, process.stderr) == (0, "1\n", "")


def test_no_import_of_rich_without_progress(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = (
        "import sys, torch, bittensor\n"
        "bittensor.quantize_(torch.nn.Sequential(torch.nn.Linear(128, 8)), progress=False)\n"
        "print('rich' in sys.modules)"
    )
    process = run_python("-c", code)
    assert (process.returncode, process.stdout, process.stderr) == (0, "False\n", "")


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    quantize_(model(), CONFIG)
    assert "quantizing" in capfd.readouterr().err
    quantize_(model(), CONFIG, progress=False)
    assert capfd.readouterr().err == ""


def test_default_config(backend: Backend) -> None:
    network = nn.Sequential(nn.Linear(256, 8))
    expected = bittensor.quantize(network[0].weight)
    quantize_(network)
    assert network[0].weight.equal(expected)


def test_matrices_of_other_modules_are_told_of_where_they_are_most() -> None:
    """What is packed counts for as much as it did before."""
    network = nn.ModuleDict({"layer": nn.Linear(64, 64), "other": nn.Bilinear(8, 8, 8)})
    quantize_(network, CONFIG)
    quantize_(network, CONFIG, lambda *_: False)
    network["other"] = nn.Bilinear(32, 32, 8)
    with pytest.warns(UserWarning, match=r"quantize_: ModuleDict: 67% of .*\(instead: Bilinear\)") as caught:
        quantize_(network, CONFIG, lambda *_: False)
    assert [each.filename for each in caught] == [__file__]
