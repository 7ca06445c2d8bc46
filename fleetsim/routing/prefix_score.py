"""Replicas scored by prefix, queue and KV use, as in llm-d's scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import KV_FULL, FleetView, RequestView
from fleetsim.routing.prefix_index import PrefixIndex, PrefixNode

_SLACK = 1.125
"""What is remembered of a replica is cut back to its capacity whenever it exceeds it by this factor, so seldom."""


class PrefixScoreConfig(PolicyConfig):
    """Parameters of scoring by prefix, queue and KV use; weights are those of llm-d."""

    prefix_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 2.0
    """Weight of the part of the prompt that the replica was sent before."""
    queue_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1.0
    """Weight of having few outstanding requests among the candidates."""
    kv_weight: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1.0
    """Weight of the part of the KV cache that is not in use."""
    candidates: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'count'})]" = 16
    """Replicas with a prefix that are scored, those with the longest one first; the least loaded one always is."""
    expected_output_tokens: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'tokens'})]" = 256
    """Output that the gateway allows for in each running request when it estimates KV use."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 16
    """Tokens per block in which the gateway reads prompts."""
    precise: bool = False
    """Read what the replicas publish (cached prefixes, waiting requests, KV use) instead of estimating it from what was sent."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PrefixScore:
    """The highest weighted sum of three scores from 0 to 1: prefix sent before, short queue, free KV cache.

    For candidate i of a prompt of B blocks, ``prefix = matched_i / B``, ``queue = (most - outstanding_i) / (most - least)`` over
    the candidates (1 where all are equal), ``kv = 1 - used_i``. Candidates are the least loaded replica and up to `candidates`
    others that share a prefix, so the cost does not grow with the fleet. A replica with no prefix and more load than the least
    loaded one could win by its KV use alone; it is not looked at. Ties go to the least loaded replica, then to the longest prefix.

    The gateway remembers of each replica as many tokens as its KV cache holds (and up to an eighth more for a while), least
    recently sent ones forgotten first; KV use is its estimate, as in `least-kv`. It learns nothing from the engines. With `precise`
    it does: prefixes as their caches published them, queues of waiting requests, and KV use, all as old as the gateway's view.

    What is charged: nothing.

    References
    ----------
    llm-d's inference scheduler, scorers ``prefix-cache``, ``queue`` and ``kv-cache-utilization`` (github.com/llm-d/llm-d).
    """

    Config: ClassVar = PrefixScoreConfig

    def __init__(self, config: PrefixScoreConfig, rng: Generator, fleet: FleetView) -> None:
        self._fleet = fleet
        self._config = config
        self._least = fleet.index_outstanding()
        self._precise = config.precise
        self._kv: list[int] = []
        if config.precise:
            self._board = fleet.watch_load(scan=False)
            fleet.watch_caches()
        else:
            self._kv = fleet.index_kv(config.expected_output_tokens).values
        self._index = PrefixIndex(fleet.count)
        self._block_tokens = config.block_tokens
        self._caps = [max(1, tokens // config.block_tokens) for tokens in fleet.capacity_tokens]

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        if self._precise:
            return self._best(self._published(request), request.prompt_tokens)
        index, path = self._index, request.prefix(self._block_tokens)
        blocks, node = index.longest(path)
        chosen = self._best_estimate(self._candidates(blocks, node), request.prompt_tokens // self._block_tokens)
        cap = self._caps[chosen]
        index.insert_behind(blocks, node, path, chosen)
        if index.sizes.values[chosen] > _SLACK * cap:
            index.trim(chosen, cap)
        return chosen

    def _candidates(self, blocks: int, at: PrefixNode) -> dict[int, int]:
        """Candidates and how many blocks of a prompt each was sent, of which `blocks`, up to `at`, were; the least loaded first."""
        least = self._least.smallest()
        matched = {least: 0}
        room = self._config.candidates + 1
        node: PrefixNode | None = at
        below = 0
        while node is not None and blocks:
            holders = node.holders
            if len(holders) != below:  # whoever holds a run holds those above it: else nobody is new
                below = len(holders)
                if not matched[least] and least in holders:
                    matched[least] = blocks
                if len(matched) < room:
                    for holder in holders:
                        if holder not in matched:
                            matched[holder] = blocks
                            if len(matched) >= room:
                                break
            node = node.parent
            blocks = 0 if node is None else node.end
        return matched

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Score of each candidate, and what it holds or was sent of the prompt."""
        unit = 1 if self._precise else self._block_tokens
        index = self._index
        matched = self._published(request) if self._precise else self._candidates(*index.longest(request.prefix(unit)))
        scores = self._scores(matched, request.prompt_tokens // unit)
        return {
            candidate: {"score": score, "matched_tokens": float(held * unit)}
            for (candidate, held), score in zip(matched.items(), scores, strict=True)
        }

    def _published(self, request: RequestView) -> dict[int, int]:
        """Candidates and how many tokens of the prompt each holds; the least loaded one first."""
        least = self._least.smallest()
        matched = {least: self._fleet.hit_tokens(least, request)}
        matched.update(self._fleet.cached(request, self._config.candidates))
        return matched

    def _best(self, matched: dict[int, int], whole: int) -> int:
        if len(matched) == 1:
            return next(iter(matched))
        best, chosen = -float("inf"), -1
        for candidate, score in zip(matched, self._scores(matched, whole), strict=True):
            if score > best:
                best, chosen = score, candidate
        return chosen

    def _best_estimate(self, matched: dict[int, int], whole: int) -> int:
        """The same by what the gateway sent, as `_scores` has it."""
        config, outstanding, kv = self._config, self._fleet.outstanding, self._kv
        most, least, chosen = -1, -1, -1
        for candidate in matched:
            load = outstanding[candidate]
            if load > most:
                most = load
            if load < least or least < 0:
                least, chosen = load, candidate
        if len(matched) == 1:
            return chosen
        per_part = config.prefix_weight / max(whole, 1)
        per_request = config.queue_weight / float(most - least) if most > least else 0.0
        kv_weight = config.kv_weight
        best, chosen = -inf, -1
        for candidate, held in matched.items():
            share = kv[candidate] / KV_FULL
            score = per_part * held + per_request * float(most - outstanding[candidate]) - kv_weight * share
            if score > best:
                best, chosen = score, candidate
        return chosen

    def _scores(self, matched: dict[int, int], whole: int) -> list[float]:
        """Scores of candidates; what they hold and the `whole` prompt both in tokens or both in blocks."""
        config, fleet = self._config, self._fleet
        if self._precise:
            for candidate in matched:
                self._board.look(candidate)
            loads = [self._board.waiting[candidate] for candidate in matched]
            used = [fleet.kv_used(candidate) for candidate in matched]
        else:
            loads = [float(fleet.outstanding[candidate]) for candidate in matched]
            used = [self._kv[candidate] / KV_FULL for candidate in matched]
        most, least = max(loads), min(loads)
        per_part = config.prefix_weight / max(whole, 1)
        per_request = config.queue_weight / (most - least) if most > least else 0.0
        return [
            per_part * prefix + per_request * (most - load) - config.kv_weight * share
            for prefix, load, share in zip(matched.values(), loads, used, strict=True)
        ]
