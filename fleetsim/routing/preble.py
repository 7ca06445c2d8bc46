"""Preble: exploit long cached prefixes, explore by load otherwise."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixIndex, PrefixNode, first_holders, levels_above, mark

_SLACK = 1.125
"""What is remembered of a replica is cut back to its capacity whenever it exceeds it by this factor, so seldom."""


class PrebleConfig(PolicyConfig):
    """Parameters of Preble's global scheduler."""

    hit_threshold: "Annotated[float, Field(ge=0, le=1, json_schema_extra={'unit': 'ratio'})]" = 0.5
    """A prompt of which at least this part was sent to a replica before goes to such a one."""
    window_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 180.0
    """Time over which load is counted."""
    output_s: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 's'})]" = 0.0
    """What computing a request's answer adds to its replica's load, beside its prompt."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 16
    """Tokens per block in which the gateway reads prompts."""
    holders: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Replicas with a prefix that are looked at, those that have held it for longest."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Preble:
    """The replica that was sent half of the prompt before; without one, the least sum of recent load, evictions and own prefill.

    Rule: where the longest prefix that some replica was sent is at least `hit_threshold` of the prompt (exploit), of those that
    were sent it the one with the least load. Else (explore) argmin of ``load + eviction + prefill`` in seconds. Load: the predicted
    prefill times of what was sent there in the last `window_s`, `output_s` added for each. Eviction: the time to compute again what
    must go to make room, times the part of the prompts sent there in the window that was reused (the paper weighs each node by its
    own hits). Prefill: that of what the replica was not sent yet. The gateway knows what it sent, not what the caches hold.

    What is charged: nothing; exploring grows with the fleet, in vector operations.

    References
    ----------
    V. Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving", ICLR 2025, arXiv:2407.00023 (its E2).
    """

    Config: ClassVar = PrebleConfig

    def __init__(self, config: PrebleConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        count = fleet.count
        self._base_s, token_s, pair_s = fleet.prefill_terms()
        self._token_s: Any = np.array(token_s)
        self._pair_s: Any = np.array(pair_s)
        self._even = len(set(token_s)) == 1 and len(set(pair_s)) == 1
        """Whether a token takes as long everywhere: then of those that were sent as much, the least of the rest wins."""
        self._even_token_s, self._even_pair_s = token_s[0], pair_s[0]
        self._capacity = [float(tokens) for tokens in fleet.capacity_tokens]
        zeros = [0.0] * count
        self._loads = [0.0] * count
        """Seconds that were sent to each replica in the window."""
        self._waits = array("d", self._base_s)
        """The same with what every prompt takes [s]."""
        self._surplus = array("d", [-tokens for tokens in self._capacity])
        """Tokens that each is believed to hold, less those that it has room for."""
        self._reused = array("d", zeros)
        """Of the prompt tokens sent there in the window, the part that was sent before."""
        self._hits = [0] * count
        self._prompts = [0] * count
        self._waits_s: Any = np.frombuffer(self._waits)
        self._over: Any = np.frombuffer(self._surplus)
        self._reuse: Any = np.frombuffer(self._reused)
        self._requests = [0] * count
        self._index = PrefixIndex(count)
        self._caps = [max(1, tokens // config.block_tokens) for tokens in fleet.capacity_tokens]
        self._window: deque[tuple[float, int, float, int, int]] = deque()
        """Requests sent: time, replica, seconds, prompt tokens, of these sent before."""

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        self._expire()
        config, index, tokens = self._config, self._index, request.prompt_tokens
        path = request.prefix(config.block_tokens)
        blocks, node = index.longest(path)
        chosen = self._exploit(blocks, node, tokens)
        if chosen < 0:
            chosen = self._explore(blocks, node, tokens)
        hit = index.insert_behind(blocks, node, path, chosen) * config.block_tokens
        if index.sizes.values[chosen] > _SLACK * self._caps[chosen]:
            index.trim(chosen, self._caps[chosen])
        self._surplus[chosen] = index.sizes.values[chosen] * config.block_tokens - self._capacity[chosen]
        seconds = self._fleet.prefill_s(chosen, tokens - hit, hit) + config.output_s
        self._window.append((self._fleet.now_s, chosen, seconds, tokens, hit))
        self._note(chosen, seconds, tokens, hit)
        self._requests[chosen] += 1
        return chosen

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Load and explore cost of each replica, and what it was sent of the prompt."""
        self._expire()
        config, tokens = self._config, request.prompt_tokens
        levels = self._levels(*self._index.longest(request.prefix(config.block_tokens)))
        hits = self._hits_of(levels)
        costs = self._costs(hits, tokens).tolist()
        return {
            i: {"cost_s": cost, "load_s": self._loads[i], "matched_tokens": float(hits[i])}
            for i, cost in enumerate(costs)
        }

    def _levels(self, blocks: int, node: PrefixNode) -> list[tuple[PrefixNode, int]]:
        """Sets of replicas by how many tokens they were sent of a prompt of which `blocks`, up to `node`, were sent before."""
        return levels_above(node, blocks, self._config.holders, self._config.block_tokens)

    def _hits_of(self, levels: list[tuple[PrefixNode, int]]) -> Any:
        """These tokens of each replica."""
        hits = np.zeros(self._fleet.count)
        mark(levels, self._config.holders, hits)
        return hits

    def _exploit(self, blocks: int, node: PrefixNode, tokens: int) -> int:
        """Of the replicas with the longest prefix, if that is long enough, the one with the least load; else -1."""
        if not blocks or blocks * self._config.block_tokens < self._config.hit_threshold * tokens:
            return -1
        limit = self._config.holders
        best, chosen, loads, present = 0.0, -1, self._loads, self._fleet.present
        for position in node.holders:
            if limit <= 0:
                break
            limit -= 1
            if not present[position]:
                continue
            load_s = loads[position]
            if chosen < 0 or load_s < best:
                best, chosen = load_s, position
        return chosen

    def _explore(self, blocks: int, node: PrefixNode, tokens: int) -> int:
        """The replica with the least cost, the first of several."""
        levels = self._levels(blocks, node)
        if not self._even or not self._fleet.whole:
            return int(self._fleet.keep_present(self._costs(self._hits_of(levels), tokens)).argmin())
        costs, limit = self._without_own(tokens), self._config.holders
        first = int(costs.argmin())
        least = float(costs[first])
        chosen, least_s = first, self._with_own(least, tokens, 0)
        for run, hit in levels:
            if self._with_own(least, tokens, hit) > least_s:
                break  # nobody who was sent as little or less can be better
            everyone = limit >= len(run.holders) == len(self._waits)
            place = first
            if not everyone:
                holders = first_holders(run, limit)
                place = int(holders[costs[holders].argmin()])
            cost_s = self._with_own(float(costs[place]), tokens, hit)
            if cost_s < least_s or (cost_s == least_s and place < chosen):
                chosen, least_s = place, cost_s
            if everyone:
                break  # nobody was sent less
        return chosen

    def _with_own(self, cost_s: float, tokens: int, hit: int) -> float:
        """A cost without the prompt's prefill, with it [s]."""
        left = float(tokens - hit)
        cost_s += left * self._even_token_s
        left *= (tokens + 0.5) - 0.5 * left
        return cost_s + left * self._even_pair_s

    def _without_own(self, tokens: int) -> Any:
        """Seconds of each replica's load and evictions for a prompt of so many tokens, in a new array."""
        over = self._over + tokens
        np.maximum(over, 0.0, out=over)
        over *= self._even_token_s if self._even else self._token_s
        over *= self._reuse
        over += self._waits_s
        return over

    def _costs(self, hits: Any, tokens: int) -> Any:
        """Seconds that each replica's load, evictions and this prompt's prefill add up to."""
        costs = self._without_own(tokens)
        left = tokens - hits
        costs += left * self._token_s
        left *= (tokens + 0.5) - 0.5 * left
        left *= self._pair_s
        costs += left
        return costs

    def _expire(self) -> None:
        window, since_s = self._window, self._fleet.now_s - self._config.window_s
        while window and window[0][0] < since_s:
            _, position, seconds, tokens, hit = window.popleft()
            self._note(position, -seconds, -tokens, -hit)
            self._requests[position] -= 1
            if not self._requests[position]:
                self._loads[position] = 0.0  # sums of seconds do not cancel to the last bit
                self._waits[position] = self._base_s[position]

    def _note(self, position: int, seconds: float, tokens: int, hit: int) -> None:
        load_s = self._loads[position] + seconds
        self._loads[position] = load_s
        self._waits[position] = load_s + self._base_s[position]
        prompts = self._prompts[position] + tokens
        hits = self._hits[position] + hit
        self._prompts[position] = prompts
        self._hits[position] = hits
        self._reused[position] = hits / max(prompts, 1)
