"""``python -m conformance.fuzzing operators|model-operators|checkpoints``: fuzz for some minutes, from the seeds on.

Needs the package atheris (requirements/fuzz.txt). What it learns stays in ``out/fuzzing``, and so do the bytes of a
failure, which ``--replay FILE`` runs again.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import warnings
from pathlib import Path
from types import FunctionType

import atheris
import torch

ROOT = Path(__file__).resolve().parents[2]
SEEDS = Path(__file__).with_name("seeds")
MODULES = {
    "operators": "operator_calls",
    "model-operators": "model_operator_calls",
    "checkpoints": "checkpoint_files",
}

MEMORY = 2 << 30
"""Bytes that a call may take beside what the process has: a count in a file that is taken at its word asks for more."""


def main() -> None:
    """Parse the command line and fuzz; libFuzzer ends the process, with a code other than 0 if it found something."""
    parser = argparse.ArgumentParser(prog="python -m conformance.fuzzing", description=__doc__)
    parser.add_argument("target", choices=tuple(MODULES))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="only run the bytes of this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    run = importlib.import_module(f".{MODULES[options.target]}", __package__).run
    if options.replay is not None:
        run(options.replay.read_bytes())
        return
    torch.set_num_threads(1)
    _instrument("bittensor", "bittensor_cpp")
    corpus = ROOT / "out" / "fuzzing" / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    _limit_memory()
    flags = (
        f"-max_total_time={options.minutes * 60:.0f}",
        f"-artifact_prefix={corpus.parent}/{options.target}-",
        *("-timeout=120", "-rss_limit_mb=0", "-max_len=1024", "-print_final_stats=1"),
    )
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(SEEDS / options.target)], run)
    atheris.Fuzz()


def _instrument(*packages: str) -> None:
    """Have atheris see what runs in the packages: function by function, because it cannot see editable imports."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages:
            continue
        owners = [module, *(each for each in vars(module).values() if isinstance(each, type))]
        for owner in owners:
            for each in list(vars(owner).values()):
                function = getattr(each, "__func__", each)
                if isinstance(function, FunctionType) and function.__module__ == name:
                    atheris.instrument_func(function)


def _limit_memory() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    used = int(status.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    main()
