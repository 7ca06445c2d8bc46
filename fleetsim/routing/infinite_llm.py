"""Infinite-LLM: requests too long for one replica begin with memory of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route, Router
from fleetsim.routing.inner import Inner, decision_s, least_outstanding


class InfiniteLlmConfig(PolicyConfig):
    """Parameters of spreading; the paper publishes none, all defaults are assumed."""

    inner: Inner = Field(default_factory=least_outstanding)
    """Router of all requests that fit on one replica: a name or a block with `policy`."""
    own_ratio: "Annotated[float, Field(gt=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.5
    """Part of a replica's KV cache that one request takes at most where it runs; what is longer lies on others."""
    lent_ratio: "Annotated[float, Field(gt=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.8
    """Part of a replica's KV cache that one request borrows at most."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 16
    """Tokens per KV block of the engines."""
    again_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 1.0
    """Time after which a request that found no room is looked at again."""


class InfiniteLlm:
    """Requests that take more than a part of one replica's memory run on one replica and lie on several.

    Rule: a request whose prompt takes at most `own_ratio` of the KV cache of where the inner router sends it goes there. Of any
    other one, the replica with the least KV memory in use computes it and holds its end; its beginning is spread over the others,
    those with most free memory first, each up to `lent_ratio` of its cache and no more than it has free. Where they have not
    enough altogether, the request waits at the gateway and is looked at again after `again_s`. Room is kept for it on all of them
    before it is sent; replicas that hold blocks for others take no such request, and those that compute one lend nothing.

    What is charged: chunks of the prompt wait for attention over what lies elsewhere, and for their own keys and values to get
    there; the creditors' steps last longer by that attention, and by that of every later token. Such a prompt matches no prefix.

    References
    ----------
    B. Lin et al., "Infinite-LLM: Efficient LLM Service for Long Context with DistAttention and Distributed KVCache",
    arXiv:2401.02669.
    """

    Config: ClassVar = InfiniteLlmConfig

    def __init__(self, config: InfiniteLlmConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._inner: Router = config.inner.create(rng, fleet)
        self.decision_s = decision_s(self._inner)
        fleet.watch_load()

    def route(self, request: RequestView) -> int | Route | Reject:
        """Choose one replica, or several."""
        config, fleet = self._config, self._fleet
        smallest = min(fleet.capacity_tokens)
        if request.prompt_tokens <= config.own_ratio * smallest:
            return self._inner.route(request)
        free = [(1.0 - fleet.kv_used(i)) * fleet.capacity_tokens[i] for i in range(fleet.count)]
        order = sorted(range(fleet.count), key=lambda i: (-free[i], i))
        debtor = next((i for i in order if fleet.lending(i) <= 0), order[0])
        creditors = [i for i in order if i != debtor and fleet.lending(i) >= 0]
        missing = request.prompt_tokens - int(config.own_ratio * fleet.capacity_tokens[debtor])
        borrow = self._spread(missing, creditors, free)
        if not borrow:  # ask for what the others could hold if they were empty: there will be no room yet
            borrow = self._spread(missing, [i for i in order if i != debtor], fleet.capacity_tokens)
        return Route(debtor, borrow=borrow, borrow_again_s=config.again_s)

    def _spread(self, tokens: int, creditors: Sequence[int], free: Sequence[float]) -> tuple[tuple[int, int], ...]:
        """How many blocks on which replicas, in that order; nothing where they have not room enough together."""
        size, ratio = self._config.block_tokens, self._config.lent_ratio
        missing = -(-tokens // size)
        borrow: list[tuple[int, int]] = []
        for creditor in creditors:
            room = min(free[creditor], ratio * self._fleet.capacity_tokens[creditor])
            blocks = min(int(room // size), missing)
            if blocks > 0:
                borrow.append((creditor, blocks))
                missing -= blocks
            if not missing:
                return tuple(borrow)
        return ()
