"""Operators under torch.library.opcheck and torch.compile, on both backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

import bittensor
from bittensor import Backend, PackedLinear, QuantizeConfig, QuantizedLinear, quantize, use_backend
from bittensor.nn import FakeQuantizedLinear, LoRALinear

ZEROS = ("symmetric", "integer", "float")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 16, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def compiled(function: Any) -> Any:
    """Through AOTAutograd, without the time that Inductor takes to generate code."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def linear_arguments(zero: str, backend: str) -> tuple[Any, ...]:
    prepared = quantize(normal(16, 40), group_size=16, zero=zero).prepared_for(bittensor.get_backend(backend))
    form = prepared.form
    return list(prepared.tensors), prepared.layout, list(form.shape), form.bits, form.group_size, zero, form.scale_dtype


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("grad", [False, True])
def test_operators_of_the_cpp_backend(zero: str, grad: bool) -> None:
    ops, check = torch.ops.bittensor_cpp, torch.library.opcheck
    bittensor.get_backend("cpp")
    weight = quantize(normal(16, 40), group_size=16, zero=zero)
    (prepared,) = weight.prepared_for(bittensor.get_backend("cpp")).tensors
    canonical = [weight.words, weight.scales, weight.zeros, weight.offsets]
    x, bias, y = normal(2, 3, 40).requires_grad_(grad), normal(16).requires_grad_(grad), normal(2, 3, 16)
    check(ops.linear.default, (x, prepared, 16))
    check(ops.linear.default, (x, prepared, 16, bias, zero == "float", 1))
    check(ops.linear_input_grad.default, (y, prepared, 40))
    if not grad:
        check(ops.linear_forward.default, (x, prepared, 16, bias))
        check(ops.embedding.default, (torch.tensor([[3, 0, 15]]), prepared, 40, torch.bfloat16))
        check(ops.prepare.default, (*canonical, 40, 4, 16))
        check(ops.restore.default, (prepared, 16, 40, 4, 16, ZEROS.index(zero), torch.float32))


def test_fused_operators_of_the_cpp_backend() -> None:
    ops, check = torch.ops.bittensor_cpp, torch.library.opcheck
    backend = bittensor.get_backend("cpp")
    (square,) = quantize(normal(16, 16), group_size=16).prepared_for(backend).tensors
    x, residual = normal(3, 16), normal(3, 16)
    check(ops.fused_linear.default, (x, square, 16, normal(16), 1e-5, False, residual))
    check(ops.fused_linear.default, (normal(3, 32), square, 16, None, 0.0, True, None, True))
    # 2 heads over 1 of the cache, of 16 values; 70 places.
    keys, values = torch.zeros(1, 2, 16, 64), torch.zeros(1, 70, 16)
    check(ops.attend.default, (normal(3, 64), normal(3, 16), normal(3, 16), keys, values, 5, 2))
    shapes = [(64, 16), (16, 32), (48, 16), (16, 24)]
    weights = [quantize(normal(*shape), group_size=8).prepared_for(backend).tensors[0] for shape in shapes]
    angles = (normal(3, 16), normal(3, 16))
    check(
        ops.decoder_layers.default,
        (x, normal(1, 2, 16), weights, 1e-5, *angles, keys[None].clone(), values[None].clone(), 5, 2),
    )
    images, one, padding = normal(2, 5, 6, 4), (1, 1), (1, 1, 0, 2)
    check(ops.conv2d.default, (images, square, 16, normal(16), (2, 2), one, padding, (2, 1)))
    (depthwise,) = quantize(normal(4, 9), group_size=None).prepared_for(backend).tensors
    check(ops.conv2d.default, (images, depthwise, 4, None, (3, 3), (2, 1), padding, one, 4, True, 1))


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gradients_of_fake_quantization(zero: str, dtype: torch.dtype) -> None:
    """A compiled program reads what the fake promises: a gradient of another dtype would be read as other numbers."""
    scales, shifts = normal(16, 3).abs().to(dtype), None if zero == "symmetric" else normal(16, 3).to(dtype)
    for x in (normal(2, 3, 40), normal(3, 2, 40).bfloat16().transpose(0, 1)):
        dy = normal(2, 3, 16).to(x.dtype)
        arguments = (dy, x, normal(16, 40).to(dtype), scales, shifts, 4, 16, zero, torch.float32)
        torch.library.opcheck(torch.ops.bittensor.fake_quantized_linear_grads.default, arguments)


def test_operators_on_codes_of_the_cpp_backend() -> None:
    ops, check = torch.ops.bittensor_cpp, torch.library.opcheck
    bittensor.get_backend("cpp")
    words = ops.pack.default(codes(3, 20))
    check(ops.pack.default, (codes(2, 3, 20),))
    check(ops.unpack.default, (words, 20))
    check(ops.packed_matmul.default, (codes(2, 20), words, None, 4, None, 3, 7, torch.tensor(0.05), 4))
    check(ops.packed_matmul.default, (words, words, codes(3), 4, 20, 0, 0, None, 0, True))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("grad", [False, True])
