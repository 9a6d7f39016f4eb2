"""What the programs of this folder do alike: their arguments, the set-up, and what is written beside the figures."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

import bittensor

from . import machine, record
from .measure import Rounds
from .record import Row


def arguments(description: str, *, name: str, rounds: int, least_rounds: int = 1) -> argparse.ArgumentParser:
    """The arguments of every program, with its own defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--name", type=result_name(name), default=name, help="of the result file in benchmarks/results")
    parser.add_argument("--rounds", type=at_least(least_rounds), default=rounds, help="rounds of interleaved samples")
    parser.add_argument("--threads", type=at_least(1), default=2)
    return parser


def result_name(program: str) -> Callable[[str], str]:
    """The type of an argument: a name of a result file of `program`, which begins with the name of that."""

    def parse(text: str) -> str:
        if not re.fullmatch(rf"{re.escape(program)}(-[\w.-]+)?", text):
            raise argparse.ArgumentTypeError(f"expected {program}, or {program}-MACHINE, got {text!r}")
        return text

    return parse


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument: a number that is not below `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a number of at least {least}, got {text!r}")
        return int(text)

    return parse


def sampling_arguments(description: str, *, name: str, rounds: int) -> argparse.ArgumentParser:
    """Those of a program that samples in turn: its time can be bounded."""
    parser = arguments(description, name=name, rounds=rounds, least_rounds=2)  # quartiles need two
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of each comparison, about; fewer rounds then, but three"
    )
    return parser


@contextmanager
def set_up(threads: int, rounds: int) -> Iterator[dict[str, object]]:
    """The C++ backend in use and fixed seeds; gives the machine as it is written into the result file."""
    about = machine.describe()
    torch.manual_seed(0)
    with bittensor.use_backend("cpp") as backend:
        isa = backend.describe()["isa"]
        yield about | {
            "backend": backend.name,
            "isa": isa,
            "threads": threads,
            "rounds": rounds,
            "command": command(),
        }


def command() -> str:
    """How this program was called."""
    module = sys.modules["__main__"].__spec__
    return shlex.join(["python", *(["-m", module.name] if module else [sys.argv[0]]), *sys.argv[1:]])


def run(description: str, measure: Callable[[int, Rounds, str], list[Row]], *, name: str, rounds: int) -> None:
    """A whole program: ``measure(threads, rounds, isa)`` gives the rows that are written and printed."""
    given = sampling_arguments(description, name=name, rounds=rounds).parse_args()
    with set_up(given.threads, given.rounds) as about:
        isa = str(about["isa"])
        limits = machine.limits(given.threads, isa)
        rows = measure(given.threads, Rounds(given.rounds, given.seconds), isa)
    path = record.write(given.name, about, limits, [asdict(row) for row in rows])
    record.show(f"{about['cpu']}, {isa}, {about['date']}", limits, rows)
    print(path.relative_to(machine.ROOT))
