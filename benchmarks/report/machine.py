"""The machine a report was made on: what it is, what is installed, and what it can do at most."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from bittensor_cpp import _native

from bittensor.info import cpu_model

from .measure import Sample

ROOT = Path(__file__).resolve().parents[2]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, object]:
    """Machine, date and versions, as they are written into every result file."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "caches": cache_sizes(),
        "load before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "commit": commit(),
        "versions": {
            "packed-bittensor": version("packed-bittensor"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def limits(threads: int, isa: str) -> dict[str, float]:
    """What the machine does at most with `threads` threads, by name, in units of 10^9 per second."""
    sizes = {"1 MiB": 2**20, "16 MiB": 2**24, "512 MiB": 2**29}
    figures = {
        f"int8 {isa} GOP/s": _native.int8_peak(isa, threads),
        f"float32 fma {isa} GFLOP/s": _native.fma_peak(isa, threads),
        **{f"read {name} GB/s": _native.read_bandwidth(size, threads) for name, size in sizes.items()},
        **{f"memcpy {name} GB/s": _native.copy_bandwidth(size, threads) for name, size in sizes.items()},
    }
    return {name: round(figure / 1e9, 1) for name, figure in figures.items()}


def vector_isa(isa: str) -> str:
    """The instruction set of vectors that comes with `isa`: targets are parts of what vectors do at most."""
    return "avx512vnni" if isa == "amx" else isa


def int8_peaks(isa: str, threads: int) -> dict[str, Sample]:
    """The byte products of `isa`, in units of 10^9 operations per second: first of vectors, then of tiles, if any."""
    return {f"int8 peak, {each}": partial(peak, _native.int8_peak, each, threads) for each in (vector_isa(isa), isa)}


def fma_peaks(isa: str, threads: int) -> dict[str, Sample]:
    """The same for multiply-adds of float32, which tiles have none of."""
    vectors = vector_isa(isa)
    return {f"float32 peak, {vectors}": partial(peak, _native.fma_peak, vectors, threads)}


def peak(of: Callable[[str, int, float, int], float], isa: str, threads: int) -> float:
    return of(isa, threads, 0.02, 3) / 1e9


def cache_sizes() -> dict[str, str]:
    """Sizes by level: ``{"L1 Data": "48K", "L2 Unified": "1024K"}``; empty where the system does not tell."""

    def read(folder: Path, name: str) -> str:
        return (folder / name).read_text(encoding="utf-8").strip()

    folders = sorted(CACHES.glob("index*"))
    return {f"L{read(folder, 'level')} {read(folder, 'type')}": read(folder, "size") for folder in folders}


def last_level_cache() -> int:
    """Bytes of the largest cache; 32 MiB where the system does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [int(size[:-1]) * units[size[-1]] for size in cache_sizes().values()]
    return max(sizes, default=2**25)


def commit() -> str:
    """Commit of the sources; "+changes" if tracked files differ from it, "unknown" outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    # Reading must not write: status would otherwise refresh the index.
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
