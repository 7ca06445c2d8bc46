"""Requests by size to the kinds of replicas that a plan bought for them."""

from __future__ import annotations

from bisect import bisect_left
from math import inf
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, MinIndex, RequestView


class MelangeConfig(PolicyConfig):
    """Parameters of Mélange's load balancer; `fleetsim plan` writes them."""

    prompt_edges: tuple[int, ...] = ()
    """Prompt lengths that divide requests: each belongs to the first place whose edge it does not exceed [tokens], rising."""
    output_edges: tuple[int, ...] = ()
    """The same for expected answers; without any, answers do not matter and none need be expected [tokens], rising."""
    shares: dict[str, tuple[tuple[Annotated[float, Field(ge=0)], ...], ...]] = Field(default_factory=dict)
    """Of each pool, by its name: its share of the requests of each place, rows by prompts and columns by answers. Places of which
    no pool has a share go to the pools in proportion to their replicas, as does everything without any shares."""


class Melange:
    """Requests of each size go to pools in the proportions of a plan, and there to the replica with the fewest.

    Rule: the place of a request in a grid of prompt and expected answer lengths has a share for each pool. It goes to the pool that
    is furthest behind its share there: ``argmax of share x (1 + requests of that place so far) - those sent to the pool``, of
    equals the first; within the pool to the fewest outstanding requests, ties to the one unchanged for longest. An answer that
    nobody expects counts as in the first column.

    What is charged: nothing.

    References
    ----------
    T. Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity", arXiv:2404.14527.
    """

    Config = MelangeConfig

    def __init__(self, config: MelangeConfig, rng: Generator, fleet: FleetView) -> None:
        self._prompts, self._outputs = config.prompt_edges, config.output_edges
        for edges in (self._prompts, self._outputs):
            if list(edges) != sorted(set(edges)):
                raise PolicyError(f"melange: edges must rise, found {list(edges)}")
        self._pools = list(dict.fromkeys(fleet.pools))
        unknown = sorted(set(config.shares) - set(self._pools))
        if unknown:
            raise PolicyError(f"melange has shares of pools that are not there: {', '.join(unknown)}")
        self._members = [[i for i, pool in enumerate(fleet.pools) if pool == name] for name in self._pools]
        self._pool_of = [self._pools.index(pool) for pool in fleet.pools]
        self._place = [0] * fleet.count
        for members in self._members:
            for place, position in enumerate(members):
                self._place[position] = place
        self._shares = self._filled(config)
        self._sent = [[0] * len(self._pools) for _ in self._shares]
        self._fleet = fleet
        self._outstanding = fleet.outstanding
        self._changed = fleet.watch_outstanding()
        self._indexes = [MinIndex([0] * len(members)) for members in self._members]

    def _filled(self, config: MelangeConfig) -> list[list[float]]:
        """Shares of the pools in each place, adding up to 1."""
        rows, columns = len(self._prompts) + 1, len(self._outputs) + 1
        for name, table in config.shares.items():
            if len(table) != rows or any(len(row) != columns for row in table):
                raise PolicyError(f"melange: shares of {name} must be {rows} rows of {columns}, as the edges say")
        sizes = [float(len(members)) for members in self._members]
        filled = []
        for row in range(rows):
            for column in range(columns):
                here = [config.shares[name][row][column] if name in config.shares else 0.0 for name in self._pools]
                weights = here if sum(here) > 0.0 else sizes
                filled.append([weight / sum(weights) for weight in weights])
        return filled

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        for position in self._changed:
            index, place = self._indexes[self._pool_of[position]], self._place[position]
            change = self._outstanding[position] - index.values[place]
            if change:
                index.add(place, change)
        self._changed.clear()
        cell = bisect_left(self._prompts, request.prompt_tokens) * (len(self._outputs) + 1)
        if self._outputs and request.predicted_tokens >= 0.0:
            cell += bisect_left(self._outputs, request.predicted_tokens)
        shares, sent = self._shares[cell], self._sent[cell]
        due = 1 + sum(sent)
        behind = [share * due - count for share, count in zip(shares, sent, strict=True)]
        if not self._fleet.whole:
            open_pools = {self._pool_of[position] for position in self._fleet.members}
            behind = [due if pool in open_pools else -inf for pool, due in enumerate(behind)]
        pool = behind.index(max(behind))
        sent[pool] += 1
        return self._members[pool][self._indexes[pool].smallest()]