def test_operators_on_any_backend(backend: str, grad: bool) -> None:
    ops, check = torch.ops.bittensor, torch.library.opcheck
    x, bias = normal(2, 3, 40).requires_grad_(grad), normal(16).requires_grad_(grad)
    weight = linear_arguments("integer", backend)
    check(ops.linear.default, (x, *weight, bias, "int8", "relu", backend))
    check(ops.linear.default, (x, *weight, None, "float", None, backend))
    check(ops.linear_input_grad.default, (normal(2, 3, 16), *weight, backend))
    check(ops.embedding.default, (torch.tensor([[3, 0, 15]]), *weight, torch.float16, backend))
    scales, shifts = normal(16, 3).abs().requires_grad_(grad), normal(16, 3).requires_grad_(grad)
    floats = (x, normal(16, 40).requires_grad_(grad), scales, shifts, bias)
    check(ops.fake_quantized_linear.default, (*floats, 4, 16, "float", torch.float32, "float", backend))
    words = ops.pack.default(codes(3, 20), 4, backend)
    check(ops.pack.default, (codes(2, 3, 20), 4, backend))
    check(ops.unpack.default, (words, 20, 4, backend))
    check(ops.packed_matmul.default, (codes(2, 20), words, None, 4, None, 3, 7, torch.tensor(0.5), 4, None, backend))


