"""Programs that leave the process: torch.export, and AOTInductor without any Python of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bittensor

TORCH = Path(torch.__file__).parent
ROWS, COLUMNS = 5, 64


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10))
    bittensor.quantize_(layers, bittensor.QuantizeConfig(group_size=16, zero="integer"))
    return layers.eval()


@pytest.fixture(scope="module")
def program(model: torch.nn.Module) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=2)
    return torch.export.export(model, (x_of(3),), dynamic_shapes=({0: rows},))


def x_of(rows: int) -> torch.Tensor:
    return torch.arange(rows * COLUMNS).float().div(7).sin().reshape(rows, COLUMNS)


def library() -> Path:
    """The library of the operators, as the C++ backend loaded it."""
    bittensor.get_backend("cpp")
    (path,) = (path for path in torch.ops.loaded_libraries if Path(path).name == "libbittensor_torch.so")
    return Path(path)


def hexadecimal(y: torch.Tensor) -> list[str]:
    return [float(value).hex() for value in y.flatten()]


def test_an_exported_program_calls_the_operators_of_the_library(program: torch.export.ExportedProgram) -> None:
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in called if "bittensor" in name} == {"bittensor_cpp.linear.default"}
    assert torch.equal(program.module()(x_of(9)), program.module()(x_of(9)))


def test_an_exported_program_runs_in_a_process_without_bittensor(
    model: torch.nn.Module,
    program: torch.export.ExportedProgram,
    tmp_path: Path,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    torch.export.save(program, tmp_path / "model.pt2")
    code = f"""
import sys, torch
torch.ops.load_library({str(library())!r})
model = torch.export.load("model.pt2").module()
x = torch.arange({ROWS * COLUMNS}).float().div(7).sin().reshape({ROWS}, {COLUMNS})
print(*[float(value).hex() for value in model(x).flatten()])
assert not [name for name in sys.modules if name.startswith("bittensor")]
"""
    process = run_python("-W", "ignore", "-c", code)
    assert process.returncode == 0, process.stderr
    with torch.no_grad():
        assert process.stdout.split() == hexadecimal(model(x_of(ROWS)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch, by torch
def test_a_package_of_aotinductor_runs_in_cpp(
    model: torch.nn.Module, program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    runner = tmp_path / "runner"
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    includes = [f"-isystem{TORCH / 'include'}", f"-isystem{TORCH / 'include/torch/csrc/api/include'}"]
    # The old tag holds for the package as well, which needs libtorch.so and does not say where that is.
    rpath = f"-Wl,--disable-new-dtags,-rpath,{TORCH / 'lib'}"
    link = [f"-L{TORCH / 'lib'}", rpath, "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", "-ldl"]
    source = Path(__file__).with_name("aoti_runner.cpp")
    flags = ["-std=c++20", "-O0", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    subprocess.run(["g++", *flags, *includes, str(source), "-o", str(runner), *link], check=True)
    call = [str(runner), package, str(library()), str(ROWS), str(COLUMNS)]
    process = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    found = torch.tensor([float.fromhex(value) for value in process.stdout.split()])
    with torch.no_grad():
        assert torch.equal(found.reshape(ROWS, 10), model(x_of(ROWS)))
