"""The page of results: drawn from records, opened in a browser; and the README's section."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import page, peers, program, readme, records

ABOUT = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Some CPU <9000>",
    "cpus": 4,
    "commit": "0123456789abcdef",
    "versions": {"torch": "2.13.0"},
    "isa": "avx2",
    "threads": 2,
    "command": "python -m benchmarks.report.some",
}
SCREENSHOTS = Path(__file__).resolve().parent.parent / "out" / "report-test"


def write(folder: Path, name: str, limits: dict[str, float], rows: list[dict[str, Any]], **about: object) -> None:
    content = {"name": name, "machine": ABOUT | about, "limits": limits, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def limit_row(operation: str, threads: int = 2, ratio: float = 0.8, claim: str = "a") -> dict[str, Any]:
    return {
        "claim": claim, "operation": operation, "threads": threads, "unit": "GOP/s", "figure": 100 * ratio,
        "limit": "int8 peak", "limit_figure": 100.0, "ratio": ratio, "ratio_quartiles": [0.7, 0.9],
        "target": "at least 0.7", "met": ratio >= 0.7,
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of each program, and a second machine's for two of them."""
    folder = tmp_path_factory.mktemp("results")
    limits = {"int8 avx2 GOP/s": 500.0, "float32 fma avx2 GFLOP/s": 120.0}
    limits |= {"read L2 GB/s": 200.0, "read L3 GB/s": 90.0, "read memory GB/s": 30.0}
    kernels = [
        {"case": f"{kernel}_{isa}/m{m}", "kernel": f"{kernel}_{isa}", "isa": isa, "operations": 1e6 * m, "bytes": 1e5,
         "microseconds": 10.0, "figure": speed * m}
        for (kernel, speed), isa, m in itertools.product(
            (("int8_linear_b4", 20), ("pack_row_b4", 3)), ("scalar", "avx2"), (1, 8))
    ]  # fmt: skip
    write(folder, "kernels", limits, kernels)
    for name, factor in (("linear-one", 1.0), ("linear-two", 1.1)):
        write(folder, name, limits, [limit_row("int8 M=8", ratio=0.6 * factor)], cpu=name)
    counts = (1, 2, 4)
    threads = [limit_row(f"M={m}, {n} threads", n, n * 0.9, f"M={m}") for m in (1, 8) for n in counts]
    write(folder, "threads-one", limits, threads, cpu="one")
    write(folder, "threads-two", limits, [row | {"ratio": row["ratio"] * 0.7} for row in threads], cpu="one", cpus=8)
    timings = []
    for m in (1, 8, 128):
        for name, speed in (("bittensor int8", 40.0), ("bittensor float", 20.0), ("rival", 10.0), ("limit", 90.0)):
            bits, activations = (None, None) if name == "limit" else (4, "float")
            timings.append(
                peers.Timing(
                    384,
                    256,
                    128,
                    m,
                    name,
                    bits,
                    activations,
                    figure=speed * m,
                    quartiles=(speed, speed),
                    ratios={f"bittensor {mode}": (1.0, 2.0, 3.0) for mode in ("int8", "float")},
                )
            )
    write(folder, "peers", limits, [asdict(each) for each in timings])
    write(folder, "integer-matmul", limits, [limit_row("pack_weights", ratio=1.2)])
    return folder


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report = {
        "profile": "ci", "machine": {"cpu": "Some CPU"},
        "targets": [{"target": "cpp:avx2", "status": "green",
                     "totals": {"executed": 9, "failed": 0, "expected": 9, "examples": 1234}}],
    }  # fmt: skip
    (folder / "conformance.json").write_text(json.dumps(report))
    return page.build(records.load(results), folder, [folder / "conformance.json"], folder / "no-asv")


def test_page_stands_alone(built: Path) -> None:
    text = built.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "src=" not in text
    assert 'href="http' not in text
    assert "Some CPU &lt;9000&gt;" in text
    assert "9 of 9" in text
    for line in ("M=8, one, 4 CPUs", "M=8, one, 8 CPUs"):
        assert f">{line}<" in text
    for name in ("linear", "threads"):
        assert f"{name}, beside each other" in text
    table = text[text.index("linear, beside each other") :]
    assert '<td class="text">int8 M=8 (GOP/s)</td><td class="number">60</td><td class="number">66</td>' in table
    assert "asv has stored results of fewer than two commits" in text


def test_pictures_are_kept_beside_the_page(built: Path) -> None:
    names = {path.stem for path in built.parent.glob("*.png")}
    assert names == {
        "roofline-kernels",
        "peers-peers-384x256-g128",
        "rows-peers",
        "threads",
        "limits-linear-one",
        "limits-linear-two",
        "limits-integer-matmul",
        "machines-linear",
    }


