"""A backend in a package of its own, examples/third_party_backend, installed where nothing else of it is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "third_party_backend"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the example installed in it, and what is installed here in sight."""
    folder = tmp_path_factory.mktemp("third_party")
    venv.create(folder / "environment", with_pip=False)
    interpreter = folder / "environment" / "bin" / "python"
    sites = {"base": str(folder / "environment"), "platbase": str(folder / "environment")}
    here = sysconfig.get_path("purelib")
    # Not on PYTHONPATH: that would leave out what editable installations are made of.
    Path(sysconfig.get_path("purelib", vars=sites), "installed_here.pth").write_text(
        f"import site; site.addsitedir({here!r})\n"
    )
    source = shutil.copytree(EXAMPLE, folder / "source")
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", *options, str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return interpreter


def _run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BITTENSOR_", "PYTEST_"))}
    return subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_example_is_short() -> None:
    assert len((EXAMPLE / "bittensor_numpy.py").read_text().splitlines()) < 100


def test_the_example_is_found_by_name(python: Path, tmp_path: Path) -> None:
    done = _run(python, tmp_path, "-m", "bittensor", "info", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    numpy = next(each for each in json.loads(done.stdout)["installed_backends"] if each["name"] == "numpy")
    assert numpy["error"] is None
    assert numpy["bits"] == [4, 8]


def test_the_example_conforms(python: Path, tmp_path: Path) -> None:
    done = _run(python, tmp_path, "-m", "bittensor", "conformance", "--backend", "numpy", "--report", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (target,) = json.loads((tmp_path / "report.json").read_text())["targets"]
    assert target["status"] == "green"
    totals = target["totals"]
    assert totals["executed"] == totals["expected"] > 300
    assert totals["failed"] == totals["skipped"] == totals["expected_failures"] == 0
    assert {each.name for each in tmp_path.iterdir()} == {"report.json"}, "the suite leaves nothing behind"
