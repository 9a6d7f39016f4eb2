"""The modes of torch in which a layer is called, built and loaded."""

from __future__ import annotations

import copy
import io
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear, quantize
from bittensor.nn import LoRALinear, QuantizedConv2d, QuantizedEmbedding, WeightModule


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(3, 40)


@pytest.fixture
def layer(backend: Backend) -> QuantizedLinear:
    return QuantizedLinear(quantize(normal(16, 40), group_size=8), normal(16))


def test_inference_mode_and_no_grad(layer: QuantizedLinear) -> None:
    expected = layer(X)
    x = X.clone().requires_grad_()
    with torch.inference_mode():
        y = layer(x)
        assert torch.equal(y, expected)
        assert y.is_inference()
    with torch.no_grad():
        assert not layer(x).requires_grad
    assert layer(x).requires_grad


def test_autocast(layer: QuantizedLinear) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        expected = layer(X.to(dtype))
        with torch.autocast("cpu", dtype=dtype):
            y = layer(X)
            assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(X), expected)
            x = X.clone().requires_grad_()
            layer(x).float().sum().backward()
        assert y.dtype is dtype
        assert torch.equal(y, expected)
        assert x.grad is not None
        assert x.grad.dtype is torch.float32


def test_modes_and_profilers_see_the_operators(layer: QuantizedLinear) -> None:
    codes = torch.ones(3, 40, dtype=torch.uint8)
    words = bittensor.pack_weights(codes)
    expected = layer(X), bittensor.packed_matmul(codes, words)
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watching():
        results = layer(X), bittensor.packed_matmul(codes, words)
    with torch.profiler.profile() as profile:
        layer(X), bittensor.packed_matmul(codes, words)
    assert all(torch.equal(result, each) for result, each in zip(results, expected, strict=True))
    profiled = [event.name for event in profile.events()]
    for names in (seen, profiled):
        for operation in ("linear", "packed_matmul"):
            assert any(name.startswith("bittensor") and f"::{operation}" in name for name in names), names


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.func, when it is first used
@pytest.mark.parametrize("mode", ["int8", "float"])
def test_forward_mode_is_refused(mode: str, backend: Backend) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Conv2d(4, 8, 3), torch.nn.Linear(32, 16))
    config = QuantizeConfig(group_size=None, activation_mode=mode)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    bittensor.quantize_(model, config, lambda name, _: name != "2", kinds=kinds, progress=False)
    model[2] = bittensor.nn.FakeQuantizedLinear.from_linear(model[2], activation_mode=mode, group_size=None)
    for layer, x in zip(model, (torch.ones(2, 32), torch.ones(1, 4, 5, 5), torch.ones(2, 32)), strict=True):
        with pytest.raises(NotImplementedError, match="forward mode"):
            torch.func.jvp(layer, (x,), (x,))
        with torch.autograd.forward_ad.dual_level():  # no tangent, nothing to refuse
            assert torch.equal(layer(x), layer(x.clone()))


def test_a_spawned_process_shares_the_memory_of_a_model(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import bittensor, torch

def compare(_, model, x, expected):
    assert torch.equal(model(x), expected)
    assert model[0].weight._held.tensors[0].is_shared()

if __name__ == "__main__":
    model, x = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 16)), torch.ones(1, 64)
    bittensor.quantize_(model, bittensor.QuantizeConfig(group_size=32), progress=False)
    torch.multiprocessing.spawn(compare, (model, x, model(x).detach()), nprocs=2)
"""
    )
    process = run_python(str(program))
    assert process.returncode == 0, process.stderr


def test_threads_share_a_layer(layer: QuantizedLinear) -> None:
    expected, wrong, name = layer(X), [], bittensor.current_backend().name

    def work() -> None:
        with bittensor.use_backend(name):
            wrong.extend(1 for _ in range(50) if not torch.equal(layer(X), expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_threads_share_a_model_and_its_first_use() -> None:
    """Replicas without copies: every layer prepares its weight while all threads call it for the first time."""
    torch.manual_seed(0)
    weight = quantize(normal(50, 40), group_size=8)
    model = torch.nn.Sequential(
        QuantizedEmbedding(weight),
        torch.nn.Unflatten(0, (1, 40)),
        QuantizedConv2d.from_conv(torch.nn.Conv2d(1, 1, 3, padding=1), group_size=None),
        LoRALinear(QuantizedLinear(quantize(normal(40, 40, seed=2), group_size=8)), rank=2),
        QuantizedLinear(weight),
    ).requires_grad_(False)
    tokens = [torch.randint(50, (40,), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    expected = [model(each) for each in tokens]
    for name in ("cpp", "reference"):
        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if isinstance(module, WeightModule):
                module.weight.assign(module.weight.convert(torch.clone))
        for got, wanted in zip(in_threads(name, fresh, tokens), expected, strict=True):
            assert len(got) == 5
            assert all(torch.equal(each, wanted) for each in got), name


def in_threads(name: str, model: torch.nn.Module, inputs: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The results of five calls with each input, each in a thread of its own, which all start at once."""
    results: list[list[torch.Tensor]] = [[] for _ in inputs]
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        with bittensor.use_backend(name):
            start.wait()
            results[index] += [model(inputs[index]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_threads_compute(layer: QuantizedLinear) -> None:
    """A child of a process whose other threads are in the middle of a call: it holds no lock of theirs."""
    expected, done, name = layer(X), threading.Event(), bittensor.current_backend().name
    layer(normal(200, 40))

    def work() -> None:
        with bittensor.use_backend(name):
            while not done.is_set():
                layer(X)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(5):
            process = os.fork()
            if process == 0:
                signal.alarm(60)
                torch.set_num_threads(1)
                os._exit(0 if torch.equal(layer(X), expected) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    finally:
        done.set()
        for worker in workers:
            worker.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use(layer: QuantizedLinear) -> None:
    expected = layer(X)
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # torch's threads do not survive a fork
        os._exit(0 if torch.equal(layer(X), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_layer_on_meta_refuses_a_call(backend: Backend) -> None:
    with torch.device("meta"):
        layer = QuantizedLinear.from_linear(torch.nn.Linear(40, 24), group_size=8)
    with pytest.raises(ValueError, match=r"weight: .* on meta"):
        layer(X)
    with bittensor.use_backend("cpp"):
        prepared = (
            quantize(normal(16, 40), group_size=8).prepared_for(bittensor.get_backend("cpp")).tensors[0].to("meta")
        )
    for operator, given, size in (("linear_forward", X, 16), ("linear_input_grad", normal(3, 16), 40)):
        with pytest.raises(ValueError, match=r"weight: .* on meta"):
            getattr(torch.ops.bittensor_cpp, operator)(given, prepared, size)


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_meta_construction(backend: Backend, zero: str) -> None:
    config = QuantizeConfig(group_size=16, zero=zero)
    trained = torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.ReLU(), torch.nn.Linear(24, 8))
    bittensor.quantize_(trained, config)
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.ReLU(), torch.nn.Linear(24, 8))
        bittensor.quantize_(model, config)
    assert model[0].weight.device.type == "meta"
    model.load_state_dict(trained.state_dict(), assign=True)
    assert model[0].weight.device.type == "cpu"
    assert torch.equal(model(X), trained(X))


def test_weights_load_as_weights_only(backend: Backend) -> None:
    weight = quantize(normal(16, 40), group_size=8, zero="integer")
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    assert torch.load(file, weights_only=True).equal(weight)
