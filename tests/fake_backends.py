"""Backends and entry points that stand for installed packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import bittensor
from bittensor import Capabilities, registry


class Fake(bittensor.Backend):
    """A backend that computes nothing."""

    protocol_version = bittensor.PROTOCOL_VERSION
    capabilities = Capabilities(bits=frozenset({4}))

    def __init__(self, name: str = "fake") -> None:
        self.name = name

    def pack(self, *_: Any) -> Any: ...

    def unpack(self, *_: Any) -> Any: ...

    def packed_matmul(self, *_: Any) -> Any: ...


class WithVariants(Fake):
    capabilities = Capabilities(variants=("slow", "fast"))

    def variant(self, name: str) -> Any:
        return Fake(f"{self.name}:{name}")


@dataclass
class FakeEntryPoint:
    """As much of importlib.metadata.EntryPoint as the registry uses."""

    factory: Callable[[], Any]
    value: str = "somewhere:Backend"
    loads: int = 0
    dist: None = None

    def load(self) -> Callable[[], Any]:
        self.loads += 1
        return self.factory


def replace_installed(monkeypatch: pytest.MonkeyPatch, points: dict[str, FakeEntryPoint], default: str) -> None:
    """A registry with nothing loaded or selected, and these backends installed."""
    monkeypatch.setattr(registry, "_entry_points", lambda: {name: [point] for name, point in points.items()})
    monkeypatch.setattr(registry, "DEFAULT_BACKEND", default)
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(registry, "_process_wide", None)
    monkeypatch.setattr(registry, "_from_environment", None)
    monkeypatch.setattr(registry, "_from_environment_reason", "")
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
