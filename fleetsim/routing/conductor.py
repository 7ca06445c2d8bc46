"""Mooncake's Conductor: the least time to the first token, with prefixes fetched from other replicas."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Annotated, Any, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route
from fleetsim.routing.prefix_index import PrefixNode
from fleetsim.routing.ttft_scan import TtftScan


class ConductorConfig(PolicyConfig):
    """Parameters of the Conductor."""

    balancing_threshold: "Annotated[float, Field(ge=1, json_schema_extra={'unit': 'ratio'})]" = 2.0
    """The longest prefix anywhere is fetched by replicas that hold less than this part of it (hand-tuned and unpublished)."""
    holders: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Replicas that hold a beginning of the prompt whose own hit is looked at."""
    ttft_slo_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = inf
    """Requests that are predicted to miss it are rejected."""
    tbt_slo_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = inf
    """So are those whose decode replica's step is predicted to."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Conductor:
    """The prefill replica with the least predicted time to the first token, where prefixes may come from other replicas' caches.

    Rule: the longest prefix that any replica holds is compared with what each one holds. Where the ratio exceeds
    `balancing_threshold`, the prediction is that of fetching what it lacks and computing the rest; otherwise that of its own
    cache. Prediction: transfer, prompts before it, its own prompt. argmin, ties to the one with the fewest requests. So a
    prefix that is asked for often spreads to more replicas by itself. Where answers are computed apart, they go to the
    replica with the shortest predicted step. Requests that miss an objective either way are rejected.

    What is fetched travels over the network once the replica has admitted the request, and the prompt waits for it; the source's
    blocks are not kept for it meanwhile.

    What is charged: the transfer. The decision is a scan of the prefill replicas; transfers are estimated for the promising ones.

    References
    ----------
    R. Qin et al., "Mooncake: Trading More Storage for Less Computation - A KVCache-centric Architecture for Serving LLM Chatbot",
    FAST 2025, arXiv:2407.00079, algorithm 1.
    """

    Config: ClassVar = ConductorConfig

    def __init__(self, config: ConductorConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._answers = fleet.decode
        self._scan = TtftScan(fleet, config.holders)
        if self._answers is not None:
            self._answers.watch_load()
            self._answers.index_work(0)

    def route(self, request: RequestView) -> int | Route | Reject:
        """Choose a replica, and what it fetches from which other one."""
        place, ttft_s, source, tokens = self._best(request)
        if ttft_s > self._config.ttft_slo_s:
            return Reject("no replica is predicted to answer in time")
        decode = -1
        answers = self._answers
        if answers is not None:
            steps_s = [self._step_s(answers, i, request) for i in range(answers.count)]
            decode = min(range(answers.count), key=steps_s.__getitem__)
            if steps_s[decode] > self._config.tbt_slo_s:
                return Reject("no replica is predicted to decode fast enough")
        if decode < 0 and not tokens:
            return place
        return Route(place, decode, fetch_from=source, fetch_tokens=tokens)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Predicted time of each replica, and what it would fetch."""
        lower_s, hits, source = self._scanned(request)
        plans = enumerate(
            [
                self._plan(request, place, float(lower_s[place]), int(hits[place]), int(hits[source]), source)
                for place in range(len(lower_s))
            ]
        )
        return {place: {"ttft_s": ttft_s, "fetched_tokens": float(tokens)} for place, (ttft_s, tokens) in plans}

    def _best(self, request: RequestView) -> tuple[int, float, int, int]:
        """The replica with the least time to the first token, that time, and from where it fetches how many leading tokens."""
        if self._scan.even:
            levels = self._fleet.levels(request, self._config.holders)
            most_holders = max([len(run.holders) for run, _ in levels], default=0)
            if most_holders <= self._config.holders and self._fleet.one_block_size:
                return self._best_of_even(request, levels)
        lower_s, hits, source = self._scanned(request)
        best, best_s, best_tokens = -1, inf, 0
        for _ in range(len(lower_s)):
            place = int(lower_s.argmin())
            least_s = float(lower_s[place])
            if least_s >= best_s:
                break  # transfers only add to this
            hit, most = (int(hits[place]), int(hits[source])) if source >= 0 else (0, 0)
            ttft_s, tokens = self._plan(request, place, least_s, hit, most, source)
            if ttft_s < best_s or best < 0:
                best, best_s, best_tokens = place, ttft_s, tokens
            lower_s[place] = inf
        return best, best_s, source if best_tokens else -1, best_tokens

    def _best_of_even(self, request: RequestView, levels: list[tuple[PrefixNode, int]]) -> tuple[int, float, int, int]:
        """The same where all are as fast: of who need not fetch the one that is free first, or who of the others beats that."""
        scan, n, threshold = self._scan, request.prompt_tokens, self._config.balancing_threshold
        first, count = scan.soonest(), self._fleet.count
        if not levels:
            return first, scan.one_s(first, n, 0), -1, 0
        deepest, most = levels[0]
        source = next(iter(deepest.holders))
        best, best_s, near = -1, inf, deepest
        for run, tokens in levels:
            if most > tokens * threshold:
                break
            near = run
            if scan.one_s(first, n, tokens) > best_s:
                continue
            place = scan.soonest_of(run) if len(run.holders) < count else first
            found_s = scan.one_s(place, n, tokens)
            if found_s < best_s or (found_s == best_s and place < best):
                best, best_s = place, found_s
        fetched = 0
        if len(near.holders) < count and scan.one_s(first, n, most) < best_s:
            tried: list[int] = []
            while (place := scan.soonest_without(near, tried)) >= 0:
                tried.append(place)
                lower_s = scan.one_s(place, n, most)
                if lower_s >= best_s:
                    break  # transfers only add to this
                hit = next((tokens for run, tokens in levels if place in run.holders), 0)
                ttft_s, tokens = self._plan(request, place, lower_s, hit, most, source)
                if ttft_s < best_s or (ttft_s == best_s and not fetched):
                    best, best_s, fetched = place, ttft_s, tokens
        return best, best_s, source if fetched else -1, fetched

    def _scanned(self, request: RequestView) -> tuple[Any, Any, int]:
        """Times to the first token without transfers, tokens held where, and who has held most for longest (-1: nobody)."""
        fleet = self._fleet
        hits = fleet.hits(request, self._config.holders)
        source = next(iter(fleet.cached(request, 1)), -1)
        if source >= 0 and not fleet.present[source]:
            source = next((place for place in fleet.cached(request) if fleet.present[place]), -1)
        if source < 0:
            return self._scan.after(request.prompt_tokens, hits), hits, -1
        most = hits[source]
        own = np.where(most > hits * self._config.balancing_threshold, most, hits)
        return self._scan.after(request.prompt_tokens, own), hits, source

    def _plan(
        self, request: RequestView, place: int, lower_s: float, hit: int, most: int, source: int
    ) -> tuple[float, int]:
        """A replica's time to the first token with the transfer, and how many leading tokens it would hold after that; or 0."""
        if source < 0 or most <= hit * self._config.balancing_threshold:
            return lower_s, 0
        transfer_s = self._fleet.transfer_s(source, place, most - hit)
        if transfer_s == inf:  # no way there
            return self._fleet.ttft_s(place, request.prompt_tokens, hit), 0
        return lower_s + transfer_s, most

    def _step_s(self, answers: FleetView, place: int, request: RequestView) -> float:
        """Predicted step of a decode replica with this request too."""
        batch = answers.decoding[place] + answers.coming[place] + 1
        tokens = answers.kv_used(place) * answers.capacity_tokens[place] + answers.coming_tokens[place]
        return answers.decode_s(place, batch, tokens + request.prompt_tokens)
