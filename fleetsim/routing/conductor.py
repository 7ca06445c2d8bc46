"""Mooncake's Conductor: the least time to the first token, with prefixes fetched from other replicas."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route
from fleetsim.routing.ttft_scan import TtftScan


class ConductorConfig(PolicyConfig):
    """Parameters of the Conductor."""

    balancing_threshold: float = Field(default=2.0, ge=1, json_schema_extra={"unit": "ratio"})
    """The longest prefix anywhere is fetched by replicas that hold less than this part of it (hand-tuned and unpublished)."""
    holders: int = Field(default=64, ge=1, strict=True)
    """Replicas that hold a beginning of the prompt whose own hit is looked at."""
    ttft_slo_s: float = Field(default=inf, gt=0, json_schema_extra={"unit": "s"})
    """Requests that are predicted to miss it are rejected."""
    tbt_slo_s: float = Field(default=inf, gt=0, json_schema_extra={"unit": "s"})
    """So are those whose decode replica's step is predicted to."""


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

    def route(self, request: RequestView) -> Route | Reject:
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
        return Route(place, decode, fetch_from=source, fetch_tokens=tokens)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """Predicted time of each replica, and what it would fetch."""
        lower_s, held, source = self._scanned(request)
        plans = enumerate([self._plan(place, lower_s[place], held, source) for place in range(len(lower_s))])
        return {place: {"ttft_s": ttft_s, "fetched_tokens": float(tokens)} for place, (ttft_s, tokens) in plans}

    def _best(self, request: RequestView) -> tuple[int, float, int, int]:
        """The replica with the least time to the first token, that time, and from where it fetches how many leading tokens."""
        lower_s, held, source = self._scanned(request)
        best, best_s, best_tokens = -1, inf, 0
        for place in np.argsort(lower_s, kind="stable").tolist():
            if lower_s[place] >= best_s:
                break  # transfers only add to this
            ttft_s, tokens = self._plan(place, float(lower_s[place]), held, source)
            if ttft_s < best_s or best < 0:
                best, best_s, best_tokens = place, ttft_s, tokens
        return best, best_s, source if best_tokens else -1, best_tokens

    def _scanned(self, request: RequestView) -> tuple[Any, dict[int, int], int]:
        """Times to the first token without transfers, what is held where, and who holds most (-1: nobody anything)."""
        fleet, scan, n = self._fleet, self._scan, request.prompt_tokens
        held = fleet.cached(request, self._config.holders)
        source = max(held, key=held.__getitem__, default=-1)
        if source < 0 or fleet.transfer_s(source, (source + 1) % fleet.count, 1) == inf:
            return scan.seconds(request), held, -1
        most = held[source]
        lower_s = scan.after(n, most)
        for place, hit in held.items():
            if not self._fetches(hit, most):
                lower_s[place] = scan.after_at(place, n, hit)
        return lower_s, held, source

    def _fetches(self, hit: int, most: int) -> bool:
        return most > hit * self._config.balancing_threshold

    def _plan(self, place: int, lower_s: float, held: Mapping[int, int], source: int) -> tuple[float, int]:
        """A replica's time to the first token with the transfer, and how many leading tokens it would hold after that; or 0."""
        hit = held.get(place, 0)
        if source < 0 or not self._fetches(hit, held[source]):
            return lower_s, 0
        return lower_s + self._fleet.transfer_s(source, place, held[source] - hit), held[source]

    def _step_s(self, answers: FleetView, place: int, request: RequestView) -> float:
        """Predicted step of a decode replica with this request too."""
        batch = answers.decoding[place] + answers.coming[place] + 1
        tokens = answers.kv_used(place) * answers.capacity_tokens[place] + answers.coming_tokens[place]
        return answers.decode_s(place, batch, tokens + request.prompt_tokens)
