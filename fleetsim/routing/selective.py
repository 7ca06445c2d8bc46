"""Long prompts are computed apart, short ones where they decode."""

from __future__ import annotations

from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView, Route
from fleetsim.routing.sides import Sides


class SelectiveConfig(PolicyConfig):
    """Parameters of selective disaggregation."""

    longer_than_tokens: int = Field(default=512, ge=0, strict=True)
    """Prompts are computed apart if more tokens than this are not cached where they would decode."""
    queue_tokens: float = Field(default=float("inf"), gt=0, json_schema_extra={"unit": "tokens"})
    """And if the shortest queue of the prefill side holds no more than this."""


class Selective:
    """Only long prompts are computed apart; short ones run where they decode, which saves their transfer.

    Rule: the decode replica with the fewest requests, those on their way to it included, is where the answer will be computed. If
    more prompt tokens than `longer_than_tokens` are not in its cache, and the shortest queue of the replicas that compute prompts
    only is within `queue_tokens`, the prompt goes to that queue; otherwise to the decode replica itself. Needs pools with the roles
    `prefill` and `mixed`; without prefill replicas all prompts run where they decode. Ties go to the first.

    What is charged: transfers of the long ones over the network.

    References
    ----------
    NVIDIA Dynamo, "Disaggregated serving" (github.com/ai-dynamo/dynamo): prefill is remote where its length without prefix hits
    exceeds a threshold and the prefill queue is short.
    """

    Config: ClassVar = SelectiveConfig

    def __init__(self, config: SelectiveConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._sides = Sides(fleet)
        fleet.index_work(0)
        if fleet.has_telemetry and fleet.freshness.kind != "exact":
            fleet.watch_caches()

    def route(self, request: RequestView) -> Route:
        """Choose where the answer is computed, and whether the prompt is too."""
        fleet, sides = self._fleet, self._sides
        answers = sides.answers
        load = [answers.outstanding[i] + answers.coming[i] for i in range(answers.count)]
        decode = min(range(answers.count), key=load.__getitem__)
        at = sides.prefill_place[decode]
        apart = sides.prefill_only
        if apart:
            prefill = min(apart, key=fleet.pending_tokens.__getitem__)
            if at < 0:
                return Route(prefill, decode)
            lacking = request.prompt_tokens - (fleet.known_hit_tokens(at, request) or 0)
            short_queue = fleet.pending_tokens[prefill] <= self._config.queue_tokens
            if lacking > self._config.longer_than_tokens and short_queue:
                return Route(prefill, decode)
        return Route(max(at, 0))
