"""To which length a record is padded: one of a few public lengths, chosen by the record alone.

Padding to the longest of a batch would let one record change how its neighbours round. More lengths
mean less padding of tokens, and more micro-batches that are filled up with dummies, one for each
length that occurs in a step.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

_STEP = 16  # tokens between short lengths, and what all are multiples of
_RATIO = 1.2  # between long ones


@lru_cache
def buckets(longest: int) -> tuple[int, ...]:
    """The lengths that records are padded to, ascending.

    Args:
        longest: of them, at least 1.
    """
    found = [min(_STEP, longest)]
    while found[-1] < longest:
        next_one = max(found[-1] + _STEP, -(-int(found[-1] * _RATIO) // _STEP) * _STEP)
        found.append(min(next_one, longest))
    return tuple(found)


def padded_length(tokens: int, longest: int) -> int:
    """The length that a record of so many tokens is padded to.

    Args:
        tokens: at most `longest`.
        longest: record that is allowed.
    """
    lengths = buckets(longest)
    return lengths[min(bisect_left(lengths, tokens), len(lengths) - 1)]
