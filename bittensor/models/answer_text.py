"""The text of an answer, token by token, up to a stop text."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class AnswerText:
    """Tokens to text as they come. A character is there when its last byte has come.

    What may become a stop text is held back until it is clear.

    Args:
        tokenizer: of the package tokenizers; special tokens are left out.
        stop: texts that end the answer, and do not belong to it: the one that is complete first.

    Attributes:
        text: what is certain so far.
        ended: a stop text has come; nothing follows.

    Raises:
        ValueError: an empty stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Collection[str] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        if isinstance(stop, str) or not all(stop):
            raise ValueError(f"stop: expected texts of at least one character, got {stop!r}")
        self.text = ""
        self.ended = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held = ""

    def add(self, token: int) -> str:
        """Take in the next token; returns what is added to the text."""
        if self.ended:
            return ""
        held = self._held + (self._decoder.step(self._tokenizer, token) or "")
        found = [(at + len(each), at) for each in self._stop if (at := held.find(each)) >= 0]
        self.ended = bool(found)
        certain = min(found)[1] if found else len(held) - self._beginning(held)
        self._held = "" if found else held[certain:]
        return self._release(held[:certain])

    def finish(self) -> str:
        """No more tokens follow: what was held back is added to the text, and returned."""
        held, self._held = self._held, ""
        return self._release(held)

    def _beginning(self, held: str) -> int:
        """Characters at the end of `held` that a stop text begins with."""
        longest = max((len(each) for each in self._stop), default=1) - 1
        for length in range(min(longest, len(held)), 0, -1):
            if any(each.startswith(held[-length:]) for each in self._stop):
                return length
        return 0

    def _release(self, piece: str) -> str:
        self.text += piece
        return piece
