"""``python -m bittensor_conformance NAME [NAME...]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .profiles import PROFILES
from .runner import run


def main() -> int:
    """Parse the command line and run; returns the exit code of `bittensor_conformance.runner.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m bittensor_conformance",
        description="Hold BitTensor backends against docs/numerics.md. A backend is run with each of its variants.",
        epilog="exit code: 0 all that was chosen holds, 1 a check failed, 2 wrong arguments or something was not run",
    )
    parser.add_argument("backends", nargs="+", metavar="NAME", help="a backend (cpp) or one of its variants (cpp:avx2)")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="dev", help="how much work (default: dev)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the JSON report here")
    parser.add_argument("--badge", type=Path, metavar="FILE", help="write a badge here, .svg or .json")
    parser.add_argument("-k", dest="keyword", metavar="EXPR", help="run only checks that pytest's -k would select")
    parser.add_argument("--expected-failures", type=Path, metavar="FILE", help="JSON object of {check id: reason}")
    parser.add_argument("--max-examples", type=int, metavar="N", help="examples of each property")
    parser.add_argument("--minutes", type=float, metavar="M", help="with nightly: search for so long")
    parser.add_argument("--jobs", type=int, metavar="N", help="targets at the same time (default: processors)")
    options = vars(parser.parse_args())
    return run(options.pop("backends"), **options)


if __name__ == "__main__":
    sys.exit(main())
