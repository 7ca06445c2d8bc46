"""Mooncake's early rejection: no prompt is computed whose answer has no place."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.admission.api import ADMIT, Admit, FleetView, Reject, RequestView
from fleetsim.plugins import PolicyConfig


class EarlyRejectionConfig(PolicyConfig):
    """Parameters of early rejection."""

    tbt_slo_s: float = Field(gt=0, json_schema_extra={"unit": "s"})
    """Objective for the time between tokens: the load of the decode side is its predicted step over this."""
    ttft_slo_s: float = Field(default=float("inf"), gt=0, json_schema_extra={"unit": "s"})
    """Objective for the time to the first token: the load of the prefill side likewise."""
    load: Literal["now", "predicted"] = "now"
    """The decode side's load when the request arrives, or the one predicted for when its prompt will have been computed."""
    decode_s: float = Field(default=10.0, gt=0, json_schema_extra={"unit": "s"})
    """Time that every answer is taken to need (only `predicted`)."""


class EarlyRejection:
    """Rejects at the door what would not be decoded in time, before its prompt is computed for nothing.

    Rule: a request is rejected if the least predicted time to the first token exceeds its objective, or if the predicted step
    of the decode replicas with it, averaged over them, exceeds the one between tokens. With `now` the requests that decode
    now count. With `predicted` those do that will decode when this one's prompt has been computed: each that was let in is
    taken to decode from its predicted first token on for `decode_s`. The first rule makes the load swing, since it looks at
    what was let in long ago.

    Where every replica does everything, the same replicas are looked at as both sides.

    What is charged: nothing.

    References
    ----------
    R. Qin et al., "Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving", arXiv:2407.00079, section 7.
    """

    Config: ClassVar = EarlyRejectionConfig

    def __init__(self, config: EarlyRejectionConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._answers = fleet if fleet.decode is None else fleet.decode
        fleet.watch_load()
        self._answers.watch_load()
        self._answers.index_work(self._answers.decode_weight_tokens)
        self._begins: list[tuple[float, int]] = []
        """When answers that were let in are predicted to begin, and their prompt tokens (a heap)."""
        self._ends: list[tuple[float, int]] = []
        """When those that have begun by now are predicted to end."""
        self._tokens = 0
        """Prompt tokens of the latter."""

    def decide(self, request: RequestView) -> Admit | Reject:
        """Let the request in if both sides are predicted to serve it in time."""
        config, fleet = self._config, self._fleet
        ttft_s = min(self._ttft_s(place, request) for place in range(fleet.count))
        if ttft_s > config.ttft_slo_s:
            return Reject("prompts would wait for too long")
        first_s = fleet.now_s + ttft_s
        batch, tokens = self._now() if config.load == "now" else self._at(first_s)
        if self._step_s(batch, tokens, request.prompt_tokens) > config.tbt_slo_s:
            return Reject("decoding would be too slow")
        heappush(self._begins, (first_s, request.prompt_tokens))
        return ADMIT

    def _ttft_s(self, place: int, request: RequestView) -> float:
        hit = self._fleet.known_hit_tokens(place, request) or 0
        return self._fleet.ttft_s(place, request.prompt_tokens, hit)

    def _now(self) -> tuple[float, float]:
        """Requests that decode now on all replicas, and their context [tokens]."""
        answers = self._answers
        tokens = sum(answers.kv_used(place) * answers.capacity_tokens[place] for place in range(answers.count))
        return float(sum(answers.decoding)), tokens

    def _at(self, time_s: float) -> tuple[float, float]:
        """The same as predicted for a time to come."""
        now_s, lasts_s = self._fleet.now_s, self._config.decode_s
        while self._begins and self._begins[0][0] <= now_s:
            begin_s, tokens = heappop(self._begins)
            heappush(self._ends, (begin_s + lasts_s, tokens))
            self._tokens += tokens
        while self._ends and self._ends[0][0] <= now_s:
            self._tokens -= heappop(self._ends)[1]
        there = [tokens for end_s, tokens in self._ends if end_s > time_s]
        there += [tokens for begin_s, tokens in self._begins if begin_s <= time_s < begin_s + lasts_s]
        return float(len(there)), float(sum(there))

    def _step_s(self, batch: float, tokens: float, prompt_tokens: int) -> float:
        """Mean step of the decode replicas if what decodes is spread evenly over them, and the request on one."""
        answers = self._answers
        places = range(answers.count)
        batch, tokens = batch / answers.count + 1.0, tokens / answers.count + prompt_tokens
        return sum(answers.decode_s(place, batch, tokens) for place in places) / answers.count
