"""Codes and words: the arithmetic of the packed format (docs/numerics.md, section 1)."""

WORD_BITS = 64
"""A word is one int64."""

SUPPORTED_BITS = (1, 2, 4, 8)
"""Bit widths of a code. Each divides `WORD_BITS`, so that no code straddles two words."""


def codes_per_word(bits: int) -> int:
    """Number of codes in one int64 word: 64, 32, 16, 8 for 1, 2, 4, 8 bits.

    >>> codes_per_word(4)
    16
    """
    return WORD_BITS // bits


def words_per_row(columns: int, bits: int) -> int:
    """Number of words that hold a row of `columns` codes; every row starts a new word.

    >>> words_per_row(17, bits=4)
    2
    """
    return -(-columns // codes_per_word(bits))


def max_code(bits: int) -> int:
    """Largest code of `bits` bits; the smallest is 0.

    >>> max_code(4)
    15
    """
    return (1 << bits) - 1
