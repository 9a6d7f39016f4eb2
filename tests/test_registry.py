"""Selection and loading of backends. Fake entry points stand for installed packages."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable

import pytest
import torch
from fake_backends import Fake, FakeEntryPoint, WithVariants, replace_installed

import bittensor
from bittensor import BackendLoadError, Capabilities, UnknownBackendError, registry

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


class UnknownOperation(Fake):
    capabilities = Capabilities(operations=frozenset({"pack", "convolve"}))


class Incomplete:
    name = "incomplete"
    protocol_version = bittensor.PROTOCOL_VERSION
    capabilities = Capabilities()


def broken() -> Fake:
    raise ImportError("libmissing.so: cannot open shared object file")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, registry_state: None) -> dict[str, FakeEntryPoint]:
    """A registry with nothing loaded or selected, and these backends installed."""
    points = {
        "one": FakeEntryPoint(lambda: Fake("one")),
        "two": FakeEntryPoint(lambda: Fake("two")),
        "three": FakeEntryPoint(lambda: Fake("three")),
        "varied": FakeEntryPoint(lambda: WithVariants("varied")),
        "broken": FakeEntryPoint(broken),
        "unknown_operation": FakeEntryPoint(UnknownOperation),
        "incomplete": FakeEntryPoint(Incomplete),
    }
    replace_installed(monkeypatch, points, default="one")
    return points


def current() -> str:
    return bittensor.current_backend().name


def test_built_in_backends_are_installed() -> None:
    assert {"cpp", "reference"} <= set(bittensor.available_backends())


def test_available_backends_loads_none(installed: dict[str, FakeEntryPoint]) -> None:
    assert bittensor.available_backends() == tuple(sorted(installed))
    assert not any(point.loads for point in installed.values())


def test_get_backend_loads_once(installed: dict[str, FakeEntryPoint]) -> None:
    assert bittensor.get_backend("one") is bittensor.get_backend("one")
    assert installed["one"].loads == 1
    assert installed["two"].loads == 0


def test_default(installed: dict[str, FakeEntryPoint]) -> None:
    assert registry.selection() == registry.Selection(bittensor.get_backend("one"), "the default")


def test_environment_variable(installed: dict[str, FakeEntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_BACKEND", "two")
    assert current() == "two"
    assert registry.selection().reason == "BITTENSOR_BACKEND=two"
    monkeypatch.setenv("BITTENSOR_BACKEND", "three")
    assert current() == "two", "the variable is read once"


def test_precedence(installed: dict[str, FakeEntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_BACKEND", "two")
    bittensor.set_backend("three")
    assert (current(), registry.selection().reason) == ("three", "set_backend()")
    with bittensor.use_backend("one"):
        assert (current(), registry.selection().reason) == ("one", "use_backend()")
        bittensor.set_backend("two")
        assert current() == "one"
    assert current() == "two"
    bittensor.set_backend(None)
    assert (current(), registry.selection().reason) == ("two", "BITTENSOR_BACKEND=two")


def test_use_backend_nests(installed: dict[str, FakeEntryPoint]) -> None:
    with bittensor.use_backend("two") as outer:
        assert outer is bittensor.current_backend()
        with bittensor.use_backend("three"):
            assert current() == "three"
        assert current() == "two"
    assert current() == "one"


def test_use_backend_restores_on_exception(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(ZeroDivisionError), bittensor.use_backend("two"):
        raise ZeroDivisionError
    assert current() == "one"


def test_a_failed_selection_changes_nothing(installed: dict[str, FakeEntryPoint]) -> None:
    bittensor.set_backend("two")
    with pytest.raises(UnknownBackendError):
        bittensor.set_backend("absent")
    with pytest.raises(BackendLoadError), bittensor.use_backend("broken"):
        pytest.fail("the block must not run")
    assert current() == "two"


def test_set_backend_reaches_other_threads(installed: dict[str, FakeEntryPoint]) -> None:
    bittensor.set_backend("two")
    assert in_thread(current) == "two"


def test_use_backend_stays_in_its_thread(installed: dict[str, FakeEntryPoint]) -> None:
    entered, leave = threading.Event(), threading.Event()
    inside: list[str] = []

    def work() -> None:
        with bittensor.use_backend("three"):
            entered.set()
            leave.wait(timeout=30)
            inside.append(current())

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(timeout=30)
    with bittensor.use_backend("two"):
        assert current() == "two"
        leave.set()
        thread.join(timeout=30)
        assert current() == "two"
    assert inside == ["three"]
    assert current() == "one"


def test_use_backend_stays_in_its_task(installed: dict[str, FakeEntryPoint]) -> None:
    async def work(name: str, own: asyncio.Event, other: asyncio.Event) -> tuple[str, str]:
        with bittensor.use_backend(name):
            before = current()
            own.set()
            await asyncio.wait_for(other.wait(), timeout=30)
            return before, current()

    async def both() -> tuple[tuple[str, str], tuple[str, str]]:
        first, second = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(work("two", first, second), work("three", second, first))

    assert list(asyncio.run(both())) == [("two", "two"), ("three", "three")]
    assert current() == "one"


def test_concurrent_first_use_loads_once(installed: dict[str, FakeEntryPoint]) -> None:
    barrier = threading.Barrier(8)
    found: list[bittensor.Backend] = []

    def work() -> None:
        barrier.wait(timeout=30)
        found.append(bittensor.get_backend("two"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert installed["two"].loads == 1


def test_unknown_name_lists_what_is_installed(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(
        UnknownBackendError, match=r"unknown backend 'absent'; installed backends: .*one, .*two"
    ) as raised:
        bittensor.get_backend("absent")
    assert isinstance(raised.value, ValueError)
    for name in installed:
        assert name in str(raised.value)


def test_unknown_name_from_the_environment_says_so(
    installed: dict[str, FakeEntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITTENSOR_BACKEND", "absent")
    with pytest.raises(UnknownBackendError, match=r"selected by BITTENSOR_BACKEND=absent"):
        bittensor.current_backend()
    with bittensor.use_backend("two"):
        assert current() == "two"


def test_name_must_be_a_string(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(TypeError, match="backend name: expected str, got int"):
        bittensor.get_backend(1)  # type: ignore[arg-type]


def test_load_error_gives_the_cause(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(BackendLoadError, match=r"'broken' \(somewhere:Backend\) .*libmissing\.so") as raised:
        bittensor.get_backend("broken")
    assert isinstance(raised.value.__cause__, ImportError)


def test_load_errors_are_not_remembered(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(BackendLoadError):
        bittensor.get_backend("broken")
    installed["broken"].factory = lambda: Fake("repaired")
    assert bittensor.get_backend("broken").name == "repaired"


def test_no_fallback_from_a_broken_default(
    installed: dict[str, FakeEntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DEFAULT_BACKEND", "broken")
    with pytest.raises(BackendLoadError):
        bittensor.pack_weights(torch.zeros(1, dtype=torch.uint8))


@pytest.mark.parametrize(("difference", "advice"), [(1, "newer version of BitTensor"), (-1, "newer .* of the backend")])
def test_wrong_protocol_version(installed: dict[str, FakeEntryPoint], difference: int, advice: str) -> None:
    ours = bittensor.PROTOCOL_VERSION

    class Other(Fake):
        protocol_version = ours + difference

    installed["other_version"] = FakeEntryPoint(Other)
    expected = f"protocol version {ours + difference}, this BitTensor speaks version {ours}; install a {advice}"
    with pytest.raises(BackendLoadError, match=expected):
        bittensor.get_backend("other_version")


@pytest.mark.parametrize("version", [None, "1", 1.0, True])
def test_protocol_version_is_a_number(installed: dict[str, FakeEntryPoint], version: object) -> None:
    class Unversioned(Fake):
        protocol_version = version  # type: ignore[assignment]

    installed["unversioned"] = FakeEntryPoint(Unversioned)
    with pytest.raises(BackendLoadError, match=r"protocol_version: expected the number .* got"):
        bittensor.get_backend("unversioned")


def test_missing_methods(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(BackendLoadError, match="'incomplete' lacks pack, unpack, packed_matmul"):
        bittensor.get_backend("incomplete")


def test_unknown_operations(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(BackendLoadError, match=r"declares unknown operations \['convolve'\]"):
        bittensor.get_backend("unknown_operation")


def test_operations_on_weights_belong_together(installed: dict[str, FakeEntryPoint]) -> None:
    class Half(Fake):
        capabilities = Capabilities(operations=frozenset({"linear"}))

    installed["half"] = FakeEntryPoint(Half)
    with pytest.raises(BackendLoadError, match=r"'half' declares \['linear'\], but .* belong together"):
        bittensor.get_backend("half")


def test_undeclared_operations_need_not_exist(installed: dict[str, FakeEntryPoint]) -> None:
    class PackOnly:
        name = "pack-only"
        protocol_version = bittensor.PROTOCOL_VERSION
        capabilities = Capabilities(operations=frozenset({"pack"}))

        def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
            return codes

        def variant(self, name: str) -> None: ...
        def describe(self) -> dict[str, str]:
            return {}

        def kernel_calls(self) -> dict[str, int]:
            return {}

    installed["pack-only"] = FakeEntryPoint(PackOnly)
    assert bittensor.get_backend("pack-only").name == "pack-only"


def test_variants(installed: dict[str, FakeEntryPoint]) -> None:
    fast = bittensor.get_backend("varied:fast")
    assert fast.name == "varied:fast"
    assert bittensor.get_backend("varied:fast") is fast
    with bittensor.use_backend("varied:slow"):
        assert current() == "varied:slow"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("varied:best", "no variant 'best'; its variants: varied:slow, varied:fast"),
        ("varied:", "no variant ''"),
        ("one:fast", "no variant 'fast'; its variants: it has none"),
        ("absent:fast", "unknown backend 'absent'"),
    ],
)
def test_unknown_variants(installed: dict[str, FakeEntryPoint], name: str, message: str) -> None:
    with pytest.raises(UnknownBackendError, match=message):
        bittensor.get_backend(name)


@pytest.mark.parametrize("error", [RuntimeError("no such kernels"), BackendLoadError("no such kernels")])
def test_a_variant_that_cannot_be_loaded(installed: dict[str, FakeEntryPoint], error: Exception) -> None:
    class Broken(WithVariants):
        def variant(self, name: str) -> Fake:
            raise error

    installed["broken-variants"] = FakeEntryPoint(lambda: Broken("broken-variants"))
    with pytest.raises(BackendLoadError, match="no such kernels"):
        bittensor.get_backend("broken-variants:slow")


def test_operations_may_be_any_collection(installed: dict[str, FakeEntryPoint]) -> None:
    class Listed(Fake):
        capabilities = Capabilities(operations=("pack", "unpack"))  # type: ignore[arg-type]

    installed["listed"] = FakeEntryPoint(lambda: Listed("listed"))
    assert bittensor.get_backend("listed").name == "listed"


def test_undeclared_bits_are_refused(installed: dict[str, FakeEntryPoint]) -> None:
    with pytest.raises(bittensor.UnsupportedOperationError, match=r"'one' does not declare bits=2; it declares \[4\]"):
        bittensor.pack_weights(torch.zeros(1, dtype=torch.uint8), bits=2)


def test_environment_variable_in_a_new_process(run_python: RunPython) -> None:
    code = "import bittensor; print(bittensor.current_backend().name)"
    process = run_python("-c", code, BITTENSOR_BACKEND="reference")
    assert (process.returncode, process.stdout) == (0, "reference\n"), process.stderr


def test_unknown_environment_variable_in_a_new_process(run_python: RunPython) -> None:
    code = "import bittensor; print('imported'); bittensor.current_backend()"
    process = run_python("-c", code, BITTENSOR_BACKEND="absent")
    assert process.stdout == "imported\n", "importing must work, so that the program can select another backend"
    assert process.returncode == 1
    assert "UnknownBackendError: unknown backend 'absent'; installed backends: cpp, " in process.stderr
    assert "(selected by BITTENSOR_BACKEND=absent)" in process.stderr


def test_isa_cap_in_a_new_process(run_python: RunPython) -> None:
    code = "import bittensor; facts = bittensor.get_backend('cpp').describe(); print(facts['isa'], facts['isa reason'])"
    for isa in bittensor.get_backend("cpp").capabilities.variants:
        process = run_python("-c", code, BITTENSOR_ISA=isa)
        assert (process.returncode, process.stdout) == (0, f"{isa} BITTENSOR_ISA={isa}\n"), process.stderr


def test_unknown_isa_in_a_new_process(run_python: RunPython) -> None:
    process = run_python("-c", "import bittensor; bittensor.get_backend('cpp')", BITTENSOR_ISA="sse9")
    assert process.returncode == 1
    assert "BackendLoadError" in process.stderr
    assert "BITTENSOR_ISA: unknown instruction set 'sse9'; known: scalar, avx2" in process.stderr


def test_variants_of_the_cpp_backend() -> None:
    variants = bittensor.get_backend("cpp").capabilities.variants
    assert variants[0] == "scalar", "every machine runs the scalar kernels"
    weight = torch.arange(16, dtype=torch.uint8)
    for variant in variants:
        with bittensor.use_backend(f"cpp:{variant}") as backend:
            assert backend.describe()["isa"] == variant
            assert torch.equal(bittensor.unpack_weights(bittensor.pack_weights(weight), 16), weight)


def in_thread(function: Callable[[], str]) -> str:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(timeout=30)
    return results[0]


def test_a_name_of_two_packages(installed: dict[str, FakeEntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    points = [FakeEntryPoint(Fake, f"package_{letter}:Backend") for letter in "ab"]
    monkeypatch.setattr(registry, "_entry_points", lambda: {"fake": points})
    with pytest.raises(BackendLoadError, match=r"several packages: package_a:Backend of .*, package_b:Backend of"):
        bittensor.get_backend("fake")


def test_a_backend_that_exits_when_it_is_loaded(installed: dict[str, FakeEntryPoint]) -> None:
    def exits() -> Fake:
        raise SystemExit(3)

    installed["exits"] = FakeEntryPoint(exits)
    with pytest.raises(BackendLoadError, match=r"'exits' .* could not be loaded: SystemExit\(3\)"):
        bittensor.get_backend("exits")
