"""Faults as data: what is changed, where, and whom it affects."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).with_name("faults")
CHAPTERS = ROOT / "conformance" / "bittensor_conformance" / "chapters"
KERNELS = "backends/cpp/src/kernels/"


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


class CatalogueError(ValueError):
    """A fault that does not fit the sources, or is not well formed."""


@dataclass(frozen=True)
class Fault:
    """One change of one file that makes a result wrong, or memory unsafe.

    Attributes:
        id: unique name; also what the command line selects by.
        about: what the fault does, in a sentence.
        file: changed file, from the root of the repository.
        old, new: exact text, which occurs once, and its replacement.
        targets: what it affects, as the suite names it. A fault in a template of kernels is compiled into the kernels
            of these targets only, so that it costs one translation unit and each template is tried on several sets.
        chapter: the chapter that should find it, which is run first.
        survives: why the suite cannot find it; None if it must.
    """

    id: str
    about: str
    file: str
    old: str
    new: str
    targets: tuple[str, ...]
    chapter: str
    survives: str | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether it takes a build."""
        return Path(self.file).suffix != ".py"

    @property
    def kernels(self) -> tuple[str, ...]:
        """Instruction sets whose kernels are compiled with the fault; none if it is not in a kernel."""
        if not self.file.startswith(KERNELS):
            return ()
        return tuple(target.removeprefix("cpp:") for target in self.targets)

    def applied(self, text: str) -> str:
        """`text`, the contents of the file, with the fault in it.

        Raises:
            CatalogueError: the text to be replaced does not occur exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise CatalogueError(f"{self.id}: expected its old text once in {self.file}, found it {count} times")
        return text.replace(self.old, self.new)

    def digest(self) -> str:
        """Changes with the fault."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:16]


def read_catalogue(folder: Path = FAULTS) -> list[Fault]:
    """Every fault, file by file.

    Raises:
        CatalogueError: an entry has an unknown or missing key, changes nothing, or uses an id again.
    """
    faults: list[Fault] = []
    for path in sorted(folder.glob("*.toml")):
        for entry in read_toml(path)["fault"]:
            faults.append(_fault(entry, path.name))
    seen: set[str] = set()
    for fault in faults:
        if fault.id in seen:
            raise CatalogueError(f"{fault.id}: two faults have this id")
        seen.add(fault.id)
    return faults


def _fault(entry: dict[str, Any], source: str) -> Fault:
    try:
        fault = Fault(**{**entry, "targets": tuple(entry["targets"])})
    except (KeyError, TypeError) as error:
        raise CatalogueError(f"{source}: {entry.get('id', 'a fault without an id')}: {error}") from None
    if fault.old == fault.new or not fault.targets:
        raise CatalogueError(f"{source}: {fault.id}: it changes nothing, or affects nobody")
    if not (CHAPTERS / f"{fault.chapter}.py").is_file():
        raise CatalogueError(f"{source}: {fault.id}: there is no chapter {fault.chapter}")
    return fault
