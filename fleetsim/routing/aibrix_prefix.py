"""The prefix-cache policy of the AIBrix gateway."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixIndex, PrefixNode


class AibrixPrefixConfig(PolicyConfig):
    """Parameters of AIBrix's prefix-cache routing."""

    imbalance_requests: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'requests'})]" = 16
    """Load decides where the most and the least loaded replica differ by more than this."""
    deviations: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 2.0
    """A replica with a prefix is passed over where its load exceeds the mean by more than this many standard deviations."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 32
    """Tokens per block in which the gateway reads prompts: 128 characters at 4 to a token."""
    table_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 1 << 22
    """Tokens that the gateway remembers per replica."""
    holders: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Replicas with a prefix that are looked at, those with the longest one first."""


@mypyc_attr(allow_interpreted_subclasses=True)
class AibrixPrefix:
    """The replica that was sent most of the prompt before, unless loads are far apart or it is far above the mean.

    Rule: where most - least outstanding requests exceed `imbalance_requests`, the least loaded replica. Else, of the replicas whose
    load is at most ``mean + deviations x standard deviation``, the one that was sent the longest prefix, ties to the least loaded;
    where there is none, the least loaded replica. The gateway remembers what it sent, not what the caches hold.

    What is charged: nothing.

    References
    ----------
    The AIBrix Team, "AIBrix: Towards Scalable, Cost-Effective Large Language Model Inference Infrastructure", arXiv:2504.03648;
    policy ``prefix-cache`` of its gateway.
    """

    Config: ClassVar = AibrixPrefixConfig

    def __init__(self, config: AibrixPrefixConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._least = fleet.index_outstanding()
        self._most = fleet.index_most_outstanding()
        self._changed = fleet.watch_outstanding()
        self._seen = [0] * fleet.count
        self._squares = 0
        self._index = PrefixIndex(fleet.count)
        self._cap = max(1, config.table_tokens // config.block_tokens)

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        path = request.prefix(self._config.block_tokens)
        outstanding = self._fleet.outstanding
        chosen = self._least.smallest()
        most = outstanding[self._most.smallest()]
        if not self._fleet.whole:
            most = max([outstanding[position] for position in self._fleet.members], default=0)
        if most - outstanding[chosen] <= self._config.imbalance_requests:
            blocks, node = self._index.longest(path)
            best = self._near(node, blocks)
            if best >= 0:
                chosen = best
        index = self._index
        index.insert(path, chosen)
        if index.sizes.values[chosen] > self._cap:
            index.trim(chosen, self._cap * 7 // 8)
        return chosen

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What each replica with a prefix was sent of the prompt, its requests, and the bound on them."""
        found: dict[int, dict[str, float]] = {}
        blocks, at = self._index.longest(request.prefix(self._config.block_tokens))
        node: PrefixNode | None = at
        bound = self._bound()
        while node is not None and blocks and len(found) < self._config.holders:
            for holder in node.holders:
                requests = float(self._fleet.outstanding[holder])
                matched = float(blocks * self._config.block_tokens)
                found.setdefault(holder, {"matched_tokens": matched, "requests": requests, "bound": bound})
            node = node.parent
            blocks = 0 if node is None else node.end
        return found

    def _near(self, at: PrefixNode, blocks: int) -> int:
        """The replica with the longest prefix whose load is not too high; -1 if none."""
        bound, outstanding, left = self._bound(), self._fleet.outstanding, self._config.holders
        node: PrefixNode | None = at
        while node is not None and blocks and left > 0:
            best = -1
            for holder in node.holders:
                load = outstanding[holder]
                if self._fleet.present[holder] and load <= bound and (best < 0 or load < outstanding[best]):
                    best = holder
                left -= 1
                if left <= 0:
                    break
            if best >= 0:
                return best
            node = node.parent
            blocks = 0 if node is None else node.end
        return -1

    def _bound(self) -> float:
        """The load above which a replica is passed over."""
        outstanding, seen = self._fleet.outstanding, self._seen
        for position in self._changed:
            now, before = outstanding[position] if self._fleet.present[position] else 0, seen[position]
            self._squares += now * now - before * before
            seen[position] = now
        self._changed.clear()
        count = len(self._fleet.members) or 1
        mean = self._fleet.in_flight / count
        return mean + self._config.deviations * sqrt(max(self._squares / count - mean * mean, 0.0))
