"""What the documentation shows, runs: every Python block of the pages, every doctest of the packages."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import bittensor
from bittensor import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RIVALS = ROOT / "docs" / "rivals.md"
"""Its blocks need other libraries. They are copies of files that conformance/rivals/test_findings.py runs."""
PACKAGES = ("bittensor", "bittensor_reference", "bittensor_cpp")
"""Packages whose doctests run. The conformance package needs its extra and is tested on its own."""

FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)(?P<target>[^)#\s]+)[^)]*\)")


def run_page(page: Path) -> dict[str, Any]:
    """Run the Python blocks of a page in one namespace; a traceback points at the line of the page."""
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": page.stem}
    for block in FENCE.finditer(text):
        if block["language"] == "python":
            lines_before = text.count("\n", 0, block.start("code"))
            exec(compile("\n" * lines_before + block["code"], str(page), "exec"), names)
    return names


def modules() -> list[str]:
    """Names of the Python modules of all packages, found without importing a backend, which may fail."""
    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} is not installed"
        for folder in map(Path, spec.submodule_search_locations or ()):
            files = (file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py"))
            parts = (file.parts[:-1] if file.name == "__init__" else file.parts for file in files)
            found += sorted(".".join((name, *each)) for each in parts)
    return found


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if page != RIVALS], ids=page_name)
def test_python_blocks(page: Path, registry_state: None) -> None:
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_fences_are_closed_and_labelled(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))
    assert all(block["language"] for block in FENCE.finditer(text)), "a block without a language"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        assert (page.parent / link["target"]).exists(), f"{page_name(page)} links to {link['target']}"


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str, registry_state: None) -> None:
    module = importlib.import_module(name)
    with torch.random.fork_rng():
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} failed; see the output"


@pytest.mark.parametrize(
    "name",
    [
        "pack_weights",
        "unpack_weights",
        "unpack_tensor",
        "packed_matmul",
        "PackedLinear",
        "linear",
        "quantize",
        "quantize_",
        "QuantizedLinear",
    ],
)
def test_public_operations_have_examples(name: str) -> None:
    assert ">>>" in (getattr(bittensor, name).__doc__ or "")


def test_example_backend_can_be_registered(monkeypatch: pytest.MonkeyPatch, registry_state: None) -> None:
    """The class that docs/backends.md shows is loaded, selected and used as an installed one would be."""
    example = run_page(ROOT / "docs" / "backends.md")["NibbleBackend"]

    class Point:
        value = "bittensor_nibbles:NibbleBackend"

        def load(self) -> Any:
            return example

    weight = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    words = bittensor.pack_weights(weight)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"nibbles": [Point()]})
    monkeypatch.setattr(registry, "_loaded", {})
    with bittensor.use_backend("nibbles") as backend:
        assert backend.name == "nibbles"
        assert torch.equal(bittensor.unpack_weights(words, 8), weight)
        strided = torch.cat([words, words], dim=1)[:, ::2]  # one word a row, yet two apart
        assert torch.equal(bittensor.unpack_weights(strided, 8), weight)
        with pytest.raises(bittensor.UnsupportedOperationError, match="pack"):
            bittensor.pack_weights(weight)