def test_page_without_records_says_so(tmp_path: Path) -> None:
    text = page.build([], tmp_path / "out", [], tmp_path / "no-asv").read_text(encoding="utf-8")
    assert "No record of the program kernels" in text
    assert "No report" in text


def test_committed_records_make_a_page(tmp_path: Path) -> None:
    text = page.build(records.load(), tmp_path, [], tmp_path / "no-asv").read_text(encoding="utf-8")
    assert text.count("<svg") == len(list(tmp_path.glob("*.png"))) > 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed: the page is opened where there is one (package chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page is opened with the package playwright")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=arguments)
        yield opened
        opened.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_page_in_a_browser(built: Path, browser: Any, scheme: str, width: int) -> None:
    opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    complaints, requests = [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(built.as_uri())
    drawings = opened.locator("figure svg").all()
    assert len(drawings) == 8
    for drawing in drawings:
        box = drawing.bounding_box()
        assert box["width"] > 0.8 * min(width, 960) - 40
        assert box["height"] > 60
        assert drawing.locator("path").count() > 10
    assert opened.evaluate("document.documentElement.scrollWidth") <= width, "wider than the screen"
    paper, ink = opened.evaluate(
        "['body', 'figure svg'].map((name, index) => getComputedStyle(document.querySelector(name))"
        "[index ? 'color' : 'backgroundColor'])"
    )
    channels = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
    assert (channels[0] < channels[1]) == (scheme == "dark")
    assert abs(channels[0] - channels[1]) > 450, "too little contrast"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=SCREENSHOTS / f"{scheme}-{width}.png", full_page=True)
    opened.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_readme_says_what_the_records_say() -> None:
    text = readme.README.read_text(encoding="utf-8")
    message = "the records have changed: run python -m benchmarks.report.readme"
    assert readme.updated(text, readme.section(records.load())) == text, message


def test_section_names_machine_date_versions_and_command(results: Path) -> None:
    text = readme.section(records.load(results))
    assert "Some CPU <9000>, 4 CPUs, avx2, 2 threads; 2026-01-02, commit 0123456789ab, torch 2.13.0" in text
    assert "`python -m benchmarks.report.some`" in text
    assert "| 384x256 | 128 | 8 | rival | 2.00x as fast | rival | 2.00x as fast |" in text
    assert "| int8 M=8 | 60 GOP/s | int8 peak: 100 | 0.60 | at least 0.7, missed |" in text


def test_marks_are_needed() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        readme.updated("# BitTensor\n", "text")
    old = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    assert readme.updated(old, "new") == f"a\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nb\n"


def test_a_result_file_belongs_to_a_program() -> None:
    assert records.program_of(Path("integer-matmul-some-machine.json")) == "integer-matmul"
    assert records.program_of(Path("linearly.json")) == "linearly"


def test_other_programs_have_a_table(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    write(tmp_path / "results", "new-program", {}, [{"what": "something new", "figure": 1.5}])
    built = page.build(records.load(tmp_path / "results"), tmp_path / "out", [], tmp_path / "no-asv")
    assert "something new" in built.read_text(encoding="utf-8")


def test_programs_that_measure_need_no_tools_of_the_page() -> None:
    """They run on lent machines, where little is installed."""
    blocked = "import sys; sys.modules |= dict.fromkeys(['pandas', 'matplotlib', 'asv', 'asv_runner', 'typer'])"
    modules = ("threads", "linear", "integer_matmul", "kernels")
    imports = "; ".join(f"import benchmarks.report.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", f"{blocked}; {imports}"], check=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [], "machine": {}, "limits": {}}'])
def test_a_file_that_is_no_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "linear-mine.json").write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"linear-mine\.json: expected a record"):
        records.load(tmp_path)
    with pytest.raises(SystemExit, match="expected a folder of records"):
        records.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "linear-mine"], "expected threads, or threads-MACHINE, got 'linear-mine'"),
        (["--name", "threads/x"], "expected threads, or threads-MACHINE"),
        (["--rounds", "1"], "expected a number of at least 2, got '1'"),
        (["--threads", "0"], "expected a number of at least 1"),
    ],
)
def test_arguments_are_refused_before_anything_is_measured(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = program.sampling_arguments("Threads.", name="threads", rounds=5)
    assert parser.parse_args(["--name", "threads-some-machine", "--rounds", "2"]).rounds == 2
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert message in " ".join(capsys.readouterr().err.split())
