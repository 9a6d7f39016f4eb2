"""Writes docs/rivals.md from the reports, the findings, and the words below.

python -m conformance.rivals.page
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processors import PROCESSORS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rivals.md"
FINDINGS = sorted((Path(__file__).parent / "findings").glob("*.py"))
REPORTS = sorted((Path(__file__).parent / "reports").glob("*.json"))

VERDICTS = {
    "wrong": "a result that contradicts the operation's own definition",
    "silent": "an input that spoils the result goes unnoticed, and nothing promises otherwise",
    "unchecked": "arguments that do not fit are not refused",
    "differs": "a property that ours has and that nobody promised",
    "as documented": "a limit or a choice that the library's documentation states",
    "unsupported": "refused, with an error",
}
"""What a finding may be, the gravest first."""

RELATIONS = {
    "linear_of_split_batch": "a batch in parts, or row by row",
    "linear_of_equal_rows": "one row at 35 places of a batch",
    "linear_of_permuted_rows": "rows in another order",
    "linear_of_split_outputs": "a weight cut along its outputs",
    "linear_on_any_number_of_threads": "1, 2, 3 and 8 threads",
    "concurrent_linears_do_not_disturb_each_other": "four calls at once",
    "linear_of_strided_inputs": "inputs in other strides",
    "linear_of_a_weight_used_before": "a weight's first and second use",
    "linear_of_scaled_rows": "x times a power of two",
    "linear_of_zero_rows": "rows of zeros give the bias",
    "linear_keeps_bad_rows_apart": "a NaN or an infinity in another row",
}

HEAD = """# Other libraries on the bench

What users would pick instead of `bittensor.linear`, held against the same contract, [numerics.md](numerics.md), by the
same suite. This page is written by `python -m conformance.rivals.page` from the reports in `conformance/rivals/reports`
and the findings in `conformance/rivals/findings`. `make rivals` installs the libraries, runs the findings, and says
whether each still holds.

**How to read it.** The libraries never signed this contract. A check that fails says that a result is not what
numerics.md asks of a bounded backend; whether that is a defect is decided by the library's own promise, which stands in
each finding. What is refused with an error counts as unsupported, not as failed, and is not tested. Adapters
(`backends/rivals`) convert weights exactly, fill up shapes where that cannot change a result, widen x and scales to
float32 unless said otherwise, and otherwise do nothing.

