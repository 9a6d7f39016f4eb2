"""The command ``bittensor``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_backends import FakeEntryPoint, replace_installed
from typer.testing import CliRunner

import bittensor
from bittensor import info
from bittensor.bench import LinearTiming
from bittensor.cli import app, main
from bittensor.commands import choices
from bittensor.extras import extra

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


class Loads(bittensor.Backend):
    name = "loads"
    protocol_version = bittensor.PROTOCOL_VERSION
    capabilities = bittensor.Capabilities(bits=frozenset({2, 4}), variants=("wide",))

    def pack(self, *_: Any) -> Any: ...

    def unpack(self, *_: Any) -> Any: ...

    def packed_matmul(self, *_: Any) -> Any: ...

    def describe(self) -> dict[str, str]:
        return {"isa": "avx2", "isa reason": "best of [avx2, scalar]", "kernels": "matmul_avx2"}


def fails_to_load() -> bittensor.Backend:
    raise ImportError("cannot open [libmissing.so]")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, registry_state: None) -> Callable[..., None]:
    """Replace the installed backends; the first one is the default."""

    def replace(**factories: Callable[[], bittensor.Backend]) -> None:
        points = {name: FakeEntryPoint(factory) for name, factory in factories.items()}
        default = next(iter(factories))
        replace_installed(monkeypatch, points, default)
        for module in (info, choices):
            monkeypatch.setattr(module, "DEFAULT_BACKEND", default)

    return replace


def test_help_names_the_commands() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "info" in result.output
    assert "conformance" in result.output


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output == f"bittensor {bittensor.__version__}\n"


def test_info_shows_backend_isa_and_reasons(install: Callable[..., None]) -> None:
    install(loads=Loads)
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    for text in (bittensor.__version__, "the default", "avx2", "best of [avx2, scalar]", "matmul_avx2", "loads:wide"):
        assert text in result.output


def test_info_json(install: Callable[..., None]) -> None:
    install(loads=Loads)
    result = runner.invoke(app, ["info", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert facts["version"] == bittensor.__version__
    assert facts["backend"] == {
        "name": "loads",
        "reason": "the default",
        "details": {"isa": "avx2", "isa reason": "best of [avx2, scalar]", "kernels": "matmul_avx2"},
        "error": None,
    }
    assert facts["installed_backends"] == [
        {
            "name": "loads",
            "operations": ["pack", "packed_matmul", "unpack"],
            "bits": [2, 4],
            "numerics": "exact",
            "variants": ["loads:wide"],
            "error": None,
            "missing": None,
        }
    ]
    assert {"cpu", "torch_threads", "torch", "python"} <= set(facts)


def test_info_shows_a_load_error(install: Callable[..., None]) -> None:
    install(loads=Loads, broken=fails_to_load)
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 1
    assert "cannot open [libmissing.so]" in result.output
    assert "avx2" in result.output, "the selected backend is still described"


def test_info_shows_a_missing_extra(install: Callable[..., None]) -> None:
    """A backend whose extra is not installed is not an error: it was not asked for."""

    def lacks_its_extra() -> bittensor.Backend:
        with extra("rivals", "the backend 'other'", ("no_such_package",)):
            import no_such_package  # noqa: F401
        raise AssertionError

    install(loads=Loads, other=lacks_its_extra)
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    wanted = "the backend 'other' needs no_such_package, which is not installed: pip install 'packed-bittensor[rivals]'"
    assert wanted in result.output
    result = runner.invoke(app, ["conformance", "-b", "other"])
    assert result.exit_code == 2
    assert "pip install 'packed-bittensor[rivals]'" in result.output


def test_info_with_a_broken_default(install: Callable[..., None]) -> None:
    install(broken=fails_to_load, loads=Loads)
    result = runner.invoke(app, ["info", "--json"])
    assert result.exit_code == 1
    facts = json.loads(result.output)
    assert (facts["backend"]["name"], facts["backend"]["reason"]) == ("broken", "the default")
    assert "cannot open" in facts["backend"]["error"]


def test_info_with_an_unknown_backend(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(loads=Loads)
    monkeypatch.setenv("BITTENSOR_BACKEND", "absent")
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 1
    assert "unknown backend 'absent'; installed backends: loads" in result.output
    assert "BITTENSOR_BACKEND=absent" in result.output


def test_info_with_a_failing_describe(install: Callable[..., None]) -> None:
    class Mute(Loads):
        def describe(self) -> dict[str, str]:
            raise OSError("no such device")

    install(mute=Mute)
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 1
    assert "no such device" in result.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [("processor : 0\nmodel name\t: A Good CPU\n\nmodel name : another\n", "A Good CPU"), ("processor : 0\n", None)],
)
def test_cpu_model(tmp_path: Path, text: str, expected: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    unknown = info.cpu_model(tmp_path / "absent")
    assert unknown
    assert info.cpu_model(cpuinfo) == (expected or unknown)


def test_a_backend_of_another_protocol_version(install: Callable[..., None]) -> None:
    """`info` shows it with its error beside the others; the suite refuses to start on it."""

    class Older(Loads):
        protocol_version = bittensor.PROTOCOL_VERSION - 1

    install(older=Older, loads=Loads)
    expected = "'older' follows protocol version 0, this BitTensor speaks version 1; install a newer version of the"
    result = runner.invoke(app, ["info", "--json"])
    assert result.exit_code == 1
    errors = {each["name"]: each["error"] for each in json.loads(result.output)["installed_backends"]}
    assert expected in errors["older"]
    assert errors["loads"] is None
    result = runner.invoke(app, ["conformance", "--backend", "older"])
    assert result.exit_code == 2
    assert expected in result.output


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for the conformance suite; records how it was called. ``outcome`` is returned or raised."""
    calls: dict[str, Any] = {"outcome": 0}

    def run(backends: list[str], **options: Any) -> int:
        calls.update(backends=backends, options=options)
        if isinstance(calls["outcome"], Exception):
            raise calls["outcome"]
        return int(calls["outcome"])

    package, module = ModuleType("bittensor_conformance"), ModuleType("bittensor_conformance.runner")
    module.run = run  # type: ignore[attr-defined]
    package.runner = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bittensor_conformance", package)
    monkeypatch.setitem(sys.modules, "bittensor_conformance.runner", module)
    return calls


