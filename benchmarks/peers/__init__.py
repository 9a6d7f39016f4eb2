"""What users would pick instead of `bittensor.linear`, one file for each package, to be timed by report/peers.py.

A peer is added by one file in this folder: a class of `peer.Peer`, and ``PEERS``, the list of its configurations.
docs/benchmarks.md says how they are compared.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from .peer import Peer


def installed() -> tuple[list[Peer], dict[str, str]]:
    """The peers of all files, and the reason why for each file whose package is not installed."""
    peers: list[Peer] = []
    absent = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "peer"):
        try:
            found: Sequence[Peer] = importlib.import_module(f"{__name__}.{name}").PEERS
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith(__name__):
                raise
            absent[name] = f"{error.name} is not installed"
            continue
        peers += found
    return peers, absent
