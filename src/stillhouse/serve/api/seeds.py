"""Seeds for those who give none: every picture another one, and each told to whoever asked."""

import secrets

LARGEST_DRAWN = 2**32 - 1
"""Small enough to be read, typed, and kept exactly by every program that knows numbers as doubles."""


def new_seed() -> int:
    """Any seed.

    >>> 0 <= new_seed() <= LARGEST_DRAWN
    True
    """
    return secrets.randbelow(LARGEST_DRAWN + 1)
