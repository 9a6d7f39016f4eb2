"""A copy of the sources with an environment of its own, in which faults come and go."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .fault import ROOT, Fault

_SOURCES = ("CMakeLists.txt", "backends", "bittensor", "conformance/bittensor_conformance")
_PACKAGES = (
    "bittensor",
    "backends/reference/bittensor_reference",
    "backends/cpp/bittensor_cpp",
    "conformance/bittensor_conformance",
)
_DISTRIBUTION = "packed-bittensor"
_LIBRARY = "backends/cpp/libbittensor.so"


class BuildError(Exception):
    """The sources do not compile; the message is the compiler's."""


class Workspace:
    """The sources in a folder, built there and importable by a Python of its own.

    That Python sees the packages of the one that runs this, but the copy in place of the installed project: the
    environment has the project's packages and its entry points, and takes all else from the other as a plain folder,
    whose ``.pth`` files, such as those of an editable installation, are not read.

    Args:
        folder: where; what another run built there is used again.
        jobs: compilers at a time.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self.sources = folder / "sources"
        self.jobs = jobs
        self._build = folder / "build"
        self._sound = folder / "sound"
        self._environment = folder / "environment"

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self._environment / "bin" / "python"

    def set_up(self) -> None:
        """Copy the sources and build them.

        Raises:
            BuildError: they do not compile.
        """
        for name in _SOURCES:
            _copy_changed(ROOT / name, self.sources / name)
        self._make_environment()
        self._configure()
        self._run([*_cmake(), "--build", str(self._build), "--parallel", str(self.jobs)])
        self._install()
        self._keep_outputs()

    @contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """The sources with `fault` in them, built.

        Raises:
            BuildError: they do not compile.
        """
        path = self.sources / fault.file
        sound, status = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(fault.applied(sound), encoding="utf-8")
        try:
            if fault.is_compiled:
                self._rebuild(fault)
            yield
        finally:
            # What was compiled first: if this is interrupted, the next run builds what the file belongs to.
            if fault.is_compiled:
                self._restore_outputs()
                self._install()
            path.write_text(sound, encoding="utf-8")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _keep_outputs(self) -> None:
        shutil.rmtree(self._sound, ignore_errors=True)
        for path in self._outputs():
            kept = self._sound / path.relative_to(self._build)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, kept)

    def _restore_outputs(self) -> None:
        """Put back what was compiled from the sound sources, instead of compiling it again."""
        for path in self._outputs():
            kept = self._sound / path.relative_to(self._build)
            if kept.exists() and kept.stat().st_mtime_ns != path.stat().st_mtime_ns:
                shutil.copy2(kept, path)

    def _outputs(self) -> list[Path]:
        return [path for pattern in ("*.o", "*.so") for path in self._build.rglob(pattern)]

    def _rebuild(self, fault: Fault) -> None:
        if not fault.kernels:
            self._run([*_cmake(), "--build", str(self._build), "--parallel", str(self.jobs)])
        else:
            # Only the kernels of the fault's targets, and the library from them and the objects of the others.
            folder = "backends/cpp/CMakeFiles/bittensor.dir/src/kernels"
            objects = [f"{folder}/{isa}.cpp.o" for isa in fault.kernels]
            self._run([_tool("ninja"), "-C", str(self._build), "-j", str(self.jobs), *objects])
            commands = self._run([_tool("ninja"), "-C", str(self._build), "-t", "commands", _LIBRARY])
            self._run(["sh", "-c", commands.strip().splitlines()[-1]], self._build)
        self._install()

    def _configure(self) -> None:
        if (self._build / "build.ninja").exists():
            return
        pybind11 = Path(sysconfig.get_path("purelib")) / "pybind11" / "share" / "cmake" / "pybind11"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
            "BITTENSOR_PYTHON": "ON",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": str(pybind11),
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        self._run([*_cmake(), "-S", str(self.sources), "-B", str(self._build), "-G", "Ninja", *definitions])

    def _install(self) -> None:
        self._run([*_cmake(), "--install", str(self._build), "--prefix", str(self._packages())])

    def _make_environment(self) -> None:
        if not self.python.exists():
            venv.create(self._environment, symlinks=True)
        packages = self._packages()
        (packages / "environment.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        for name in _PACKAGES:
            link = packages / Path(name).name
            link.unlink(missing_ok=True)
            link.symlink_to(self.sources / name)
        installed = importlib.metadata.distribution(_DISTRIBUTION)
        metadata = packages / f"packed_bittensor-{installed.version}.dist-info"
        metadata.mkdir(exist_ok=True)
        for name in ("METADATA", "entry_points.txt"):
            (metadata / name).write_text(installed.read_text(name) or "")

    def _packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self._environment / "lib" / version / "site-packages"

    def _run(self, command: Sequence[str], folder: Path | None = None) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout


def sources_digest() -> str:
    """Changes with the sources that a workspace copies."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        for path in sorted(path for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.is_file()):
            if path.suffix != ".pyc":
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def child_environment() -> dict[str, str]:
    """Variables for a process of the workspace. Compiled Python is not kept: a fault may be as long as what was."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BITTENSOR_", "PYTHON"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}


def _copy_changed(source: Path, target: Path) -> None:
    """Make `target` the same as `source`; files that are the same keep their time, so that they are not built again."""
    if source.is_file():
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        return
    names = {path.name for path in source.iterdir() if path.name != "__pycache__"}
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        if path.name not in names and path.suffix != ".so" and path.name != "include":  # what the build installed
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in names:
        _copy_changed(source / name, target / name)


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BuildError(f"{name}: not found; requirements/dev.txt has it")
    return found


def _cmake() -> list[str]:
    return [_tool("cmake")]
