"""What state a replica is in, since when, and for how long it has been paid for and powered."""

from __future__ import annotations

from typing import Literal

State = Literal["ready", "starting", "draining", "down", "off", "asleep", "waking"]


class Life:
    """States of one replica over time.

    It is paid for in every state but ``off`` and ``down``, from the moment it is asked for; it draws power in the same states.
    One that will take over accelerators of another replica is paid for by the share that is its own meanwhile.
    """

    __slots__ = ("_counted_s", "_since_s", "share", "state")

    def __init__(self, state: State = "ready") -> None:
        self.state: State = state
        self.share = 1.0
        """Part of its accelerators that is its own."""
        self._since_s = 0.0
        self._counted_s = 0.0

    def enter(self, state: State, now_s: float, share: float = 1.0) -> None:
        """Change the state, and the part of its accelerators that is its own."""
        self._counted_s = self.on_s(now_s)
        self._since_s = now_s
        self.state = state
        self.share = share

    @property
    def on(self) -> bool:
        """Whether it is paid for and powered."""
        return self.state not in ("off", "down")

    def on_s(self, now_s: float) -> float:
        """Time for which it has been paid for and powered [s]."""
        return self._counted_s + self.share * (now_s - self._since_s) if self.on else self._counted_s
