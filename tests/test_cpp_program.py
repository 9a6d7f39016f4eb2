"""The program in C++ of docs/architecture.md, built as the page says, with what the package contains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
PROGRAM = re.compile(r"```cpp\n(?P<source>.*?)```\n\n```console\n(?P<commands>.*?)```", re.DOTALL)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_program_of_the_documents(tmp_path: Path) -> None:
    found = PROGRAM.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    (tmp_path / "product.cpp").write_text(found["source"], encoding="utf-8")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    build = subprocess.run(
        ["bash", "-ec", found["commands"]],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    run = subprocess.run([tmp_path / "product"], capture_output=True, text=True, check=True)
    assert run.stdout == "6 54\n"
