"""Preble: exploit long cached prefixes, explore by load otherwise."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixIndex, PrefixNode, mark_above

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
        base_s, token_s, pair_s = fleet.prefill_terms()
        self._base_s: Any = np.array(base_s)
        self._token_s: Any = np.array(token_s)
        self._pair_s: Any = np.array(pair_s)
        self._capacity: Any = np.array(fleet.capacity_tokens, dtype=np.float64)
        self._load_s: Any = np.zeros(count)
        self._held: Any = np.zeros(count)
        self._hits: Any = np.zeros(count)
        self._requests = [0] * count
        self._prompts: Any = np.zeros(count)
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
            chosen = int(self._fleet.keep_present(self._costs(self._hits_of(blocks, node), tokens)).argmin())
        hit = index.insert(path, chosen) * config.block_tokens
        if index.sizes.values[chosen] > _SLACK * self._caps[chosen]:
            index.trim(chosen, self._caps[chosen])
        self._held[chosen] = index.sizes.values[chosen] * config.block_tokens
        seconds = self._fleet.prefill_s(chosen, tokens - hit, hit) + config.output_s
        self._window.append((self._fleet.now_s, chosen, seconds, tokens, hit))
        self._note(chosen, seconds, tokens, hit)
        self._requests[chosen] += 1
        return chosen

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Load and explore cost of each replica, and what it was sent of the prompt."""
        self._expire()
        hits = self._hits_of(*self._index.longest(request.prefix(self._config.block_tokens)))
        costs = self._costs(hits, request.prompt_tokens).tolist()
        return {
            i: {"cost_s": cost, "load_s": float(self._load_s[i]), "matched_tokens": float(hits[i])}
            for i, cost in enumerate(costs)
        }

    def _hits_of(self, blocks: int, node: PrefixNode) -> Any:
        """Tokens that each replica was sent of a prompt of which `blocks`, up to `node`, were sent before."""
        hits = np.zeros(self._fleet.count)
        mark_above(node, blocks, self._config.holders, self._config.block_tokens, hits)
        return hits

    def _exploit(self, blocks: int, node: PrefixNode, tokens: int) -> int:
        """Of the replicas with the longest prefix, if that is long enough, the one with the least load; else -1."""
        if not blocks or blocks * self._config.block_tokens < self._config.hit_threshold * tokens:
            return -1
        best, chosen = 0.0, -1
        for position in islice(node.holders, self._config.holders):
            if not self._fleet.present[position]:
                continue
            load_s = float(self._load_s[position])
            if chosen < 0 or load_s < best:
                best, chosen = load_s, position
        return chosen

    def _costs(self, hits: Any, tokens: int) -> Any:
        """Seconds that each replica's load, evictions and this prompt's prefill add up to."""
        over = self._held + tokens
        over -= self._capacity
        np.maximum(over, 0.0, out=over)
        over *= self._token_s
        over *= self._hits / np.maximum(self._prompts, 1.0)
        left = tokens - hits
        costs = self._load_s + self._base_s
        costs += over
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
                self._load_s[position] = 0.0  # sums of seconds do not cancel to the last bit

    def _note(self, position: int, seconds: float, tokens: int, hit: int) -> None:
        self._load_s[position] += seconds
        self._prompts[position] += tokens
        self._hits[position] += hit
