"""Load in seconds of work, for fleets of different chips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.basic import draws
from fleetsim.routing.telemetry import Board


class LeastWorkConfig(PolicyConfig):
    """Parameters of the least predicted work."""

    choices: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'count'})]" = 0
    """Replicas drawn at random (with equal chance, without repetition) that are compared; 0: all of them."""
    decode_weight_tokens: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'tokens'})]" = 64
    """How many prompt tokens a request that runs counts for, in addition to what is left of its own."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastWork:
    """The replica with the least seconds of work, the request's own included: a shortest queue that knows how fast each chip is.

    Rule: argmin of pending prefill seconds, plus the prefill time of `decode_weight_tokens` for each running request, plus that of
    the prompt, all by each replica's own step times. With `choices` of 2 or more only so many random replicas are compared, and the
    cost does not depend on the fleet's size. Ties go to the fewest requests, then to the lowest number.

    What is charged: nothing.

    References
    ----------
    M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001, doi:10.1109/71.963420, for
    `choices`; the measure is that of `join-shortest-queue` in seconds.
    """

    Config: ClassVar = LeastWorkConfig

    def __init__(self, config: LeastWorkConfig, rng: Generator, fleet: FleetView) -> None:
        board = fleet.watch_load(scan=not config.choices)
        self._fleet = fleet
        self._board: Board = board
        self._count = fleet.count
        self._choices = min(config.choices, fleet.count)
        self._weight = config.decode_weight_tokens
        self._draws: Iterator[tuple[int, ...]] = draws(rng, fleet.count, self._choices) if self._choices else iter(())
        self._base_s, self._token_s, self._pair_s = fleet.prefill_terms()
        self._bases: Any = np.array(self._base_s)
        self._tokens: Any = np.array(self._token_s)
        self._pairs: Any = np.array(self._pair_s)
        self._pending: Any = np.frombuffer(board.pending_s)
        self._running: Any = np.frombuffer(board.running)
        self._waiting: Any = np.frombuffer(board.waiting)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        if not self._choices:
            return int(self._fleet.keep_present(self._all(request.prompt_tokens)).argmin())
        drawn: list[int] = []
        best, chosen = 0.0, -1
        for position in next(self._draws):
            for earlier in sorted(drawn):
                position += position >= earlier
            drawn.append(position)
            work_s = self._work_s(position, request.prompt_tokens) if self._fleet.present[position] else inf
            if chosen < 0 or work_s < best:
                best, chosen = work_s, position
        return self._fleet.here(chosen)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Seconds of work of each replica."""
        return {i: {"work_s": self._work_s(i, request.prompt_tokens)} for i in range(self._count)}

    def _work_s(self, position: int, tokens: int) -> float:
        board = self._board
        board.look(position)
        running: float = board.running[position]
        waiting: float = board.waiting[position]
        pending_s: float = board.pending_s[position]
        token_s = self._token_s[position]
        own_s = self._base_s[position] + tokens * (token_s + 0.5 * (tokens + 1) * self._pair_s[position])
        return pending_s + self._weight * running * token_s + own_s + 1e-9 * (running + waiting)

    def _all(self, tokens: int) -> Any:
        work_s = self._running * self._weight
        work_s += tokens
        work_s *= self._tokens
        work_s += self._pending
        work_s += self._bases
        work_s += (0.5 * tokens * (tokens + 1)) * self._pairs
        work_s += 1e-9 * (self._running + self._waiting)
        return work_s