def test_conformance_passes_its_options_on(suite: dict[str, Any], tmp_path: Path) -> None:
    failures, report = tmp_path / "failures.json", tmp_path / "report.json"
    failures.write_text("{}")
    arguments = ["--backend", "one", "--backend", "two:fast", "--profile", "ci", "--report", str(report)]
    badge = tmp_path / "badge.svg"
    arguments += ["-k", "pack and not matmul", "--expected-failures", str(failures), "--badge", str(badge)]
    arguments += ["--max-examples", "5", "--minutes", "1.5", "--jobs", "3"]
    result = runner.invoke(app, ["conformance", *arguments])
    assert result.exit_code == 0, result.output
    assert suite["backends"] == ["one", "two:fast"]
    assert suite["options"] == {
        "profile": "ci",
        "report": report,
        "badge": badge,
        "keyword": "pack and not matmul",
        "expected_failures": failures,
        "max_examples": 5,
        "minutes": 1.5,
        "jobs": 3,
    }


def test_conformance_defaults(suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITTENSOR_BACKEND", raising=False)
    suite["outcome"] = 1
    assert runner.invoke(app, ["conformance"]).exit_code == 1, "the status of the suite is the status of the command"
    assert suite["backends"] == ["cpp"]
    assert suite["options"].pop("profile") == "dev"
    assert set(suite["options"].values()) == {None}
    monkeypatch.setenv("BITTENSOR_BACKEND", "reference")
    runner.invoke(app, ["conformance"])
    assert suite["backends"] == ["reference"]


@pytest.mark.parametrize("module", ["pytest", "hypothesis", "numpy"])
def test_conformance_names_the_missing_extra(suite: dict[str, Any], module: str) -> None:
    suite["outcome"] = ModuleNotFoundError(f"No module named {module!r}", name=module)
    result = runner.invoke(app, ["conformance"])
    assert result.exit_code == 2
    assert f"needs {module}, which is not installed: pip install 'packed-bittensor[conformance]'" in result.output


def test_info_names_every_instruction_set() -> None:
    source = (Path(__file__).parents[1] / "backends" / "cpp" / "src" / "dispatch.cpp").read_text()
    names = re.findall(r'\bImplementation\{\s*"(\w+)"', source)
    assert len(names) > 5
    text = " ".join(runner.invoke(app, ["info", "--help"]).output.replace("│", " ").split())
    assert ", ".join(f'"{name}"' for name in names) in text


def test_conformance_reports_an_unknown_backend(suite: dict[str, Any]) -> None:
    suite["outcome"] = bittensor.UnknownBackendError("unknown backend 'absent'")
    result = runner.invoke(app, ["conformance", "--backend", "absent"])
    assert result.exit_code == 2
    assert "bittensor: unknown backend 'absent'" in result.output


def test_conformance_refuses_unknown_profiles(suite: dict[str, Any]) -> None:
    assert runner.invoke(app, ["conformance", "--profile", "weekly"]).exit_code == 2
    assert "backends" not in suite


def test_module_in_a_new_process(run_python: RunPython) -> None:
    process = run_python("-m", "bittensor", "info", "--json", BITTENSOR_BACKEND="reference")
    assert process.returncode == 0, process.stdout + process.stderr
    facts = json.loads(process.stdout)
    assert (facts["backend"]["name"], facts["backend"]["reason"]) == ("reference", "BITTENSOR_BACKEND=reference")
    assert {backend["name"] for backend in facts["installed_backends"]} >= {"cpp", "reference"}


@pytest.mark.parametrize("options", [["--help"], ["info", "--json"]])
def test_an_output_that_cannot_be_written(options: list[str]) -> None:
    """One line, instead of the traceback of a program that is not at fault."""
    command = [sys.executable, "-m", "bittensor", *options]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (
        2, "bittensor: the output cannot be written: No space left on device\n"
    )  # fmt: skip


def test_an_output_that_is_closed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "bittensor: the output cannot be written: standard output is closed\n"


def test_bench_json() -> None:
    arguments = ["bench", "--shape", "64x96", "--shape", "32x128", "--rows", "1", "--rows", "3", "--group-size", "32"]
    arguments += ["-b", "cpp", "-b", "reference", "--threads", "1", "--seconds", "0.005", "--json"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["bits"], facts["group_size"], facts["threads"]) == (4, 32, 1)
    cells = [(each["out_features"], each["in_features"], each["rows"], each["backend"]) for each in facts["timings"]]
    assert cells == [
        (n, k, m, backend) for n, k in ((64, 96), (32, 128)) for m in (1, 3) for backend in ("cpp", "reference")
    ]
    for each in facts["timings"]:
        operations = 2 * each["out_features"] * each["in_features"] * each["rows"]
        assert each["gops"] == pytest.approx(operations / each["microseconds"] / 1e3)
        assert each["times_float32"] == pytest.approx(each["float32_microseconds"] / each["microseconds"])
        assert each["gigabytes_per_second"] > 0


def test_bench_table() -> None:
    arguments = ["bench", "--shape", "32x64", "--rows", "2", "--group-size", "0", "--bits", "8", "--seconds", "0.005"]
    result = runner.invoke(app, [*arguments, "-b", "cpp:scalar", "--activation-mode", "float", "--zero", "float"])
    assert result.exit_code == 0, result.output
    assert "linear, 8 bits, group size K, float, float activations" in result.output
    assert "cpp:scalar" in result.output
    assert "32 x 64" in result.output


def test_bench_cuts_no_figure_where_it_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = LinearTiming("cpp:avx512vnni", 110080, 40960, 512, 123456.7, 765432.1, 1234.5, 0.0123)
    monkeypatch.setattr("bittensor.bench.time_linear", lambda *_, **__: iter([timing]))
    result = runner.invoke(app, ["bench"])
    assert result.exit_code == 0, result.output
    for figure in ("cpp:avx512vnni", "110080 x 40960", "123456.7", "765432.1", "0.0123"):
        assert figure in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--shape", "64"], "--shape: expected NxK, two counts of at least 1, got '64'"),
        (["--shape", "0x64"], "--shape: expected NxK"),
        (["--shape", "8x64"], "group_size: expected at most the 64 columns"),
        (["--bits", "3"], "bits: expected one of"),
        (["--backend", "absent"], "unknown backend 'absent'"),
        (["--rows", "0"], "--rows"),
    ],
)
def test_bench_refuses(options: list[str], reason: str) -> None:
    result = runner.invoke(app, ["bench", "--seconds", "0.001", *options])
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["info", "conformance", "inspect", "quantize", "bench", "generate"])
def test_every_command_says_its_exit_status(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "xit status" in result.output
