"""Mooncake's Conductor: the least time to the first token, with prefixes fetched from other replicas."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, Reject, RequestView, Route


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
    `balancing_threshold`, the prediction is that of fetching what it lacks and computing the rest; otherwise that of its own cache.
    Prediction: transfer, prompts before it, its own prompt. argmin, ties to the first. So a prefix that is asked for often spreads
    to more replicas by itself. Where answers are computed apart, they go to the replica with the shortest predicted step. Requests
    that miss an objective either way are rejected.

    What is fetched travels over the network once the replica has admitted the request, and the prompt waits for it; the source's
    blocks are not kept for it meanwhile.

    What is charged: the transfer. The decision is a loop over the prefill replicas.

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
        fleet.watch_load()
        fleet.watch_caches()
        if self._answers is not None:
            self._answers.watch_load()
            self._answers.index_work(0)

    def route(self, request: RequestView) -> Route | Reject:
        """Choose a replica, and what it fetches from which other one."""
        plans = self._plans(request)
        place = min(range(len(plans)), key=lambda i: plans[i][0])
        ttft_s, source, tokens = plans[place]
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
        plans = enumerate(self._plans(request))
        return {i: {"ttft_s": ttft_s, "fetched_tokens": float(tokens)} for i, (ttft_s, _, tokens) in plans}

    def _plans(self, request: RequestView) -> list[tuple[float, int, int]]:
        """Of each replica the time to the first token, and from where it fetches how many leading tokens (-1 and 0: nothing)."""
        fleet, n = self._fleet, request.prompt_tokens
        held = fleet.cached(request, self._config.holders)
        source = max(held, key=held.__getitem__, default=-1)
        best = held.get(source, 0)
        plans = []
        for place in range(fleet.count):
            hit = held.get(place, 0)
            if best > hit * self._config.balancing_threshold and best < n:
                fetch_s = fleet.transfer_s(source, place, best - hit)
                plans.append((fetch_s + fleet.ttft_s(place, n, best), source, best))
            else:
                plans.append((fleet.ttft_s(place, n, hit), -1, 0))
        return plans

    def _step_s(self, answers: FleetView, place: int, request: RequestView) -> float:
        """Predicted step of a decode replica with this request too."""
        batch = answers.decoding[place] + answers.coming[place] + 1
        tokens = answers.kv_used(place) * answers.capacity_tokens[place] + answers.coming_tokens[place]
        return answers.decode_s(place, batch, tokens + request.prompt_tokens)
