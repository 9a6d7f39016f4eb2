"""Instructions of every case, counted by callgrind, which emulates the processor: the same in every run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .builds import Build, GateError, output

ISAS = ("scalar", "avx2")
"""What valgrind executes; it knows neither AVX-VNNI nor AVX-512."""

TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def find_valgrind() -> str:
    """The path of the program.

    Raises:
        GateError: it is not installed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise GateError("valgrind is not installed, which counts the instructions: make system-packages installs it")
    return valgrind


def instructions(build: Build, isas: Sequence[str] = ISAS) -> dict[str, int]:
    """Instructions of each case, by name."""
    valgrind = find_valgrind()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "callgrind"
        names = output(
            [
                valgrind,
                "--tool=callgrind",
                "--toggle-collect=measured",
                "--dump-after=measured",
                f"--callgrind-out-file={file}",
                str(build.driver),
                "count",
                str(build.module),
                *isas,
            ],
            env=os.environ | {"LD_BIND_NOW": "1"},
        ).splitlines()
        return dict(zip(names, read_dumps(file, len(names)), strict=True))


def read_dumps(file: Path, count: int) -> list[int]:
    """Totals of the dumps FILE.1 to FILE.count, in this order."""
    if file.with_name(f"{file.name}.{count + 1}").exists():
        raise GateError(f"callgrind left more dumps than the {count} cases")
    totals = []
    for number in range(1, count + 1):
        found = TOTALS.search(file.with_name(f"{file.name}.{number}").read_text(encoding="utf-8"))
        if found is None:
            raise GateError(f"no total in dump {number} of callgrind")
        totals.append(int(found[1]))
    return totals
