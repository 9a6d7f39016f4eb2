"""One run of the suite in a workspace: the profile ``ci`` on one target, up to the first check that fails.

A program of its own, started by `judge.py` with the workspace's Python; it knows the suite and nothing of mutants.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bittensor_conformance
import pytest
from bittensor_conformance.plugin import ConformancePlugin
from bittensor_conformance.profiles import Effort


def main(target: str, first_chapter: str, verdict: Path, drawn: Path) -> None:
    """Write the status of `target` to `verdict`, with the check that failed.

    While the suite runs, the file beside it that ends in ``.check`` names the check that it is at. `drawn` is a folder
    that all runs on the same sources share.
    """
    suite = Path(bittensor_conformance.__file__).parent

    def tell(event: dict[str, Any]) -> None:
        if "at" in event:
            verdict.with_suffix(".check").write_text(event["at"], encoding="utf-8")

    effort = Effort("ci", shrink_seconds=0)  # a verdict needs no small counterexample
    plugin = ConformancePlugin([target], effort, {}, frozenset(), tell, drawn)
    chapters = sorted((suite / "chapters").glob("test_*.py"), key=lambda path: (path.stem != first_chapter, path))
    pytest.main(
        [
            *map(str, chapters),
            *("-x", "-c", str(suite / "pytest.ini"), "--rootdir", str(suite), "-p", "no:cacheprovider"),
            *("--assert=plain", "--tb=no", "-q", "-q", "--no-header", "--no-summary"),
        ],
        plugins=[plugin],
    )
    report = plugin.reports()[0]
    failed = next((check for check in report["checks"] if check["outcome"] == "failed"), None)
    found = {"check": failed["id"], "message": failed["message"]} if failed else None
    verdict.write_text(json.dumps({"status": report["status"], "errors": plugin.errors, "failed": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
