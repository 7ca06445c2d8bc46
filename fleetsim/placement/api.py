"""What a placement policy sees of replicas that may change their LLM, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleetsim.routing.api import RequestView

__all__ = ["Action", "Decision", "Load", "Place", "Placement", "RequestView", "Send", "TakeBack"]


@dataclass(frozen=True, slots=True)
class Send:
    """Decision that a waiting request runs on a replica that holds its LLM."""

    request: int
    """Its id."""
    replica: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Decision that a request that was sent waits again: at once if it does not run yet, else at the end of the step under way."""

    request: int
    """Its id."""


@dataclass(frozen=True, slots=True)
class Load:
    """Decision that a replica changes to another LLM once nobody runs there; nobody is sent there until then."""

    replica: int
    model: str
    preempt: bool = False
    """Take back who was sent there, instead of waiting for them to end."""


Action = Send | TakeBack | Load


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and how long finding it out took."""

    actions: Sequence[Action] = ()
    """In this order. What cannot be done any more is left undone; `arrived` tells of requests that wait on because of that."""
    time_s: float = 0.0
    """Time after which they are done, and before which nobody is asked again [s]."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What a replica would be with one of its LLMs: no plan of the fleet needs more."""

    seats: int
    """Requests that run at a time at most, as far as its scheduler says."""
    capacity_tokens: int
    """Tokens that its KV cache holds."""
    load_s: Callable[[], float]
    """Seconds that changing to this LLM would take now, on the network as it is used now [s]."""
    decode_s: Callable[[float, float], float]
    """Seconds of a decode step with so many requests of so many tokens of context altogether, by its own step times [s]."""
    prefill_s: Callable[[float], float]
    """Seconds that a prompt of so many tokens takes, alone, by its own step times [s]."""


class Place:
    """A replica as a placement policy knows it: what it was told to do, and who was sent there. All of it is exact.

    Parameters
    ----------
    pool : str
        Name of its pool.
    engines : mapping
        What it would be with each LLM that it may hold; the first is the pool's `llm`.
    answered : callable
        Tokens that a request which was sent here has got by now.
    carbon : callable, optional
        Carbon intensity where it stands, now and with cooling [g/kWh].
    all_answered : callable, optional
        What `answered` says of all that were sent here, where there is a cheaper way than to ask for each.
    """

    def __init__(
        self,
        pool: str,
        engines: dict[str, Engine],
        answered: Callable[[int], int],
        carbon: Callable[[], float] = lambda: 0.0,
        all_answered: Callable[[], list[int]] | None = None,
    ) -> None:
        self.pool = pool
        self.engines = engines
        self.holds: str | None = next(iter(engines))
        """LLM that it serves; None while it loads one."""
        self.loads: str | None = None
        """LLM that it changes to, or will when it is empty; None if it stays as it is."""
        self.here = True
        """Whether it is there: one that has failed, as far as anybody has noticed, or is leaving, is not. It then holds nothing and
        comes back with the LLM that it `loads`; nothing that is decided about it has any effect until then."""
        self.sent: dict[int, RequestView] = {}
        """Requests that were sent here and have not ended, by id, in that order; some are perhaps being taken back."""
        self.answered = answered
        self.carbon = carbon
        """Greenhouse gases of a kilowatt-hour of its machines now, cooling included; 0 where nobody says [g/kWh]."""
        self.all_answered = self._each_answered if all_answered is None else all_answered
        """What `answered` says of all that were sent here, in their order."""

    def _each_answered(self) -> list[int]:
        return [self.answered(request) for request in self.sent]

    @property
    def last(self) -> str:
        """LLM that it will hold when all that was decided is done."""
        model = self.loads or self.holds
        assert model is not None
        return model

    @property
    def open(self) -> str | None:
        """LLM whose requests may be sent here now."""
        return self.holds if self.loads is None else None


class Placement(Protocol):
    """Decides which LLM each of some replicas holds, and who runs there when.

    Built as ``Policy(config, rng, places)``: its parameters, its own random stream, and the replicas. Requests for their LLMs wait
    in front of them, in an order that is the policy's own; it is told of each that comes or goes, then asked, once per instant.
    With an attribute `period_s` it is asked that often too while requests are about. A method ``initial() -> sequence of str``
    may say which LLM each replica holds at the start, for nothing; otherwise it is the pool's `llm`. With a true attribute
    `chooses_model` a request that names no LLM (its view's `model` is None) may be sent to a replica whatever that holds; under
    other policies it asks for the first pool's `llm`.
    """

    def arrived(self, request: RequestView, now_s: float) -> None:
        """A request waits from now on: it is new, was taken back, or could not be sent. The view stays valid."""
        ...

    def left(self, request: int) -> None:
        """A request ended, was taken back (then `arrived` follows), or is not waited for any more."""
        ...

    def decide(self, now_s: float) -> Decision:
        """What to do now."""
        ...
