"""xLLM's pairs of instances whose roles change with the load."""

from __future__ import annotations

from typing import ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView, Route
from fleetsim.workload.request import LOCAL


class XllmConfig(PolicyConfig):
    """Parameters of xLLM's service."""

    rule: Literal["slo-aware", "car", "car-integer"] = "slo-aware"
    """By predicted times, with changes of roles; or by caches, memory and queues with roles as at first, where `car-integer`
    divides blocks and queues without a remainder, as the published code does."""
    ttft_slo_s: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "s"})
    """Objective for the time to the first token."""
    tpot_slo_s: float = Field(default=0.05, gt=0, json_schema_extra={"unit": "s"})
    """Objective for the time per output token."""
    prefill_share: float = Field(default=0.5, gt=0, lt=1, json_schema_extra={"unit": "ratio"})
    """Instances, the first ones, that begin as prefill instances."""
    flips: bool = True
    """Whether roles change."""
    least_prefill: int = Field(default=1, ge=1, strict=True)
    """Prefill instances that are always left."""
    least_decode: int = Field(default=1, ge=1, strict=True)
    """Decode instances that are always left (the report says two, the code one)."""
    encode_at: Literal["prefill", "decode", "least"] = "prefill"
    """Where images are encoded if all instances have an encoder: where the prompt is computed (EP-D), where the answer is
    (ED-P), or where the fewest image tokens wait. Pools of the role `encode` take them all (E-P-D) if no other pool has an
    encoder."""
    offline: tuple[str, ...] = ()
    """Classes of requests whose answers may be computed by prefill instances too: by whichever instance has the shortest step."""
    dwell_s: float = Field(default=0.0, ge=0, json_schema_extra={"unit": "s"})
    """Least time between two changes of one instance's role (0 in the code)."""


