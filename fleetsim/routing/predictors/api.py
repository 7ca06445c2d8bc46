"""What the gateway asks of a predictor of output lengths."""

from __future__ import annotations

from math import cos, log, pi, sqrt
from typing import Protocol

from fleetsim.routing.api import RequestView

__all__ = ["Knowing", "Predictor", "RequestView", "normal"]


class Predictor(Protocol):
    """Expects output lengths from what the gateway knows of a request.

    A policy is built with its config and a random generator of its own. One that sets ``knows_length = True`` is asked by
    `Knowing.predict_knowing` instead: it is an oracle, or makes mistakes of a stated size.
    """

    def predict(self, request: RequestView) -> float:
        """Expected output length [tokens], finite and not below zero. Asked once, when the request arrives at the gateway."""
        ...

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Learn the length of an answer that has just ended."""
        ...


class Knowing(Protocol):
    """A predictor that is told the true length: experiments need it, no deployed system has it."""

    knows_length: bool

    def predict_knowing(self, request: RequestView, output_tokens: int) -> float:
        """Expected output length [tokens] of a request whose answer will have `output_tokens`."""
        ...

    def observe(self, request: RequestView, output_tokens: int) -> None:
        """Learn the length of an answer that has just ended."""
        ...


_MASK = (1 << 64) - 1


def normal(salt: int, number: int) -> float:
    """A draw from the standard normal distribution that depends on `salt` and `number` alone.

    A request thus gets the same error whatever policies do and in whatever order they ask: Box and Muller's transform of two
    outputs of splitmix64.
    """
    first, second = _mixed(salt, 2 * number), _mixed(salt, 2 * number + 1)
    return sqrt(-2.0 * log((first + 1) / 2.0**64)) * cos(2.0 * pi * second / 2.0**64)


def _mixed(salt: int, number: int) -> int:
    z = (salt + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
