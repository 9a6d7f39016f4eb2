"""What PyTorch makes of modules besides calling them: exported programs, shards of a state, forks, autocast."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict

import bittensor
from bittensor import PackedLinear, QuantizedLinear, add_lora_, quantize_, use_backend

BACKENDS = ("cpp", "reference")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def layer(features: int = 64, outputs: int = 32) -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear.from_linear(torch.nn.Linear(features, outputs), group_size=32)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_layer_passes_gradients_to_its_input(backend: str, strict: bool) -> None:
    """As one of torch does: the prompt of a frozen model can be trained through its exported program."""
    own = layer()
    program = torch.export.export(own, (torch.randn(3, 64),), strict=strict).module()
    gradients = []
    for called in (program, own):
        x = torch.ones(3, 64, requires_grad=True)
        called(x).square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_rows_to_unpack_may_be_dynamic(backend: str) -> None:
    class Unpack(torch.nn.Module):
        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return bittensor.unpack_tensor(words, words.shape[0], 16)

    rows = torch.export.Dim("rows", max=99)
    program = torch.export.export(Unpack(), (torch.zeros(4, 1, dtype=torch.int64),), dynamic_shapes=({0: rows},))
    words = bittensor.pack_weights(torch.randint(0, 16, (7, 16), dtype=torch.uint8))
    assert torch.equal(program.module()(words), bittensor.unpack_weights(words, 16))


def test_a_convolution_is_compiled_once_for_all_batches(backend: str) -> None:
    torch.manual_seed(0)
    convolution = bittensor.nn.QuantizedConv2d.from_conv(torch.nn.Conv2d(8, 8, 3), group_size=8)
    compiled = torch.compile(convolution, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=2):
        for batch in range(2, 8):
            images = torch.randn(batch, 8, 6, 6, requires_grad=True)
            y = compiled(images)
            assert torch.equal(y, convolution(images))
            y.sum().backward()


def test_a_scale_that_is_a_parameter(backend: str) -> None:
    codes = torch.ones(8, 16, dtype=torch.uint8)
    packed = PackedLinear(codes, scale=torch.full((8,), 0.1))
    packed.scale = torch.nn.Parameter(torch.full((8,), 0.2))
    expected = PackedLinear(codes, scale=torch.full((8,), 0.2))
    assert torch.equal(packed(codes[:2]), expected(codes[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.words": None}, r"0\.words: expected a tensor, got NoneType"),
        ({"0.scales": [1.0]}, r"0\.scales: expected a tensor, got list"),
        ({"0.words": torch.empty(32, 4, dtype=torch.int64, device="meta")}, r"0\.words: expected values, got .* meta"),
        ({"0.form": torch.empty(7, dtype=torch.int64, device="meta")}, r"0\.form: expected numbers, got .* meta"),
    ],
)
def test_what_cannot_be_loaded_is_named_and_the_rest_is_loaded(
    backend: str, change: dict[str, object], message: str
) -> None:
    model, other = (torch.nn.Sequential(layer(), torch.nn.Linear(32, 4)) for _ in range(2))
    with torch.no_grad():
        other[1].weight.add_(1)  # type: ignore[operator]
    before = model[0].weight
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict({**other.state_dict(), **change})
    assert torch.equal(model[1].weight, other[1].weight)  # type: ignore[arg-type]
    assert model[0].weight.equal(before)  # type: ignore[operator, union-attr]


def test_distributed_checkpoints_take_the_state(backend: str) -> None:
    model = torch.nn.Sequential(layer())
    expected = model.state_dict()
    state = get_model_state_dict(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_what_was_loaded_in_inference_mode_can_be_trained_through(backend: str) -> None:
    own, other = layer(), layer()
    with torch.inference_mode():
        own.load_state_dict(other.state_dict())
    x = torch.ones(2, 64, requires_grad=True)
    own(x).sum().backward()
    assert x.grad is not None


def test_updates_of_adapters_do_not_depend_on_autocast() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    quantize_(model, bittensor.QuantizeConfig(group_size=32))
    add_lora_(model, rank=2)
    adapter = model[0]
    assert isinstance(adapter, bittensor.nn.LoRALinear)
    torch.nn.init.normal_(adapter.lora_b)
    expected = adapter.update()
    with torch.autocast("cpu"):
        assert torch.equal(adapter.update(), expected)
    assert "alpha=on meta" in repr(adapter.to("meta"))


def test_float64_under_autocast_is_refused_as_without(backend: str) -> None:
    with torch.autocast("cpu"), pytest.raises(TypeError, match="float64"):
        layer()(torch.ones(2, 64, dtype=torch.float64))


_FORK = """
import os, threading, time
import torch, bittensor
threading.Thread(target=bittensor.current_backend, daemon=True).start()
time.sleep({delay})
if (child := os.fork()) == 0:
    bittensor.current_backend()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_fork_while_a_backend_is_loaded() -> None:
    """The child of a process whose other thread is loading one can load it, too."""
    script = _FORK.format(delay=0.004)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, env=dict(os.environ))
