"""Numbers that look drawn and are the same for the same thing, whatever else is drawn."""

from __future__ import annotations

_MASK = 0xFFFFFFFFFFFFFFFF


def share_of(number: int) -> float:
    """A number in [0, 1) for a whole number: splitmix64 of it."""
    z = (number + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return float((z ^ (z >> 31)) >> 11) / float(1 << 53)
