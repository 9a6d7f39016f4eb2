"""Rules of the code base itself: who imports whom, versions that agree, nothing left lying about."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bittensor

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("backends", "benchmarks", "bittensor", "conformance", "docs", "examples", "requirements", "tests")
BACKEND_PACKAGES = frozenset({"bittensor_cpp", "bittensor_reference", "bittensor_rivals"})
PROTOCOL_MODULES = frozenset(
    {
        "bittensor",
        "bittensor.backend",
        "bittensor.checks",
        "bittensor.codes",
        "bittensor.convolution",
        "bittensor.errors",
        "bittensor.fused",
        "bittensor.linear_gradient",
        "bittensor.operators",
        "bittensor.prepared_weight",
    }
)
OPTIONAL_PACKAGES = {
    "checkpoints": frozenset({"safetensors"}),
    "models": frozenset({"jinja2", "tokenizers"}),
}
"""Packages of the extra "models", by the folders of bittensor that may import them, within functions."""
RIVAL_PACKAGES = frozenset({"numpy", "onnx", "onnxruntime", "openvino"})
"""Packages of the extra "rivals"."""
COMPILER = frozenset({"torch._dynamo", "torch._inductor", "sympy"})
"""What torch loads for torch.compile, which takes as long as torch itself."""
TEXT_SUFFIXES = frozenset(
    {".cmake", ".cpp", ".css", ".hpp", ".html", ".inl", ".json", ".md", ".py", ".pyi", ".sh", ".toml", ".txt", ".yml"}
)
CPP_SUFFIXES = frozenset({".cpp", ".hpp", ".inl"})
PLAIN_HEADERS = re.compile(r"cstdint|cstddef|[a-z0-9]*intrin\.h")
"""Standard headers that define no function, and the intrinsics, which are always inlined."""
GENERATED = frozenset({"__pycache__", ".pytest_cache", ".hypothesis", ".asv", "build"})


@dataclass(frozen=True)
class Import:
    """One import statement: the module it names, where it stands, and whether it runs only later, or never."""

    module: str
    file: Path
    line: int
    lazy: bool
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(file: Path, package: str = "") -> Iterator[Import]:
    """Imports of a file; relative ones are resolved in `package`. ``from a import b`` counts as ``a``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    delayed = [node for node in ast.walk(tree) if isinstance(node, functions) or for_types_only(node)]
    lazy = {id(inner) for node in delayed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            submodules = [alias.name for alias in node.names if node.module is None]
            modules = [f"{base}.{name}" for name in submodules] or [base]
        else:
            continue
        names = tuple(alias.name for alias in node.names) if isinstance(node, ast.ImportFrom) else ()
        for module in modules:
            yield Import(module, file, node.lineno, id(node) in lazy, names)


def for_types_only(node: ast.AST) -> bool:
    """Whether it is a block that only type checkers read."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_imports(*folders: str) -> list[Import]:
    """Imports of every Python file below the folders, without those of the standard library."""
    found = []
    for folder in folders:
        files = [file for file in sorted((ROOT / folder).rglob("*.py")) if not GENERATED & set(file.parts)]
        assert files, f"no Python files in {folder}: has it moved?"
        for file in files:
            package = ".".join(file.parent.relative_to((ROOT / folder).parent).parts)
            found += [each for each in imports(file, package) if root_of(each) not in sys.stdlib_module_names]
    return found


def root_of(each: Import) -> str:
    return each.module.partition(".")[0]


def is_command_line(each: Import) -> bool:
    return each.file.name == "cli.py" or each.file.parent.name == "commands"


def check(found: list[Import], allowed: Callable[[Import], bool], rule: str) -> None:
    wrong = [str(each) for each in found if not allowed(each)]
    assert not wrong, f"{rule}:\n  " + "\n  ".join(wrong)


def test_bittensor_imports_only_torch() -> None:
    def allowed(each: Import) -> bool:
        if is_command_line(each) and root_of(each) in {"typer", "rich"}:
            return True
        if is_command_line(each) and root_of(each) == "bittensor_conformance":
            return each.lazy
        if each.file.name == "progress.py" and root_of(each) == "rich":
            return each.lazy
        if each.file.parent.name == "transformers" and root_of(each) in {"transformers", "safetensors"}:
            return True
        if root_of(each) in OPTIONAL_PACKAGES.get(each.file.parent.name, ()):
            return each.lazy
        return root_of(each) in {"torch", "bittensor"}

    rule = (
        "bittensor imports torch; the command line also typer and rich, and the conformance suite when it is asked "
        "for, progress.py rich when it shows progress, checkpoints and models the packages of their extra when needed; "
        "transformers, which nothing imports, those of its own extra at once"
    )
    check(room_imports("bittensor"), allowed, rule)


def test_nothing_imports_checkpoints_and_models_but_the_command_line() -> None:
    """The order of the rooms: operations, then checkpoints, then models."""

    def allowed(each: Import) -> bool:
        if each.module.startswith("bittensor.commands"):
            return is_command_line(each)
        if each.module.startswith("bittensor.models"):
            return each.file.parent.name == "models" or (is_command_line(each) and each.lazy)
        if each.module.startswith("bittensor.checkpoints"):
            above = {"checkpoints", "models", "transformers"}
            return each.file.parent.name in above or (is_command_line(each) and each.lazy)
        if each.module.startswith("bittensor.transformers"):
            return each.file.parent.name == "transformers"
        return True

    check(room_imports("bittensor"), allowed, "checkpoints and models stand above the rest, and load when needed")


@pytest.mark.parametrize("package", sorted(BACKEND_PACKAGES))
def test_backends_import_the_protocol(package: str) -> None:
    own, folder = package, f"backends/{package.removeprefix('bittensor_')}/{package}"

    def allowed(each: Import) -> bool:
        if own == "bittensor_rivals" and (root_of(each) in RIVAL_PACKAGES or each.module == "bittensor.extras"):
            return True
        if root_of(each) == "bittensor":
            return each.module in PROTOCOL_MODULES
        return root_of(each) in {"torch", own}

    check(room_imports(folder), allowed, "a backend imports torch and bittensor's protocol, types and errors")


def test_conformance_imports_no_backend() -> None:
    modules = {"bittensor", "bittensor.backend", "bittensor.errors", "bittensor.registry"}

    def allowed(each: Import) -> bool:
        if each.module in {"bittensor.codes", "bittensor.prepared_weight"}:
            return bool(each.names) and all(name.isupper() for name in each.names)
        if each.module == "bittensor.fused":  # to tell operations of a backend's own from these
            return set(each.names) == {"ComposedOperations"}
        if root_of(each) == "bittensor":
            return each.module in modules
        return root_of(each) not in BACKEND_PACKAGES

    rule = "the conformance suite imports bittensor's public API, registry and constants; its arithmetic is its own"
    check(room_imports("conformance/bittensor_conformance"), allowed, rule)


@pytest.mark.parametrize(
    "folder",
    [
        "benchmarks",
        "examples",
        "tests",
        "conformance/meta_tests",
        "conformance/mutants",
        "conformance/fuzzing",
        "conformance/rivals",
    ],
)
def test_users_of_bittensor_import_no_backend(folder: str) -> None:
    def allowed(each: Import) -> bool:
        if folder == "benchmarks":  # the machine's limits and single kernels are measured below the protocol
            if each.file.parent.name == "peers" and root_of(each) == "bittensor_rivals":
                return True  # peers are timed as the rivals construct them, without their backends
            return root_of(each) not in BACKEND_PACKAGES or each.names == ("_native",)
        if folder == "tests" and "native_" in each.file.name:
            return True
        if folder == "conformance/meta_tests":  # broken backends are the reference with one thing changed
            return root_of(each) not in BACKEND_PACKAGES or root_of(each) == "bittensor_reference"
        return root_of(each) not in BACKEND_PACKAGES

    check(room_imports(folder), allowed, f"{folder} reaches backends by name, through bittensor")


def test_import_rules_see_every_form(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import a.b, c\nfrom . import d\nfrom .e import f\nfrom ..g import h\ndef lazy():\n    import i\n")
    found = [(each.module, each.lazy) for each in imports(file, "package.inner")]
    expected = ["a.b", "c", "package.inner.d", "package.inner.e", "package.g"]
    assert found == [*((module, False) for module in expected), ("i", True)]


def includes(file: Path) -> list[str]:
    """Headers that a file includes, with their delimiters: ``<cstdint>``, ``"bittensor/pack.hpp"``."""
    pattern = r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")'
    return re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)


def cpp_files(*folders: str) -> list[Path]:
    found = []
    for folder in folders:
        files = [file for file in sorted((ROOT / folder).rglob("*")) if file.suffix in CPP_SUFFIXES]
        assert files, f"no C++ files in {folder}: has it moved?"
        found += files
    return found


def test_core_library_knows_neither_torch_nor_python() -> None:
    forbidden = re.compile(r'["<]((torch|ATen|c10|pybind11|bindings)/|Python\.h)')
    wrong = [
        f"{file.relative_to(ROOT)} includes {name}"
        for file in cpp_files("backends/cpp/include", "backends/cpp/src")
        for name in includes(file)
        if forbidden.match(name)
    ]
    assert not wrong, "only backends/cpp/bindings knows torch or Python:\n  " + "\n  ".join(wrong)


def test_kernels_include_plain_data_only() -> None:
    """Kernels are compiled with flags; an inline function that they emit could be the one that every machine runs."""
    wrong = []
    waiting = cpp_files("backends/cpp/src/kernels")
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        for name in includes(file):
            if name.startswith("<"):
                if not PLAIN_HEADERS.fullmatch(name.strip("<>")):
                    wrong.append(f"{file.relative_to(ROOT)} includes {name}")
                continue
            candidates = [file.parent / name.strip('"'), ROOT / "backends/cpp/include" / name.strip('"')]
            header = next((candidate for candidate in candidates if candidate.is_file()), None)
            assert header is not None, f"{file.relative_to(ROOT)} includes {name}, which is not in the library"
            if header not in seen:
                seen.add(header)
                waiting.append(header)
    assert not wrong, "kernels and what they include bring in nothing inline:\n  " + "\n  ".join(wrong)


def test_versions_agree() -> None:
    pyproject = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cmake = re.search(r"project\(bittensor VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert pyproject
    assert cmake
    message = "after a change of version, install again"
    assert pyproject[1] == cmake[1] == bittensor.__version__, message


def text_files() -> list[Path]:
    below = [file for room in ROOMS for file in (ROOT / room).rglob("*") if not GENERATED & set(file.parts)]
    files = [file for file in (*ROOT.iterdir(), *below) if file.is_file()]
    return [file for file in files if file.suffix in TEXT_SUFFIXES or file.name in {"Makefile", ".gitignore"}]


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        (r"(?<![\w.~/}])/(?:home|root|Users|work|mnt|media|srv)/", "an absolute path of one machine"),
        (r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", "an unfinished mark; finish it, or leave it out"),
    ],
)
def test_nothing_is_left_lying_about(pattern: str, rule: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for file in text_files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not wrong, f"{rule}:\n  " + "\n  ".join(wrong)


def loaded_by(code: str, run_python: Callable[..., subprocess.CompletedProcess[str]]) -> set[str]:
    """Names of all modules that a new process has loaded when it has run `code`."""
    process = run_python("-c", f"import sys\n{code}\nprint(*sys.modules)")
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_import_loads_neither_command_line_nor_backends_nor_compiler(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    loaded = loaded_by("import bittensor", run_python)
    unwanted = {"typer", "rich", "pytest", "hypothesis", "bittensor_conformance", *BACKEND_PACKAGES, *COMPILER}
    assert "bittensor" in loaded
    assert not loaded & unwanted


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_linear_and_its_gradient_load_no_compiler(
    backend: str, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = f"""
import bittensor, torch
with bittensor.use_backend({backend!r}):
    x = torch.ones(2, 128, requires_grad=True)
    bittensor.linear(x, bittensor.quantize(torch.ones(16, 128))).sum().backward()
    codes = torch.ones(4, 16, dtype=torch.uint8)
    bittensor.packed_matmul(codes, bittensor.pack_weights(codes))
"""
    loaded = loaded_by(code, run_python)
    assert f"bittensor_{backend}" in loaded
    assert not loaded & COMPILER


def test_every_name_in_all_exists() -> None:
    assert [name for name in bittensor.__all__ if not hasattr(bittensor, name)] == []
    assert len(set(bittensor.__all__)) == len(bittensor.__all__)
