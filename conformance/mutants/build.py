"""The sources without a fault, compiled once: what every workspace starts from."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .fault import ROOT, Fault
from .process import Deadline, OutOfTimeError, run_group

SOURCES = ("CMakeLists.txt", "backends", "bittensor", "conformance/bittensor_conformance", "pyproject.toml")


class BuildError(Exception):
    """The sources do not compile; the message is the compiler's."""


class Build:
    """The sources in a folder, and what is compiled of them; what another run built there is used again.

    Args:
        folder: where: ``sources`` and ``build`` in it.
        deadline: when compiling is to end.
    """

    def __init__(self, folder: Path, deadline: Deadline) -> None:
        self.folder = folder
        self.deadline = deadline
        self._sources, self._build = folder / "sources", folder / "build"

    def make(self, compilers: int) -> None:
        """Copy the sources and build them, with so many compilers at a time.

        Raises:
            BuildError: they do not compile.
        """
        copy_sources(self._sources)
        if not (self._build / "build.ninja").exists():
            self._configure()
        self.run([_tool("cmake"), "--build", str(self._build), "--parallel", str(compilers)])
        _dependencies.cache_clear()

    def outputs(self) -> list[Path]:
        """Objects and libraries, relative to the folder ``build``."""
        found = [path for pattern in ("*.o", "*.so") for path in self._build.rglob(pattern)]
        return [path.relative_to(self._build) for path in found]

    def objects_of(self, fault: Fault) -> list[str]:
        """What has to be compiled again: of a fault in a kernel only the kernels of its targets."""
        if fault.kernels:
            return [f"backends/cpp/CMakeFiles/bittensor.dir/src/kernels/{isa}.cpp.o" for isa in fault.kernels]
        changed = (self._sources / fault.file).resolve()
        return [name for name, files in _dependencies(self._build, self).items() if changed in files]

    def command(self, output: str) -> str:
        """How ninja makes an output from what it is made of, to be run in the folder ``build``."""
        printed = self.run([_tool("ninja"), "-C", str(self._build), "-t", "commands", output])
        return printed.strip().splitlines()[-1]

    def run(self, command: Sequence[str], folder: Path | None = None) -> str:
        """What a command printed.

        Raises:
            BuildError: it failed.
            OutOfTimeError: the deadline came first.
        """
        code, output = run_group(command, folder=folder, seconds=self.deadline.left())
        if code is None:
            raise OutOfTimeError
        if code != 0:
            raise BuildError(f"{' '.join(command)}\n{output[-4000:]}")
        return output

    def _configure(self) -> None:
        import pybind11  # where its files for CMake are

        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
            "BITTENSOR_PYTHON": "ON",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        self.run([_tool("cmake"), "-S", str(self._sources), "-B", str(self._build), "-G", "Ninja", *definitions])


@cache
def _dependencies(folder: Path, build: Build) -> dict[str, frozenset[Path]]:
    """The files that each object was compiled from, headers included."""
    files: dict[str, set[Path]] = {}
    name = ""
    for line in build.run([_tool("ninja"), "-C", str(folder), "-t", "deps"]).splitlines():
        if line.startswith(" "):
            files[name].add((folder / line.strip()).resolve())
        elif ": #deps" in line:
            name = line.partition(": #deps")[0]
            files[name] = set()
    return {name: frozenset(paths) for name, paths in files.items()}


def sources_digest() -> str:
    """Changes with the sources that a build copies."""
    digest = hashlib.sha256()
    for name in SOURCES:
        for path in sorted(path for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.is_file()):
            if path.suffix not in (".pyc", ".so"):
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def copy_sources(folder: Path) -> None:
    """Make `folder` the same as the sources; files that are the same keep their time, and are not built again."""
    for name in SOURCES:
        _copy_changed(ROOT / name, folder / name)


def _copy_changed(source: Path, target: Path) -> None:
    if source.is_file():
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        return
    names = {path.name for path in source.iterdir() if path.name != "__pycache__" and path.suffix != ".so"}
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        if path.name not in names and path.suffix != ".so":  # what a workspace has put there
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in names:
        _copy_changed(source / name, target / name)


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BuildError(f"{name}: not found; requirements/dev.txt has it")
    return found
