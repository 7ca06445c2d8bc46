"""Pools by request length, with prompts near the boundary compressed into the shorter one."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, MinIndex, Reject, RequestView, Route

_CHUNK = 4096


class FleetOptConfig(PolicyConfig):
    """Parameters of FleetOpt's pool routing."""

    short_pool: str = "short"
    """Name of the pool for short requests."""
    boundary_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 6144
    """Requests up to this length, prompt and expected answer together, are short (B); the default is the published one."""
    gamma: "Annotated[float, Field(ge=1, json_schema_extra={'unit': 'ratio'})]" = 1.0
    """Requests longer than B and up to this times B have their prompts compressed to fit into B. 1: none."""
    compressed_share: "Annotated[float, Field(ge=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 1.0
    """Part of these that can be compressed; the others go to the long pools."""
    compress_s: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 's'})]" = 0.0
    """Time that compressing takes."""
    output_tokens: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'tokens'})]" = 256
    """Answer that is expected where no predictor says."""


@mypyc_attr(allow_interpreted_subclasses=True)
class FleetOpt:
    """Short requests to one pool, long ones to the others; prompts a little too long are compressed to fit the short one.

    Rule: length is the prompt and the expected answer. Up to `boundary_tokens` (B) to the pool `short_pool`; up to ``gamma x B``
    likewise, with the prompt compressed to what B leaves room for (compress-and-route), for `compressed_share` of them; longer
    ones, and those whose prompt could not be compressed to a token, to the other pools. Within pools the fewest outstanding
    requests for each replica, ties to the one unchanged for longest.

    What is charged: `compress_s` per compressed prompt. What compressing costs in quality is not known; the requests table tells
    how many tokens each lost, and what is left of the prompt matches no prefix.

    References
    ----------
    FleetOpt, arXiv:2603.16514; token-budget pool routing, arXiv:2604.09613.
    """

    Config: ClassVar = FleetOptConfig

    def __init__(self, config: FleetOptConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._rng = rng
        self._short = [i for i, pool in enumerate(fleet.pools) if pool == config.short_pool]
        self._long = [i for i, pool in enumerate(fleet.pools) if pool != config.short_pool]
        if not self._short:
            named = ", ".join(sorted(set(fleet.pools)))
            raise PolicyError(f"fleetopt finds no pool {config.short_pool!r}; this gateway has {named}")
        if not self._long:
            self._long = self._short
        self._place = [0] * fleet.count
        for side in (self._short, self._long):
            for place, position in enumerate(side):
                self._place[position] = place
        self._is_short = [pool == config.short_pool for pool in fleet.pools]
        self._outstanding = fleet.outstanding
        self._changed = fleet.watch_outstanding()
        self._short_index = MinIndex([0] * len(self._short))
        self._long_index = self._short_index if self._long is self._short else MinIndex([0] * len(self._long))
        self._chances: list[float] = []
        self.compressed = 0
        """Requests whose prompts were compressed so far."""

    def route(self, request: RequestView) -> int | Route | Reject:
        """Choose a replica."""
        self._count()
        config = self._config
        output = request.predicted_tokens if request.predicted_tokens >= 0.0 else float(config.output_tokens)
        total = request.prompt_tokens + output
        bound = config.boundary_tokens
        if total <= bound:
            return self._least(self._short, self._short_index)
        room = int(bound - output)
        if total <= config.gamma * bound and room >= 1 and self._can_be_compressed():
            self.compressed += 1
            chosen = self._least(self._short, self._short_index)
            return Route(chosen, prompt_tokens=room, prepare_s=config.compress_s)
        return self._least(self._long, self._long_index)

    def _least(self, side: list[int], index: MinIndex) -> int:
        """The least loaded replica of a side; of the other one where nobody of it is there."""
        chosen = side[index.smallest()]
        if self._fleet.present[chosen] or not self._fleet.members:
            return chosen
        return min(self._fleet.members, key=self._outstanding.__getitem__)

    def _can_be_compressed(self) -> bool:
        share = self._config.compressed_share
        if share >= 1.0:
            return True
        if not self._chances:
            self._chances = self._rng.random(_CHUNK).tolist()
        return self._chances.pop() < share

    def _count(self) -> None:
        """Bring both indexes up to date."""
        for position in self._changed:
            index = self._short_index if self._is_short[position] else self._long_index
            place = self._place[position]
            change = self._outstanding[position] - index.values[place]
            if change:
                index.add(place, change)
        self._changed.clear()
