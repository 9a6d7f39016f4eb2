"""Other libraries as backends, where nothing more than torch is needed, and the page about them."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

import bittensor
from bittensor import registry
from conformance.rivals import page, processors
from conformance.rivals.test_adapters import test_adapter_computes_what_it_declares as check_adapter

OPTIONAL = {"onnxruntime": "bittensor_rivals.onnxruntime_nbits", "openvino": "bittensor_rivals.openvino_compressed"}


@pytest.mark.parametrize("name", ["torch_int4", "torch_int4_native"])
def test_torch_computes_what_it_declares(name: str, registry_state: None) -> None:
    check_adapter(name)


def test_a_weight_is_compiled_once_and_forgotten(registry_state: None) -> None:
    weight, x = bittensor.quantize(torch.randn(16, 64), group_size=32), torch.randn(2, 64)
    with bittensor.use_backend("torch_int4") as backend:
        first = bittensor.linear(x, weight, activation_mode="float")
        (packed, _, _) = backend._compiled.get(weight.canonical(), torch.float32)
        assert torch.equal(bittensor.linear(x, weight, activation_mode="float"), first)
        assert backend._compiled.get(weight.canonical(), torch.float32)[0] is packed
        other = bittensor.QuantizedWeight(weight.words, 2 * weight.scales, shape=(16, 64), group_size=32)
        assert torch.equal(bittensor.linear(x, other, activation_mode="float"), 2 * first)
        forgotten = weakref.ref(packed)
        del weight, other, packed, _
        gc.collect()
        assert forgotten() is None


@pytest.mark.parametrize("name", OPTIONAL)
def test_without_its_extra_a_backend_names_it(name: str, monkeypatch: pytest.MonkeyPatch, registry_state: None) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, OPTIONAL[name], raising=False)
    monkeypatch.setattr(registry, "_loaded", {})
    assert name in bittensor.available_backends()
    with pytest.raises(bittensor.BackendLoadError, match=r"pip install 'packed-bittensor\[rivals\]'"):
        bittensor.get_backend(name)


def test_page_is_up_to_date() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run python -m conformance.rivals.page"


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "name"),
    [
        ("GenuineIntel", "6", "avx512f amx_tile amx_int8", "Intel Xeon with AMX"),
        ("GenuineIntel", "6", "avx512f avx512_vnni", None),
        ("AuthenticAMD", "26", "avx2 avx512f", "AMD Zen 5"),
        ("AuthenticAMD", "25", "avx2 avx512f", "AMD Zen 4"),
        ("AuthenticAMD", "25", "avx2", None),
    ],
)
def test_processors_are_told_apart(vendor: str, family: str, flags: str, name: str | None) -> None:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 143\nflags\t\t: fpu {flags}\n\n"
    assert processors.processor(one + one) == name


@pytest.mark.parametrize("path", page.REPORTS, ids=lambda path: path.stem)
def test_failures_are_explained(path: Path) -> None:
    report = page.read_report(path)
    known = [each for each in page.findings() if each.library == page.library_of(report["backend"])]
    failed = [check["id"] for check in report["checks"] if check["outcome"] == "failed"]
    unexplained = [check for check in failed if not any(finding.explains(check) for finding in known)]
    assert not unexplained, f"no finding explains {unexplained}"