Other processors run other kernels. The reports are all from one machine, an Intel Xeon with AMX, with one version of
each library. A finding says where it was seen, and where it was looked for in vain. On a processor that it does not
name it was not looked for.
"""

WELL = """
No result of onnxruntime or torch leaves its bound, at any width and dtype that they support, but for NaN in x and what
onnxruntime makes of scales from 2^121 on. Both refuse what they do not support, in words that say why. torch has the
same bits whatever the batch and the threads, as ours. The common sizes of openvino, groups of 32, 64 and 128 and an
even number of columns, show none of the wrong results below but the tiny ones. With an adapter that cuts its groups
into powers of two and fills odd columns up, `Blocks.of(weight, [8 << i for i in range(14)])`, 251 of 255 checks pass
on the same machine; what is left is a NaN in x, and weights beyond float32.
"""

AFTER_CHECKS = """
Bounds are derived, not fitted: sections 4 and 5 of numerics.md. "Largest error" is the largest that a check of that
kind saw before it passed or failed, less one rounding to the dtype of the result, as a part of the bound: 1 is allowed.
A failing check is explained by the finding beside it.
"""

AFTER_ERRORS = """
Normal values, 64 outputs, 1 to 128 rows, up to 4096 columns; scales in the dtype of x where the backend takes them, no
bias. "relative" is the root mean square of the error over that of the result, the rounding to the dtype of x included.
"of the bound" is the largest error, less that rounding, as a part of the bound.
"""

BEFORE_RELATIONS = """
Relations between results, bit for bit, at 4 bits. The contract asks them of exact backends, and nobody else promises
them: a "no" is no defect. Differences are of the order of float32 rounding unless a finding says otherwise.
"""

BEFORE_FINDINGS = """
Each is reproduced below in a few lines without BitTensor; `make rivals` runs them. Where a finding was not seen on the
processor at hand, it is skipped, and says so.
"""

BACKENDS = """
`torch_int4` is `_weight_int4pack_mm_for_cpu` in float32; `torch_int4_native` calls it in the dtype of x where the
scales have that dtype. `onnxruntime` is MatMulNBits, float with accuracy_level 0, int8 with 4. `openvino` is compressed
weights in float32, int8 with dynamic quantization in the weight's groups. A backend without a row here has no recorded
report; its findings below run all the same.
"""


@dataclass(frozen=True)
class Finding:
    """One finding: a file whose docstring says what it is, and whose code shows it."""

    name: str
    title: str
    library: str
    verdict: str
    promise: str
    checks: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    remarks: str
    code: str

    @classmethod
    def read(cls, path: Path) -> Finding:
        """The finding of a file."""
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        title, fields, *remarks = (ast.get_docstring(tree) or "").split("\n\n")
        values = {
            name: " ".join(value.split()) for name, value in re.findall(r"(?ms)^(\w+): (.*?)(?=^\w+: |\Z)", fields)
        }
        if values["Verdict"] not in VERDICTS:
            raise ValueError(f"{path.name}: expected a verdict out of {list(VERDICTS)}, got {values['Verdict']!r}")
        seen, unseen = (tuple(filter(None, values.get(name, "").split(", "))) for name in ("Seen", "Unseen"))
        if not seen or not {*seen, *unseen} <= PROCESSORS.keys():
            raise ValueError(f"{path.name}: expected processors out of {list(PROCESSORS)}, got {[*seen, *unseen]}")
        code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
        return cls(
            path.stem,
            title,
            values["Library"],
            values["Verdict"],
            values["Promise"],
            tuple(values.get("Checks", "").split()),
            seen,
            unseen,
            "\n\n".join(remarks).strip(),
            code,
        )

    def explains(self, check_id: str) -> bool:
        """Whether the failure of a check is this finding's."""
        return any(name in check_id for name in self.checks)

    @property
    def anchor(self) -> str:
        """Where the page has it."""
        return self.name.replace("_", "-")


