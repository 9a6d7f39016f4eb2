"""Adapters of low rank over packed layers: what they compute, what they train, how they are saved and merged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from digits import digits, loss, train
from safetensors.torch import load_file, save_file
from torch.nn import functional

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear, quantize_, use_backend
from bittensor.nn import LoRALinear


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(3, 40)


def adapted(mode: str = "float", epilogue: str | None = None, dropout: float = 0.0) -> LoRALinear:
    weight = bittensor.quantize(normal(16, 40), group_size=16)
    base = QuantizedLinear(weight, normal(16), activation_mode=mode, epilogue=epilogue)
    layer = LoRALinear(base, rank=4, alpha=6, dropout=dropout)
    with torch.no_grad():
        layer.lora_b.copy_(normal(16, 4, seed=3))
    return layer


def model(bits: int = 4) -> torch.nn.Sequential:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 16), torch.nn.PReLU(16))
    quantize_(network, QuantizeConfig(bits, group_size=16))
    return network


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("epilogue", [None, "relu", "gelu", "silu"])
def test_what_it_computes(backend: Backend, mode: str, epilogue: str | None) -> None:
    layer = adapted(mode, epilogue)
    base, update = layer.base, 1.5 * layer.lora_b @ layer.lora_a
    expected = bittensor.linear(X, base.weight, base.bias, mode) + X @ update.T
    if epilogue is not None:
        expected = getattr(functional, epilogue)(expected)
    torch.testing.assert_close(layer(X), expected)
    torch.testing.assert_close(layer.update(), update.detach())
    assert layer(X.bfloat16()).dtype is torch.bfloat16


def test_it_starts_as_its_base(backend: Backend) -> None:
    base = adapted().base
    assert torch.equal(LoRALinear(base, rank=2)(X), base(X))


def test_gradients_are_those_of_the_float_layer(backend: Backend) -> None:
    layer = adapted()
    x, values = X.clone().requires_grad_(), layer.base.weight.dequantize()
    a, b = (each.detach().clone().requires_grad_() for each in (layer.lora_a, layer.lora_b))
    layer(x).backward(normal(3, 16, seed=4))
    other = X.clone().requires_grad_()
    functional.linear(other, values + 1.5 * b @ a, layer.base.bias).backward(normal(3, 16, seed=4))
    for got, expected in ((x, other), (layer.lora_a, a), (layer.lora_b, b)):
        torch.testing.assert_close(got.grad, expected.grad)
    assert layer.base.bias is not None
    assert layer.base.bias.grad is None


def test_the_gradient_passes_through_the_codes() -> None:
    layer, x = adapted(), X.clone().requires_grad_()
    with use_backend("cpp") as backend:
        before = backend.kernel_calls()
        layer(x).sum().backward()
        ran = {name for name, count in backend.kernel_calls().items() if count != before[name]}
    assert any(name.startswith("codes_product") for name in ran)


def test_dropout_is_of_training_alone(backend: Backend) -> None:
    layer = adapted(dropout=0.5)
    assert layer.training
    assert not torch.equal(layer(X), layer(X))
    layer.eval()
    assert torch.equal(layer(X), layer(X))


def test_the_base_stays_packed_and_frozen(backend: Backend) -> None:
    network = model()
    packed = [network[i].weight for i in (0, 2)]
    network(normal(3, 32))
    sizes, before = [each.held_nbytes for each in packed], copy.deepcopy(packed)
    names = bittensor.add_lora_(network, rank=2, alpha=4)
    assert names == ("0", "2")
    assert network[0].base.weight is packed[0]
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["0.lora_a", "0.lora_b", "2.lora_a", "2.lora_b"], "PReLU's parameter is frozen too"
    optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):
        network(normal(3, 32)).square().sum().backward()
        optimizer.step()
    for weight, old, size in zip(packed, before, sizes, strict=True):
        assert weight.equal(old)
        assert weight.held_nbytes == size < 0.3 * 4 * weight.shape[0] * weight.shape[1]
    floats = [each for each in network.state_dict().values() if each.is_floating_point()]
    assert max(each.numel() for each in floats) <= 48 * 2, "no float copy of a weight"


def test_filter_and_errors() -> None:
    network = model()
    with pytest.raises(ValueError, match="with 2, all of them excluded"):
        bittensor.add_lora_(network, filter_fn=lambda *_: False)
    for settings, message in (({"rank": 0}, "rank: expected at least 1, got 0"), ({"dropout": 2.0}, "dropout")):
        with pytest.raises(ValueError, match=message):
            bittensor.add_lora_(network, **settings)
    with pytest.raises(ValueError, match="without; add_lora_ first"):
        bittensor.lora_state_dict(network)
    assert isinstance(network[0], QuantizedLinear)
    assert network[3].weight.requires_grad
    assert bittensor.add_lora_(network, filter_fn=lambda name, layer: layer.out_features == 16) == ("2",)
    with pytest.raises(ValueError, match="found them in 2; merge_lora_ first"):
        bittensor.add_lora_(network)
    with pytest.raises(TypeError, match="base: expected a QuantizedLinear, got Linear; quantize it first"):
        LoRALinear(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="a layer cannot replace itself"):
        bittensor.add_lora_(network[2].base)


def test_convolutions_keep_their_layer() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 8))
    quantize_(network, QuantizeConfig(group_size=8), kinds=(torch.nn.Conv2d, torch.nn.Linear))
    x, seen = normal(2, 8, 4, 4), []
    expected = network(x)
    assert bittensor.add_lora_(network, rank=2, filter_fn=lambda name, _: not seen.append(name)) == ("2",)
    assert seen == ["2"]
    assert torch.equal(network(x), expected)
    with pytest.raises(ValueError, match="got QuantizedConv2d with 0"):
        bittensor.add_lora_(network[0])


def test_adapters_are_saved_alone(backend: Backend, tmp_path: Path) -> None:
    network, twin, file = model(), model(), tmp_path / "adapter.safetensors"
    bittensor.add_lora_(network, rank=2, alpha=3)
    for index in (0, 2):
        torch.nn.init.normal_(network[index].lora_b)
    save_file(bittensor.lora_state_dict(network), file)
    assert file.stat().st_size < 4 * 2 * (32 + 48 + 48 + 8) + 1000
    bittensor.add_lora_(twin, rank=2)
    bittensor.load_lora_state_dict_(twin, load_file(file))
    x = normal(5, 32)
    assert torch.equal(twin(x), network(x))
    assert twin.load_state_dict(network.state_dict()) == ([], [])

    state, before = bittensor.lora_state_dict(network), copy.deepcopy(twin.state_dict())
    wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items() if name != "2.lora_b"}
    with pytest.raises(ValueError, match=r"missing '2.lora_b', unexpected 'more'"):
        bittensor.load_lora_state_dict_(twin, wrong | {"more": X})
    other = model()
    bittensor.add_lora_(other, rank=3)
    with pytest.raises(ValueError, match=r"'0.lora_a' of shape \[2, 32\], got \[3, 32\]"):
        bittensor.load_lora_state_dict_(twin, bittensor.lora_state_dict(other))
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.state_dict().items())


@pytest.mark.parametrize("bits", [2, 8])
def test_merging_tells_its_error(backend: Backend, bits: int) -> None:
    network = model(bits)
    bittensor.add_lora_(network, rank=2)
    for index in (0, 2):
        torch.nn.init.normal_(network[index].lora_b, std=0.1)
    exact = [network[i].base.weight.dequantize() + network[i].update() for i in (0, 2)]
    updates, bias, x = [network[i].update() for i in (0, 2)], network[0].base.bias.clone(), normal(5, 32)
    expected = network(x)
    merged = bittensor.merge_lora_(network)
    assert [layer.name for layer in merged] == ["0", "2"]
    for index, layer, w, update in zip((0, 2), merged, exact, updates, strict=True):
        assert type(network[index]) is QuantizedLinear
        assert network[index].weight.bits == bits
        rounding = network[index].weight.dequantize() - w
        assert layer.error == pytest.approx((rounding.norm() / update.norm()).item(), rel=1e-4)
        assert (layer.error < 0.05) == (bits == 8)
        assert str(layer).startswith(f"{layer.name}: rounding of {layer.error:.3g} times")
    assert torch.equal(network[0].bias, bias)
    if bits == 8:
        torch.testing.assert_close(network(x), expected, atol=0.1, rtol=0.1)
    with pytest.raises(ValueError, match="without; add_lora_ first"):
        bittensor.merge_lora_(network)
    with pytest.raises(ValueError, match="use its method merged"):
        bittensor.merge_lora_(adapted())


def test_merging_keeps_the_weight_where_the_update_is_zero(backend: Backend) -> None:
    network, x = model(), normal(5, 32)
    weights, expected = [network[index].weight for index in (0, 2)], network(x)
    bittensor.add_lora_(network, rank=2)
    assert network[0].merged().weight is weights[0]
    with pytest.raises(ValueError, match="method: expected one of"):
        network[0].merged("magic")
    torch.nn.init.normal_(network[2].lora_b)
    errors = [layer.error for layer in bittensor.merge_lora_(network)]
    assert errors[0] == 0 < errors[1] < float("inf")
    assert network[0].weight is weights[0]
    assert network[2].weight is not weights[1]
    assert torch.equal(network[:2](x), (before := model())[:2](x))
    assert torch.equal(before(x), expected)


def test_merging_changes_nothing_if_a_layer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    bittensor.add_lora_(network, rank=2)
    before = list(network)
    with pytest.raises(ValueError, match=r"^method: expected one of"):
        bittensor.merge_lora_(network, "magic")
    with torch.no_grad():
        network[2].lora_b[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"2: expected base and update .*; weight: expected finite values, got nan"):
        bittensor.merge_lora_(network)
    assert all(one is other for one, other in zip(network, before, strict=True))
    torch.nn.init.normal_(network[2].lora_b)
    updates, original = [], LoRALinear.update
    monkeypatch.setattr(LoRALinear, "update", lambda self: updates.append(self) or original(self))
    assert len(bittensor.merge_lora_(network)) == len(updates) == 2, "the update of a layer is computed once"


def test_compiled(backend: Backend) -> None:
    torch._dynamo.reset()
    layer = adapted("int8").eval()
    program = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(program(X), layer(X))
    program(X).sum().backward()
    assert layer.lora_a.grad is not None
    torch._dynamo.reset()


def test_a_short_fine_tune_lowers_the_loss() -> None:
    """A network of 2 bits that has seen upright digits learns those that lie on their side."""
    upright, held_out = digits()
    lying, lying_held_out = ((x.view(-1, 28, 28).mT.flatten(1), y) for x, y in (upright, held_out))
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    train(network, upright, epochs=3, rate=3e-3)
    quantize_(network, QuantizeConfig(bits=2, group_size=None, zero="integer", method="mse"))
    bittensor.add_lora_(network, rank=8)
    before = loss(network, lying_held_out)
    train(network, lying, epochs=2, rate=3e-3)
    after = loss(network, lying_held_out)
    assert after < 0.5 * before, f"held-out loss {before:.3f} before, {after:.3f} after"