class Block(torch.nn.Module):
    """A transformer block: attention and a gated MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.gate, self.up = torch.nn.Linear(width, 2 * width), torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        hidden = self.norm2(x)
        return x + self.down(torch.nn.functional.silu(self.gate(hidden)) * self.up(hidden))


def block() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block(32, 4)
    bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=16))
    return model.eval()


def test_transformer_block(backend: Backend) -> None:
    model, program = block(), None
    program = compiled(model)
    with torch.no_grad():
        for batch, length in ((2, 7), (3, 9), (4, 5), (6, 31), (5, 12)):
            x = normal(batch, length, 32, seed=length)
            assert torch.equal(program(x), model(x))
    assert graphs() == 2, "one for the first shape, one for all others"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch, by torch
def test_transformer_block_with_inductor() -> None:
    model = block()
    program = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, length in ((2, 7), (3, 9)):
            x = normal(batch, length, 32, seed=length)
            torch.testing.assert_close(program(x), model(x), atol=0.03, rtol=0.03)  # codes at a tie may differ
    layer = QuantizedLinear(quantize(normal(16, 40), group_size=8), normal(16))
    x = normal(3, 40)
    program = torch.compile(lambda x: layer(x * 2) * 2, fullgraph=True)
    assert torch.equal(program(x), layer(x * 2) * 2)
    assert graphs() == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch, by torch
def test_lora_with_inductor() -> None:
    layer = LoRALinear(QuantizedLinear(quantize(normal(16, 40), group_size=8), normal(16)), rank=4)
    torch.nn.init.normal_(layer.lora_b, generator=torch.Generator().manual_seed(0))
    program = torch.compile(layer, fullgraph=True)
    results = []
    for function in (layer, program):
        layer.zero_grad()
        x = normal(3, 40).requires_grad_()
        y = function(x)
        y.backward(normal(3, 16, seed=5))
        results.append((y, x.grad, layer.lora_a.grad, layer.lora_b.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_switching_the_backend_is_honoured() -> None:
    layer = QuantizedLinear(quantize(normal(16, 40), group_size=8), normal(16))
    program, x = compiled(layer), normal(3, 40)
    expected = program(x)
    for name in ("cpp:scalar", "reference", "cpp:avx2", "cpp", "cpp:scalar"):
        if name not in {"reference", "cpp", *(f"cpp:{v}" for v in bittensor.get_backend("cpp").capabilities.variants)}:
            continue
        with use_backend(name) as backend:
            before = backend.kernel_calls()
            assert torch.equal(program(x), expected)
            ran = {kernel for kernel, count in backend.kernel_calls().items() if count != before[kernel]}
        variant = name.partition(":")[2]
        assert (not ran) == (name == "reference")
        assert not variant or {kernel for kernel in ran if "linear" in kernel} == {f"int8_linear_b4_{variant}"}
    count = graphs()
    with use_backend("cpp:scalar"):
        program(x)
    program(x)
    assert graphs() == count, "what was compiled for a backend is kept"


def test_blocks_share_a_program() -> None:
    layers = [QuantizedLinear(quantize(normal(16, 16, seed=i), group_size=8)) for i in range(12)]
    program = compiled(QuantizedLinear.forward)
    for layer in layers:
        assert torch.equal(program(layer, normal(3, 16)), layer(normal(3, 16)))
    assert graphs() == 1


def test_a_new_weight_is_used(backend: Backend) -> None:
    layer, other = (QuantizedLinear(quantize(normal(16, 40, seed=i), group_size=8)) for i in range(2))
    program, x = compiled(layer), normal(3, 40)
    program(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(program(x), other(x))


def test_functions_on_a_weight_that_no_backend_has_used(backend: Backend) -> None:
    weight, x = quantize(normal(16, 40), group_size=8), normal(3, 40)
    y = compiled(lambda x: bittensor.linear(x, weight, None, "float"))(x)
    assert torch.equal(y, bittensor.linear(x, weight, None, "float"))
    fresh = quantize(normal(16, 40), group_size=8)

    class Functional(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return bittensor.linear(x, fresh, None, "float")

    assert torch.equal(torch.export.export(Functional(), (x,)).module()(x), y)
    assert type(fresh.words) is torch.Tensor


def test_gradients(backend: Backend) -> None:
    weight = quantize(normal(16, 40), group_size=8)
    for epilogue in (None, "relu", "gelu"):
        results = []
        for wrap in (lambda f: f, compiled):
            x, bias = normal(2, 3, 40).requires_grad_(), normal(16).requires_grad_()
            y = wrap(lambda x, b, e=epilogue: bittensor.linear(x, weight, b, "int8", e))(x, bias)
            results.append((y, *torch.autograd.grad(y, (x, bias), normal(2, 3, 16, seed=5))))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("zero", ZEROS)
def test_quantization_aware_training(backend: Backend, zero: str) -> None:
    layer = FakeQuantizedLinear(normal(16, 40), normal(16), QuantizeConfig(2, 16, zero))
    program = compiled(layer)
    for rows in (3, 4, 5, 6):
        results = []
        for function in (layer, program):
            layer.zero_grad()
            x = normal(rows, 40, seed=rows).requires_grad_()
            y = function(x)
            y.backward(normal(rows, 16, seed=5))
            results.append((y, x.grad, *(each.grad for each in layer.parameters())))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert graphs() == 2
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="has it diverged"):
        program(x)


def test_switching_the_backend_of_a_layer_in_training() -> None:
    layer, x = FakeQuantizedLinear(normal(16, 40), None, QuantizeConfig(4, 8)), normal(3, 40)
    program = compiled(layer)
    for name, kernel in (("cpp", "int8_linear_b4"), ("reference", None), ("cpp:scalar", "int8_linear_b4_scalar")):
        with use_backend(name) as backend:
            before = backend.kernel_calls()
            assert torch.equal(program(x), layer.to_quantized()(x))
            ran = {each for each, count in backend.kernel_calls().items() if count != before[each]}
        assert any(each.startswith(kernel) for each in ran) if kernel else not ran


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch, by torch
def test_quantization_aware_training_with_inductor() -> None:
    layer = FakeQuantizedLinear(normal(16, 40), normal(16), QuantizeConfig(4, 16))
    program, grads = torch.compile(layer, fullgraph=True), []
    for function in (layer, program):
        layer.zero_grad()
        x = normal(3, 40).requires_grad_()
        y = function(x)
        y.backward(normal(3, 16, seed=5))
        grads.append((y, x.grad, *(each.grad for each in layer.parameters())))
    assert all(torch.equal(eager, fused) for eager, fused in zip(*grads, strict=True))


@pytest.mark.parametrize("mode", ["int8", "float"])
def test_adapters(backend: Backend, mode: str) -> None:
    base = QuantizedLinear(quantize(normal(16, 40), group_size=8), normal(16), activation_mode=mode, epilogue="relu")
    layer = LoRALinear(base, rank=4)
    torch.nn.init.normal_(layer.lora_b, generator=torch.Generator().manual_seed(0))
    program = compiled(layer)
    for rows in (3, 4, 5, 6):
        results = []
        for function in (layer, program):
            layer.zero_grad()
            x = normal(rows, 40, seed=rows).requires_grad_()
            y = function(x)
            y.backward(normal(rows, 16, seed=5))
            results.append((y, x.grad, layer.lora_a.grad, layer.lora_b.grad))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert graphs() == 2


def test_packed_matmul_with_defaults(backend: Backend) -> None:
    x, weight = codes(3, 40), bittensor.pack_weights(codes(6, 40, seed=1))
    packed = bittensor.pack_weights(x)
    assert torch.equal(compiled(bittensor.packed_matmul)(x, weight), bittensor.packed_matmul(x, weight))
    expected = bittensor.packed_matmul(packed, weight, in_features=40)
    assert torch.equal(compiled(bittensor.packed_matmul)(packed, weight, in_features=40), expected)


def test_packed_linear(backend: Backend) -> None:
    layer = PackedLinear(codes(6, 20), scale=0.05, x_zero=3, weight_zero=7, out_zero=4)

    def through(x: torch.Tensor) -> torch.Tensor:
        return bittensor.unpack_tensor(layer(bittensor.pack_weights(x)), x.shape[0], 6)

    program = compiled(through)
    for rows in (4, 5, 6, 7):
        assert torch.equal(program(codes(rows, 20)), through(codes(rows, 20)))
    assert graphs() == 2
    assert torch.equal(torch.export.export(layer, (codes(4, 20),)).module()(codes(4, 20)), layer(codes(4, 20)))


def test_values_are_checked_when_a_compiled_program_runs(backend: Backend) -> None:
    program = compiled(lambda x: bittensor.pack_weights(x, bits=2))
    assert torch.equal(program(codes(2, 20) & 3), bittensor.pack_weights(codes(2, 20) & 3, bits=2))
    with pytest.raises((ValueError, RuntimeError), match="expected codes of 2 bits"):
        program(codes(2, 20))
