"""`fuse_feed_forward_`: which networks become one step, which stay, and that models keep their bits."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear, quantize_
from bittensor.nn import FeedForwardDown, FeedForwardUp
from bittensor.transformers import BitTensorConfig, fuse_feed_forward_

CONFIG = QuantizeConfig(bits=4, group_size=16, zero="float")
X = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[7, 1, 30, 33, 3, 9, 2, 15], [4, 5, 6, 7, 8, 9, 10, 11]])
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
DOWN = ("encoder.layer.0.output.dense",)


def packed(columns: int, rows: int, epilogue: str | None = None, mode: str = "int8", **kind: Any) -> Any:
    torch.manual_seed(rows)
    linear = nn.Linear(columns, rows)
    weight = CONFIG.quantize(linear.weight)
    return kind.get("type", QuantizedLinear)(weight, linear.bias, activation_mode=mode, epilogue=epilogue)


class Intermediate(nn.Module):
    def __init__(self, dense: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.dense, self.activation = dense, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(x))


class Output(nn.Module):
    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = dense, nn.Dropout(), nn.LayerNorm(32)

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(self.dense(hidden)) + x)


class Layer(nn.Module):
    """The feed-forward network of a layer of an encoder, which subclasses change."""

    def __init__(self, up: Any = None, down: Any = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.intermediate: Any = Intermediate(up or packed(32, 48, "gelu"), activation or nn.Identity())
        self.output: Any = Output(down or packed(48, 32))

    def forward(self, x: torch.Tensor) -> Any:
        return self.feed_forward_chunk(x)

    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        return self.output(self.intermediate(x), x)


def bert(config: QuantizeConfig = CONFIG, dtype: torch.dtype = torch.float32) -> BertModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES)).eval().to(dtype)
    quantize_(model, config, fuse_activations=True, progress=False)
    return model


def states(model: nn.Module) -> torch.Tensor:
    return torch.as_tensor(model(TOKENS).last_hidden_state)


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_model_keeps_its_bits(backend: Backend, mode: str, dtype: torch.dtype) -> None:
    model = bert(QuantizeConfig(bits=4, group_size=32, activation_mode=mode), dtype)
    expected, keys = states(model), list(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = states(model)
    assert fuse_feed_forward_(model) == DOWN
    assert list(model.state_dict()) == keys
    layer = model.encoder.layer[0]
    assert isinstance(layer.intermediate.dense, FeedForwardUp)
    assert layer.output.dense.up is layer.intermediate.dense
    assert not layer.output.dense.training
    assert states(model).dtype is dtype
    assert torch.equal(states(model), expected)
    layer.chunk_size_feed_forward = 4
    assert torch.equal(states(model), expected)
    assert fuse_feed_forward_(model) == (), "there is no more to fuse"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(states(model), under_autocast)


@torch.inference_mode()
def test_other_architectures() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "dim": 64, "n_layers": 1, "n_heads": 4, "hidden_dim": 96}
    model = DistilBertModel(DistilBertConfig(**sizes)).eval()
    quantize_(model, CONFIG, fuse_activations=True, progress=False)
    expected = states(model)
    assert fuse_feed_forward_(model) == ("transformer.layer.0.ffn.lin2",)
    assert torch.equal(states(model), expected)


@torch.inference_mode()
def test_copies_and_states(backend: Backend) -> None:
    plain, model = bert(), bert()
    fuse_feed_forward_(model)
    expected = states(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        layer = twin.encoder.layer[0]
        assert layer.output.dense.up is layer.intermediate.dense
        assert layer.intermediate.dense is not model.encoder.layer[0].intermediate.dense
        assert torch.equal(states(twin), expected)
    for source, target in ((model, plain), (plain, model)):
        for assign in (False, True):
            other = copy.deepcopy(target)
            other.encoder.layer[0].intermediate.dense.bias.zero_()
            other.encoder.layer[0].intermediate.dense.weight.assign(packed(64, 96).weight)
            assert not torch.equal(states(other), expected)
            assert other.load_state_dict(source.state_dict(), assign=assign) == ([], [])
            assert torch.equal(states(other), expected)


@torch.inference_mode()
def test_compiled_and_exported(backend: Backend) -> None:
    torch._dynamo.reset()
    layer = Layer().eval()
    expected = layer(X)
    assert fuse_feed_forward_(layer) == ("output.dense",)
    program = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(program(X), expected)
    assert torch.equal(program(X[:3]), expected[:3])
    assert torch.equal(torch.export.export(layer, (X,)).module()(X), expected)


def test_gradients_are_those_of_the_linears(backend: Backend) -> None:
    plain, model = Layer().eval(), Layer().eval()
    fuse_feed_forward_(model)
    gradients = []
    for each in (plain, model):
        x = X.clone().requires_grad_()
        bias = each.intermediate.dense.bias.requires_grad_()
        each(x).square().sum().backward()
        each(X).sum().backward()  # of the bias alone
        gradients.append((x.grad, bias.grad, each.output.norm.weight.grad))
    for gradient, expected in zip(*gradients, strict=True):
        assert torch.equal(gradient, expected)


def test_a_pair_in_itself() -> None:
    up, down = packed(32, 48, "relu"), packed(48, 32)
    expected = down(up(X))
    first = FeedForwardUp(up)
    second = FeedForwardDown(down, first)
    assert first.bias is up.bias
    assert first.weight is up.weight
    assert second.bias is down.bias
    assert first(X) is X
    assert torch.equal(second(X), expected)
    assert list(second.children()) == []
    assert "epilogue='relu', computed by FeedForwardDown" in repr(first)
    assert "computes FeedForwardUp of 32 columns too" in repr(second)
    with pytest.raises(ValueError, match=r"x: expected 32 values a row"):
        second(X[:, :31])
    with pytest.raises(TypeError, match="x: expected"):
        second(X.double())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FeedForwardUp(nn.Linear(4, 4)), TypeError, "linear: expected a QuantizedLinear, got Linear"),  # type: ignore[arg-type]
        (lambda: FeedForwardDown(packed(48, 32), packed(32, 48)), TypeError, "up: expected a FeedForwardUp"),
        (lambda: FeedForwardDown(packed(32, 32), FeedForwardUp(packed(32, 48))), ValueError, "expected 48 columns"),
        (
            lambda: FeedForwardDown(packed(48, 32, "relu"), FeedForwardUp(packed(32, 48))),
            ValueError,
            "linear: expected a layer without epilogue, got 'relu'",
        ),
        (
            lambda: FeedForwardDown(packed(48, 32), FeedForwardUp(packed(32, 48, mode="float"))),
            ValueError,
            "linear: expected the activation mode of up, 'float', got 'int8'",
        ),
    ],
)
def test_pairs_that_are_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


class Subclass(QuantizedLinear):
    pass


class ReadsBias(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        return self.output(self.intermediate(x), x) + self.output.dense.bias


class ReturnsBoth(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        hidden = self.intermediate(x)
        return self.output(hidden, x), hidden


class Scales(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        return self.output(self.intermediate(x) * 2, x)


class CallsTwice(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        return self.output(self.intermediate(x), x) + self.output(self.intermediate(x + 1), x)


class OtherInTraining(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        hidden = self.intermediate(x)
        return self.output(hidden + hidden if self.training else hidden, x)


class Branches(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        return self.output(self.intermediate(x), x) if x.sum() > 0 else x


class Optional(Layer):
    def feed_forward_chunk(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        return self.output(self.intermediate(x), x if y is None else y)


class Remembers(Layer):
    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        self.before = self.intermediate(x)
        return self.output(self.before, x)


class AlsoElsewhere(Layer):
    def probe(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.intermediate(each) for each in x]


class AlsoAProperty(Layer):
    @property
    def hidden_bias(self) -> Any:
        return self.intermediate.dense.bias


class UnderTwoNames(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.same = self.intermediate


class FromElsewhere(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.others = (self.intermediate,)

    def feed_forward_chunk(self, x: torch.Tensor) -> Any:
        return self.output(self.others[0](x), x)


class OtherMethod(nn.Module):
    """The same network in a method of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = packed(32, 48), packed(48, 32)

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(self.up(x))


