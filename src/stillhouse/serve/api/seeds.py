"""Seeds for those who give none: every picture another one, and each told to whoever asked."""

import secrets

MAX_RANDOM_SEED = 2**32 - 1
"""Small enough to be read, typed, and kept exactly by every program that knows numbers as doubles."""


def random_seed() -> int:
    """Any seed.

    >>> 0 <= new_seed() <= LARGEST_DRAWN
    True
    """
    return secrets.randbelow(MAX_RANDOM_SEED + 1)
