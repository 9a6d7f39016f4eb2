"""Builds of a source tree's kernels: the working tree's, and an earlier revision's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = Path("backends/cpp/gate")
FOLDER = Path("build/gate")
"""Where a tree is built: at the same place in each, so that ccache finds in one what it compiled for the other."""
OBJECTS = Path("tree/backends/cpp/CMakeFiles/bittensor.dir/src")


class GateError(Exception):
    """The gate cannot tell: something does not build, or is not measured."""


@dataclass(frozen=True)
class Case:
    """A case of a module: a kernel or an operation on fixed operands. `timed`: long enough for comparing times."""

    name: str
    kernel: str  # "" for a whole operation
    isa: str
    operations: float
    bytes: float
    timed: bool


@dataclass(frozen=True)
class Build:
    """A module of cases with the library of one tree inside, and the driver that runs it."""

    folder: Path

    @property
    def module(self) -> Path:
        return self.folder / "libgate_module.so"

    @property
    def driver(self) -> Path:
        return self.folder / "gate_driver"

    def listing(self) -> tuple[set[str], list[Case]]:
        """Names of all kernels that this machine can run, and the cases."""
        lines = [line.split("\t") for line in output([str(self.driver), "list", str(self.module)]).splitlines()]
        kernels = {words[1] for words in lines if words[0] == "kernel"}
        cases = [
            Case(name, kernel, isa, float(operations), float(size), timed == "1")
            for _, name, kernel, isa, operations, size, timed in (words for words in lines if words[0] == "case")
        ]
        return kernels, cases

    def digest(self, isa: str | None) -> str | None:
        """Digest of the machine code of an instruction set's kernels, or of the whole library; None if not found."""
        folder = self.folder / OBJECTS
        files = sorted(folder.rglob("*.o")) if isa is None else [folder / "kernels" / f"{isa}.cpp.o"]
        if not files or not all(file.exists() for file in files):
            return None
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def output(command: list[str], **options: object) -> str:
    """Standard output of a program; GateError with what it wrote if it fails."""
    process = subprocess.run(command, capture_output=True, text=True, **options)
    if process.returncode != 0:
        written = (process.stdout + process.stderr).strip()[-4000:]
        raise GateError(f"{' '.join(command[:4])} ... failed with exit status {process.returncode}:\n{written}")
    return process.stdout


def git(*arguments: str) -> str:
    return output(["git", "--no-optional-locks", "-C", str(ROOT), *arguments]).strip()


def merge_base(revision: str, tip: str = "HEAD") -> str:
    """Where the history of `tip` left that of `revision`."""
    return git("merge-base", revision, tip)


def extract(revision: str, folder: Path) -> Path:
    """The tree of a revision, without a repository around it."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    git("archive", "--output", str(archive), revision)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    return folder


def build(tree: Path, cases: Path, folder: Path) -> Build:
    """Builds the library of `tree` with the cases of the folder `cases`; through ccache where there is one."""
    tools = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    launcher = []
    if ccache := shutil.which("ccache"):
        # Two trees with the same sources share what they compile: paths are taken relative to the tree.
        environment |= {"CCACHE_BASEDIR": str(tree), "CCACHE_NOHASHDIR": "1"}
        launcher = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}"]
    configure = ["cmake", "-S", str(ROOT / CASES), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    places = [f"-DBITTENSOR_TREE={tree}", f"-DBITTENSOR_GATE_CASES={cases}"]
    output([*configure, *places, *launcher], env=environment)
    output(["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)], env=environment)
    return Build(folder)


def build_base(tree: Path) -> tuple[Build, str]:
    """The base with the cases of this tree; where they do not compile with its headers, with its own. And which."""
    own = tree / CASES
    try:
        return build(tree, ROOT / CASES, tree / FOLDER), "this tree's cases"
    except GateError as error:
        if not own.is_dir():
            raise GateError(f"the cases do not compile with the base, which has none of its own:\n{error}") from None
    shutil.rmtree(tree / FOLDER)
    return build(tree, own, tree / FOLDER), "its own cases, because this tree's do not compile with it"
