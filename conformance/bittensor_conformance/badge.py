"""The badge: what a run has shown, as a picture for a README or as data for a service that draws badges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

SUFFIXES = (".svg", ".json")

_COLOURS = {"brightgreen": "#3fb950", "red": "#d1242f", "orange": "#d4731a"}
_CHARACTER, _PADDING = 6.6, 12


def write(path: Path, badge: Mapping[str, Any]) -> None:
    """Write the badge of a report to a file that ends in .svg, or in .json for the endpoint format of shields.io."""
    text = json.dumps(dict(badge)) if path.suffix == ".json" else _svg(badge)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _svg(badge: Mapping[str, Any]) -> str:
    label, message = escape(badge["label"]), escape(badge["message"])
    left, right = (round(len(text) * _CHARACTER) + _PADDING for text in (label, message))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{label}: {message}"><title>{label}: {message}</title>'
        f'<rect width="{left}" height="20" fill="#555"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{_COLOURS[badge["color"]]}"/>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{left / 2}" y="14">{label}</text><text x="{left + right / 2}" y="14">{message}</text></g></svg>'
    )