def read_report(path: Path) -> dict[str, Any]:
    """A report of the survey."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def findings() -> list[Finding]:
    """All findings, the gravest first."""
    order = list(VERDICTS)
    return sorted((Finding.read(path) for path in FINDINGS), key=lambda each: (order.index(each.verdict), each.name))


def library_of(backend: str) -> str:
    return backend.partition("_")[0]


def kind_of(check_id: str) -> str:
    """What a check is about, in the words of the table."""
    chapter = check_id.partition("/")[0]
    if chapter == "memory":
        return "memory: guard pages, inputs unchanged"
    if "int8" in chapter or "int8" in check_id:
        return "linear, int8 activations"
    if chapter.startswith("5_"):
        return "linear, float activations"
    if chapter.startswith("3_"):
        return "weights: prepare and restore"
    return "protocol, arguments, refusals"


def check_rows(report: Mapping[str, Any], known: Sequence[Finding]) -> Iterator[list[str]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for check in report["checks"]:
        groups.setdefault(kind_of(check["id"]), []).append(check)
    for kind in sorted(groups):
        checks = groups[kind]
        failed = [check for check in checks if check["outcome"] == "failed"]
        largest = max(
            (check["error_to_bound"] for check in checks if check["error_to_bound"] is not None), default=None
        )
        reasons = {
            f"[{finding.verdict}](#{finding.anchor})": None
            for finding in known
            for check in failed
            if finding.library == library_of(report["backend"]) and finding.explains(check["id"])
        }
        yield [
            f"`{report['backend']}`",
            kind,
            f"{len(checks) - len(failed)} of {len(checks)}",
            "" if largest is None else f"{largest:.2g}",
            ", ".join(reasons),
        ]


def error_rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in report["errors"]:
        if row["bits"] == 4:
            yield [
                f"`{report['backend']}`",
                row["mode"],
                row["dtype"],
                f"{row['relative']:.1e}",
                f"{row['largest_of_bound']:.2g}",
            ]


def relation_table(reports: Sequence[Mapping[str, Any]]) -> str:
    columns = [(report, mode) for report in reports for mode in report["declared"]["activation_modes"]]
    headings = ["", *(f"`{report['backend']}` {mode}" for report, mode in columns)]
    rows = []
    for relation, words in RELATIONS.items():
        row = [words]
        for report, mode in columns:
            (seen,) = (
                each
                for each in report["relations"]
                if (each["relation"], each["mode"], each["bits"]) == (relation, mode, 4)
            )
            row.append("yes" if seen["holds"] else "no")
        rows.append(row)
    return table(headings, rows)


def declared_rows(report: Mapping[str, Any]) -> list[str]:
    declared = report["declared"]
    size = declared["group_size_multiple"]
    return [
        f"`{report['backend']}`",
        ", ".join(map(str, declared["linear_bits"])),
        ", ".join(declared["activation_modes"]),
        ", ".join(declared["zero_kinds"]),
        f"multiples of {size}, whole rows",
        f"{report['totals']['executed'] - report['totals']['failed']} of {report['totals']['expected']}",
    ]


def summary(report: Mapping[str, Any]) -> str:
    """What a backend does well, in figures."""
    passed = [check for check in report["checks"] if check["outcome"] == "passed"]
    parts = []
    for mode in report["declared"]["activation_modes"]:
        held = [each["holds"] for each in report["relations"] if (each["mode"], each["bits"]) == (mode, 4)]
        errors = [
            check["error_to_bound"]
            for check in passed
            if check["error_to_bound"] is not None and kind_of(check["id"]) == f"linear, {mode} activations"
        ]
        parts.append(
            f"in mode {mode}, errors are at most {max(errors):.2g} of the bound in the checks that pass, and "
            f"{sum(held)} of {len(held)} relations hold bit for bit"
        )
    return f"- `{report['backend']}`: {'; '.join(parts)}."


def processors(finding: Finding) -> str:
    """Where a finding was seen, and where it was not."""
    *others, last = finding.seen
    seen = f"Seen on {', '.join(others)} and {last}" if others else f"Seen on {last}"
    return f"{seen}, not on {' or '.join(finding.unseen)}." if finding.unseen else f"{seen}."


def section(finding: Finding) -> str:
    """A finding on the page."""
    parts = [
        f'<a id="{finding.anchor}"></a>\n\n### {finding.library}: {finding.title}',
        f"**{finding.verdict}.** {processors(finding)} Promise: {finding.promise}",
        finding.remarks,
        f"```python\n{finding.code}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def text() -> str:
    """The page."""
    reports = [read_report(path) for path in REPORTS]
    known = findings()
    machine = reports[0]["machine"]
    versions = {name: number for report in reports for name, number in report["versions"].items()}
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "openvino"))
    ran = "\n".join(report["command"] + f"    # {report['date']}" for report in reports)
    verdicts = [[f"**{verdict}**", meaning] for verdict, meaning in VERDICTS.items()]
    overview = [[f"[{each.title}](#{each.anchor})", each.library, each.verdict, ", ".join(each.seen)] for each in known]
    parts = [
        HEAD,
        f"{machine['cpu']}, {machine['capability']}; {named}; Python {versions['python']}.",
        f"```console\n{ran}\n```",
        "## What was tested\n",
        table(
            ["backend", "bits", "activations", "zero", "group sizes", "checks passed"],
            list(map(declared_rows, reports)),
        ),
        BACKENDS,
        "## What they do well\n",
        "\n".join(map(summary, reports)),
        WELL,
        "## Findings\n" + BEFORE_FINDINGS,
        table(["finding", "library", "verdict", "seen on"], overview),
        table(["verdict", "means"], verdicts),
        "## Checks\n",
        table(
            ["backend", "checks", "passed", "largest error", "explained by"],
            [row for report in reports for row in check_rows(report, known)],
        ),
        AFTER_CHECKS,
        "## Errors\n",
        table(
            ["backend", "activations", "x", "relative", "of the bound"],
            [row for report in reports for row in error_rows(report)],
        ),
        AFTER_ERRORS,
        "## Same bits\n" + BEFORE_RELATIONS,
        relation_table(reports),
        "## The findings, reproduced\n",
        *map(section, known),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