def changed(change: Callable[[Layer], Any]) -> Callable[[], Layer]:
    def make() -> Layer:
        layer = Layer()
        change(layer)
        return layer

    return make


def ignore(*_: Any) -> None:
    pass


@pytest.mark.parametrize(
    "make",
    [
        ReadsBias,
        ReturnsBoth,
        Scales,
        CallsTwice,
        OtherInTraining,
        Branches,
        Optional,
        Remembers,
        AlsoElsewhere,
        AlsoAProperty,
        UnderTwoNames,
        FromElsewhere,
        OtherMethod,
        lambda: Layer(activation=nn.GELU()),
        lambda: Layer(activation=nn.Dropout()),
        lambda: Layer(up=packed(32, 48, type=Subclass)),
        lambda: Layer(down=packed(48, 32, type=Subclass)),
        lambda: Layer(down=packed(48, 32, "relu")),
        lambda: Layer(up=packed(32, 48, mode="float")),
        lambda: Layer(up=nn.Linear(32, 48)),
        lambda: Layer(down=bittensor.nn.LoRALinear(packed(48, 32))),
        changed(lambda layer: layer.intermediate.register_forward_hook(ignore)),
        changed(lambda layer: layer.intermediate.dense.register_forward_hook(ignore)),
        changed(lambda layer: layer.intermediate.activation.register_forward_pre_hook(ignore)),
        changed(lambda layer: layer.output.register_full_backward_hook(ignore)),
        changed(lambda layer: layer.output.dense.register_forward_pre_hook(ignore)),
        changed(lambda layer: setattr(layer, "feed_forward_chunk", functools.partial(Layer.feed_forward_chunk, layer))),
        changed(lambda layer: setattr(layer.output, "forward", functools.partial(Output.forward, layer.output))),
    ],
    ids=lambda make: getattr(make, "__name__", None),
)
def test_what_is_left_alone(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    children, attributes, expected = dict(model.named_modules()), dict(vars(model)), model(X)
    attributes |= {"before": vars(model)["before"]} if isinstance(model, Remembers) else {}
    assert fuse_feed_forward_(model) == ()
    assert dict(model.named_modules()) == children
    assert vars(model) == attributes, "tracing leaves nothing behind"
    for result, other in zip(model(X), expected, strict=True):
        assert torch.equal(result, other)


def test_what_is_shared_between_layers() -> None:
    first, second = Layer().eval(), Layer().eval()
    second.intermediate = first.intermediate
    model = nn.Sequential(first, second)
    expected = model(X)
    assert fuse_feed_forward_(model) == ()
    assert torch.equal(model(X), expected)
    assert fuse_feed_forward_(nn.Sequential(first, first)) == ("0.output.dense",), "the layer is one, in two places"


def test_order_of_the_changes_to_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "float")
    model = AutoModel.from_pretrained(tmp_path / "float", quantization_config=BitTensorConfig(group_size=32))
    assert fuse_feed_forward_(model) == (), "GELU lies in between"
    expected = states(model)
    bittensor.fuse_activations_(model)
    assert fuse_feed_forward_(model) == DOWN
    with pytest.raises(
        ValueError, match=r"found two in one step in encoder.layer.0.output.dense; adapt it before fuse_feed"
    ):
        bittensor.add_lora_(model)
    with pytest.raises(ValueError, match=r"encoder.layer.0.output.dense: expected a layer of its own"):
        model.dequantize()
    model.save_pretrained(tmp_path / "packed")
    loaded = AutoModel.from_pretrained(tmp_path / "packed")
    assert isinstance(loaded.encoder.layer[0].output.dense, QuantizedLinear)
    assert torch.equal(states(loaded), expected)


@pytest.mark.parametrize("wrong", [None, "model", Layer])
def test_what_is_no_module(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got (NoneType|str|type)"):
        fuse_feed_forward_(wrong)