class Xllm:
    """Pairs of a prefill and a decode instance by predicted times; instances change their roles when one side is short.

    Rule, `slo-aware`: ``P`` is the prefill instance with the least predicted time of queued prompts. The first decode
    instance, in order, whose step is predicted to keep the objective with this request is taken; if there is none, the one
    with the shortest step ``D``. If P's queue exceeds the objective and another decode instance than the taken one has the
    shortest step, well within its objective (by a factor ``(n - 1) / n`` for n decode instances), and a shorter queue than P,
    it computes the prompt. If no decode instance keeps the objective, and either the mean queue of the prefill instances is
    within ``(n - 1) / n`` of its objective or they outnumber the decode instances, the prefill instance that was chosen turns
    into a decode instance. A decode instance that has no request any more turns into a prefill instance. An instance that
    changes ends what it began; nothing is reloaded.

    Rule, `car`: for each side, the instance with the highest ``matched / most matched - KV in use - waiting / most waiting``.

    Rule for images: `encode_at`. That decodes come before prompts and prompts before encoding on each instance is the pool's
    `encoder.order: last`.

    Rule for offline requests (`offline`): their prompts go where those of others do; of all instances, the one whose next step is
    predicted to be the shortest computes the answer. Their own scheduler, `xllm-colocation`, keeps them from delaying others.

    Predictions are least squares over each instance's own step times: a quadratic in the prompt's length, and ``b0 + b1 batch
    + b2 context`` for steps. All pools but those that only encode have the role `mixed`: this router keeps the roles. Changes
    are in the table of events as `flip_to_prefill` and `flip_to_decode`.

    What is charged: transfers over the network; a change of roles costs nothing but the work that the instance still has.

    References
    ----------
    "xLLM Technical Report", arXiv:2510.14686 (github.com/jd-opensource/xllm-service).
    """

    Config: ClassVar = XllmConfig
    pairs: ClassVar[bool] = True

    def __init__(self, config: XllmConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._answers = answers = fleet if fleet.decode is None else fleet.decode
        if answers.numbers != fleet.numbers:
            raise PolicyError("the router xllm keeps the roles of replicas itself: give all its pools the role mixed")
        self._board = fleet.watch_load()
        answers.watch_load()
        answers.index_work(0)
        self._terms = [answers.decode_terms_of(place) for place in range(answers.count)]
        """Of each instance: seconds of a step, per request and per token of context."""
        if config.rule != "slo-aware":
            fleet.watch_caches()
        count = fleet.count
        first = min(max(round(config.prefill_share * count), 1), max(count - 1, 1))
        self._prefill = list(range(first))
        self._decode = list(range(first, count)) or [0]
        self._flips = config.flips and count > 1
        self._since_s = [-config.dwell_s] * count
        """When each instance got its role."""
        self._used: dict[int, None] = {}
        """Decode instances that had requests when last looked at."""
        self.events: list[tuple[float, str, int]] = []
        """Changes of roles: when, to what, number over the fleet."""

    def route(self, request: RequestView) -> Route:
        """Choose a pair."""
        if self._config.rule != "slo-aware":
            prefill = self._by_cache(request, self._there(self._prefill))
            decode = self._by_cache(request, self._there(self._decode))
        else:
            if self._flips:
                self._release()
            prefill, decode = self._slo_aware(request)
        return Route(prefill, decode, encode=self._encoder(prefill, decode) if request.images else LOCAL)

    def _encoder(self, prefill: int, decode: int) -> int:
        """Number, of those with an encoder, of the instance that encodes."""
        fleet, at = self._fleet, self._config.encode_at
        encoders = fleet.encoders
        number = fleet.numbers[prefill if at == "prefill" else decode]
        if at == "least" and encoders:
            number = min(encoders, key=fleet.encode_tokens.__getitem__)
        return encoders.index(number) if number in encoders else LOCAL

    def _slo_aware(self, request: RequestView) -> tuple[int, int]:
        config, prefills, decodes = self._config, self._there(self._prefill), self._there(self._decode)
        queue_s = self._board.pending_s
        best_p = min(prefills, key=queue_s.__getitem__)
        if request.klass is not None and request.klass in config.offline:
            shortest = min(range(self._answers.count), key=lambda place: self._step_s(place, request))
            if shortest in decodes:
                self._used[shortest] = None
            return best_p, shortest
        target_s = config.tpot_slo_s
        good = next((d for d in decodes if self._step_s(d, request) <= target_s), -1)
        prefill, decode = best_p, good
        if good < 0 or queue_s[best_p] > config.ttft_slo_s:  # only then does it matter which step is the shortest
            step_s = {d: self._step_s(d, request) for d in decodes}
            best_d = min(decodes, key=step_s.__getitem__)
            spare_s = target_s * (len(decodes) - 1) / len(decodes)
            if good < 0:
                decode = best_d
                if self._flips:
                    self._enlist(best_p)
            elif good != best_d and step_s[best_d] < spare_s and queue_s[best_d] < queue_s[best_p]:
                prefill = best_d
        self._used[decode] = None
        return prefill, decode

    def _there(self, places: list[int]) -> list[int]:
        """Instances of a role that are there; all that are, where none of it is."""
        if self._fleet.whole:
            return places
        return [place for place in places if self._fleet.present[place]] or self._fleet.members or places

    def _step_s(self, place: int, request: RequestView) -> float:
        """Predicted step of a decode instance with this request too."""
        answers = self._answers
        batch = answers.decoding[place] + answers.coming[place] + 1
        tokens = answers.kv_used(place) * answers.capacity_tokens[place] + answers.coming_tokens[place]
        base_s, request_s, token_s = self._terms[place]
        return base_s + request_s * batch + token_s * (tokens + request.prompt_tokens)

    def _enlist(self, place: int) -> None:
        """Turn a prefill instance into a decode instance, if the others can do without it."""
        config, prefills = self._config, self._prefill
        count = len(prefills)
        mean_s = sum(self._board.pending_s[p] for p in prefills) / count
        idle = mean_s < config.ttft_slo_s * (count - 1) / count
        if count > config.least_prefill and (idle or len(self._decode) < count) and self._may_change(place):
            prefills.remove(place)
            self._decode.append(place)
            self._decode.sort()
            self._note(place, "flip_to_decode")

    def _release(self) -> None:
        """Turn decode instances whose last request has ended into prefill instances."""
        answers = self._answers
        for place in list(self._used):
            if answers.decoding[place] + answers.coming[place]:
                continue
            del self._used[place]
            if len(self._decode) > self._config.least_decode and place in self._decode and self._may_change(place):
                self._decode.remove(place)
                self._prefill.append(place)
                self._prefill.sort()
                self._note(place, "flip_to_prefill")

    def _may_change(self, place: int) -> bool:
        return self._fleet.now_s - self._since_s[place] >= self._config.dwell_s

    def _note(self, place: int, kind: str) -> None:
        self._since_s[place] = self._fleet.now_s
        self.events.append((self._fleet.now_s, kind, self._fleet.numbers[place]))

    def _by_cache(self, request: RequestView, places: list[int]) -> int:
        """The instance with the best score of cache, memory and queue."""
        fleet, waiting = self._fleet, self._board.waiting
        matched = [fleet.hit_tokens(place, request) for place in places]
        most_matched, most_waiting = max(max(matched), 1), max(max(waiting[place] for place in places), 1)
        whole = self._config.rule == "car-integer"
        best, best_score = places[0], float("-inf")
        for place, hit in zip(places, matched, strict=True):
            parts = (
                (hit // most_matched, waiting[place] // most_waiting)
                if whole
                else (hit / most_matched, waiting[place] / most_waiting)
            )
            score = parts[0] - fleet.kv_used(place) - parts[1]
            if score > best_score:
                best, best_score = place, score
        return best
