"""A copy of the sources with an environment of its own, in which faults come and go."""

from __future__ import annotations

import os
import shutil
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .build import Build, copy_sources
from .fault import ROOT, Fault, read_toml

_PACKAGES = (
    "bittensor",
    "backends/reference/bittensor_reference",
    "backends/cpp/bittensor_cpp",
    "conformance/bittensor_conformance",
)
_BACKENDS = ("cpp", "reference")


class Workspace:
    """The sources in a folder, importable by a Python of its own.

    That Python sees the packages of the one that runs this, but the copy in place of the project, whether it is
    installed there or not: the environment has the project's packages and its entry points, and takes all else from
    the other as plain folders, whose ``.pth`` files, such as those of an editable installation, are not read.

    Of what is compiled it has links to the sound build. Only what a fault changes is compiled again, by the commands of
    that build with this folder in the place of its own, and is a link again when the fault goes.

    Args:
        folder: where; what another run left there is used again.
        build: the sound build.
    """

    def __init__(self, folder: Path, build: Build) -> None:
        self.folder = folder
        self.sources = folder / "sources"
        self._sound = build
        self._build = folder / "build"
        self._environment = folder / "environment"

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self._environment / "bin" / "python"

    def set_up(self) -> None:
        """Copy the sources, link what is compiled, and make the environment."""
        copy_sources(self.sources)
        shutil.rmtree(self._build, ignore_errors=True)
        self._link()
        self._make_environment()

    @contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """The sources with `fault` in them, built.

        Raises:
            BuildError: they do not compile.
            OutOfTimeError: the run's time is over.
        """
        path = self.sources / fault.file
        sound = path.read_text(encoding="utf-8")
        path.write_text(fault.applied(sound), encoding="utf-8")
        try:
            if fault.is_compiled:
                self._compile(fault)
            yield
        finally:
            path.write_text(sound, encoding="utf-8")
            if fault.is_compiled:
                self._link()

    def _compile(self, fault: Fault) -> None:
        changed = self._sound.objects_of(fault)
        libraries = [str(path) for path in self._sound.outputs() if path.suffix == ".so"]
        commands = {library: self._sound.command(library) for library in libraries}
        for name in changed:
            self._run(name, self._sound.command(name))
        for library, command in commands.items():
            if any(name in command.split() for name in changed):
                self._run(library, command)

    def _run(self, output: str, command: str) -> None:
        path = self._build / output
        path.unlink()  # a link: what it points to is everybody's
        self._sound.run(["sh", "-c", command.replace(str(self._sound.folder), str(self.folder))], self._build)

    def _link(self) -> None:
        """Have the build's outputs, and its libraries where Python finds them."""
        for name in self._sound.outputs():
            output = self._sound.folder / "build" / name
            _link(self._build / name, output)
            if name.suffix == ".so":
                _link(self.sources / "backends" / "cpp" / "bittensor_cpp" / name.name, self._build / name)

    def _make_environment(self) -> None:
        if not self.python.exists():
            venv.create(self._environment, symlinks=True)
        packages = self._packages()
        installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (packages / "environment.pth").write_text("".join(f"{path}\n" for path in installed))
        for name in _PACKAGES:
            _link(packages / Path(name).name, self.sources / name)
        project = read_toml(ROOT / "pyproject.toml")["project"]
        metadata = packages / f"packed_bittensor-{project['version']}.dist-info"
        metadata.mkdir(exist_ok=True)
        head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (metadata / "METADATA").write_text(head)
        points = project["entry-points"]["bittensor.backends"]
        lines = "".join(f"{name} = {points[name]}\n" for name in _BACKENDS)
        (metadata / "entry_points.txt").write_text(f"[bittensor.backends]\n{lines}")

    def _packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self._environment / "lib" / version / "site-packages"


def child_environment() -> dict[str, str]:
    """Variables for a process of a workspace.

    Compiled Python is not kept: a fault may be as long as what was. Threads that wait do so asleep: other workspaces
    need the processors.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BITTENSOR_", "PYTHON"))}
    own = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    return {**kept, **own, "OMP_WAIT_POLICY": "PASSIVE"}


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
