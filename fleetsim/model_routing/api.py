"""What a model router sees of a request, of models and of pools, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import numpy as np

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.quality.api import Arm
from fleetsim.routing.api import FleetView, Reject

__all__ = [
    "Accept",
    "Answer",
    "Arm",
    "Ask",
    "Decision",
    "ModelRouter",
    "ModelsView",
    "Outcome",
    "Query",
    "Reject",
    "best",
    "number_of",
]

_EQUAL = 1e-9
"""Scores that differ by less are equal: leaps and single steps differ in the last bits of what feedback says."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Decision to have an arm answer."""

    arm: int
    """Its number."""
    samples: int = 1
    """Answers that it gives to the prompt. They share its computation where the pool has a prefix cache: the others are sent to the
    same replica when the first one has its first token."""
    judge: bool = False
    """Whether the answers are scored, at the price of the scenario's judge for each."""
    last: bool = False
    """Whether its first answer is the one that is given, whatever it is: its tokens then stream to the client. Routers without
    `proceed` always mean this."""
    verify: int = -1
    """Number of an earlier answer that the arm checks, in `samples` short answers of yes or no; below 0: it answers the request."""
    thought: int = 0
    """Above 0: so many tokens that the arm writes for the router and nobody else, behind the prompt and all that was written so
    far; with `verify`, the length of its verdict instead of the scenario's [tokens]."""
    behind: int = -1
    """Number of an earlier answer that the arm thinks over: its prompt goes on behind that answer, and what was right stays right;
    below 0: it answers anew."""
    most_tokens: int = 0
    """Longest answer that is taken: one that is cut off is as bad as a wrong one. 0: any [tokens]."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Decision to give an answer that is there."""

    answer: int
    """Its number."""


Decision = Ask | Accept | Reject
"""What a router says; of `Ask` also several at once, as a list: all are asked at the same time."""


@dataclass(slots=True)
class Answer:
    """An answer that is there, as far as it can be seen."""

    arm: int
    sample: int
    """0 for the first of its arm to this request."""
    label: int
    """Answers to a request with the same label are the same; 0 is that of the first. Which is right nobody knows."""
    output_tokens: int
    latency_s: float
    """From asking for it until it was there [s]."""
    list_usd: float
    energy_j: float
    """Of its call [J]."""
    score: float | None = None
    """What the judge says, 0 to 1, if it was asked."""
    votes: list[bool] = field(default_factory=list)
    """What verifiers said."""
    ttft_s: float = float("nan")
    """From asking for it until its first token was there [s]."""


@dataclass(slots=True)
class Query:
    """A request, as a model router sees it: neither its difficulty nor any answer's length or quality before that is there."""

    id: int
    arrival_s: float
    prompt_tokens: int
    klass: str | None
    tenant: str | None
    session: int
    weight: float
    deadline_s: float
    """Latest first token that keeps the limit of its class [s]; infinite without one."""
    domain: int
    """What it is about, as the predictor says: number in `ModelsView.domains`."""
    difficulty: float
    """How hard it is, as the predictor says."""
    chance: Any
    """Predicted chance of each arm to answer well: an array, not to be changed."""
    output_tokens: Any
    """Expected length of each arm's answer: an array, not to be changed [tokens]."""
    now_s: float = 0.0
    """Time of this decision [s]."""
    turn: int = 0
    """Its place in its session."""
    image_tokens: int = 0
    """Of the prompt, tokens of images [tokens]."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is learned about an answer that was given, after it was, and after what it takes to find that out."""

    query: Query
    arm: int
    quality: float
    """How good it was, 0 to 1."""
    output_tokens: int
    latency_s: float
    """From arrival to the last token [s]."""
    ttft_s: float
    """From arrival to the first token [s]."""
    energy_j: float
    """Of all calls for it [J]."""
    list_usd: float
    """List price of all calls, decisions and judgements for it [USD]."""
    cost_usd: float
    """What the fleet cost for it [USD]."""
    calls: int
    """Calls for it, verifications included."""


class ModelsView:
    """The arms and the replicas that serve them, as a model router may know them.

    Arms are numbered 0 to `count` - 1. What is published of models (prices, mean quality by domain, joules per token) does not
    change; which arms may be chosen does. State of replicas is as old as ``gateway.view`` says.

    Parameters
    ----------
    arms, domains : sequence
        What there is.
    quality : array
        Mean quality of each arm (rows) in each domain (columns).
    joules_per_token : sequence of float
        What a token takes each arm, by its profile [J].
    replicas : callable
        From the number of an arm to the view of the replicas that serve its LLM.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        domains: Sequence[str],
        quality: Any,
        joules_per_token: Sequence[float],
        replicas: Callable[[int], FleetView],
        seats: Sequence[int] = (),
    ) -> None:
        self.arms = tuple(arms)
        self.domains = tuple(domains)
        self.quality = quality
        """Mean quality of each arm (rows) in each domain (columns), as a benchmark would tell; not to be changed."""
        self.mean_quality = quality.mean(axis=1)
        """The same over domains, each alike."""
        self.joules_per_token = np.array(joules_per_token, dtype=np.float64)
        """What a token takes each arm, by its profile [J]."""
        self.usd_per_prompt_token = np.array([arm.usd_per_prompt_token for arm in arms])
        self.usd_per_output_token = np.array([arm.usd_per_output_token for arm in arms])
        self._prompt_usd: list[float] = self.usd_per_prompt_token.tolist()
        self._output_usd: list[float] = self.usd_per_output_token.tolist()
        self.offered = [True] * len(self.arms)
        """Whether each arm may be chosen: models join and leave."""
        self.epoch = 0
        """Raised whenever `offered` changes."""
        self.now_s = 0.0
        self._replicas = replicas
        self._views: dict[int, FleetView] = {}
        self._tpots: dict[tuple[int, str, int], float] = {}
        """Step times by arm, pool and batch."""
        self.seats = tuple(seats) or (64,) * len(self.arms)
        """Requests that one replica of each arm runs at a time at most."""

    @property
    def count(self) -> int:
        """Number of arms."""
        return len(self.arms)

    def replicas(self, arm: int) -> FleetView:
        """The replicas that serve an arm's LLM, as a router among them sees them."""
        view = self._views.get(arm)
        if view is None:
            view = self._views[arm] = self._replicas(arm)
        view.now_s = self.now_s
        return view

    def present(self, arm: int) -> bool:
        """Whether an arm may be chosen and a replica is there that can serve it now."""
        return self.offered[arm] and bool(self.replicas(arm).members)

    def open(self) -> list[int]:
        """Arms that may be chosen and are served now; those that may be chosen, where none is served."""
        views = self._views
        if len(views) < len(self.arms):
            for arm in range(len(self.arms)):
                self.replicas(arm)
        here = [arm for arm, offered in enumerate(self.offered) if offered and views[arm].members]
        return here or [arm for arm, offered in enumerate(self.offered) if offered]

    def usd(self, query: Query) -> Any:
        """Expected list price of an answer of each arm: an array [USD]."""
        return query.prompt_tokens * self.usd_per_prompt_token + query.output_tokens * self.usd_per_output_token

    def usd_list(self, query: Query) -> list[float]:
        """The same as a list, which costs less where it is gone through one by one [USD]."""
        prompt, tokens = query.prompt_tokens, query.output_tokens.tolist()
        return [prompt * a + t * b for a, b, t in zip(self._prompt_usd, self._output_usd, tokens, strict=True)]

    def joules(self, query: Query) -> Any:
        """Expected energy of an answer of each arm, by the profiles: an array [J]."""
        return (query.prompt_tokens + query.output_tokens) * self.joules_per_token

    def load(self, arm: int) -> float:
        """Requests at the replicas of an arm's LLM over those that run there at a time at most; infinite where none is there."""
        return self.loads((arm,))[0]

    def loads(self, among: Sequence[int]) -> list[float]:
        """`load` of some arms."""
        views, seats, now_s = self._views, self.seats, self.now_s
        found = []
        for arm in among:
            view = views.get(arm)
            if view is None:
                view = self.replicas(arm)
            view.now_s = now_s
            members, outstanding = view.members, view.outstanding
            if len(members) == 1:
                found.append(outstanding[members[0]] / seats[arm])
            elif members:
                found.append(sum([outstanding[i] for i in members]) / (len(members) * seats[arm]))
            else:
                found.append(inf)
        return found

    def alone_s(self, arm: int, query: Query) -> float:
        """Expected time to the last token if nothing else ran [s]; of the first replica that is there."""
        view = self.replicas(arm)
        if not view.members:
            return inf
        place = view.members[0]
        return view.prefill_s(place, query.prompt_tokens, 0) + float(query.output_tokens[arm]) * view.tpot_s(place, 1)

    def _tpot_s(self, view: FleetView, arm: int, place: int, batch: int) -> float:
        """Step time of a batch: the same for all replicas of a pool."""
        key = (arm, view.pools[place], batch)
        known = self._tpots.get(key)
        if known is None:
            known = self._tpots[key] = view.tpot_s(place, batch)
        return known

    def latency_s(self, arm: int, query: Query) -> float:
        """Expected time to the last token if an arm is asked now [s].

        At the replica with the fewest requests: its prompt alone, its answer at the step time of the batch, and where all seats are
        taken, the time until one is free: one over the number of seats of an answer, for each request before it. There are as
        many seats as requests like this one fit the KV cache, and no more than run at a time.
        """
        view = self.replicas(arm)
        members = view.members
        if not members:
            return inf
        place = min(members, key=view.outstanding.__getitem__) if len(members) > 1 else members[0]
        tokens, there = float(query.output_tokens[arm]), view.outstanding[place]
        fit = int(view.capacity_tokens[place] / (query.prompt_tokens + tokens))
        seats = max(min(self.seats[arm], fit), 1)
        answer_s = tokens * self._tpot_s(view, arm, place, min(there + 1, seats))
        waiting = max(there + 1 - seats, 0)
        return view.prefill_s(place, query.prompt_tokens, 0) + answer_s * (1.0 + waiting / seats)


class ModelRouter(Protocol):
    """Decides which arm answers a request.

    Built as ``Policy(config, rng, models)``: its parameters, its own random stream, and the `ModelsView`. Class attributes say what
    a decision takes: `decision_s` [s], `decision_j` [J], `decision_usd` [USD]; `verifies = True` that it has answers checked
    or thought over, `tags` what kind of policy it is (`fleetsim.model_routing.tags`).
    Besides `route` it may have

    - ``proceed(query, answers) -> Decision``: asked whenever all calls that it asked for have come to an end, with the answers that
      are there, in the order in which they came; without it the first answer is given;
    - ``forget(query)``: told that a request has come to its end, however it did, so that nothing has to be kept for it;
    - ``feedback(outcome)``: told how good the answer was that was given (of the others it learns nothing), as late as the scenario
      says, and not about all requests;
    - ``joined(arm)`` and ``left(arm)``: told that an arm may be chosen, or may not any more.
    """

    def route(self, query: Query) -> Decision | Sequence[Ask]:
        """Whom to ask first."""
        ...


def best(scores: Any, among: Sequence[int]) -> int:
    """Of some arms the one with the highest score, the first of equal ones."""
    values = scores if isinstance(scores, list) else scores.tolist()
    if len(among) < len(values):
        values = [values[arm] for arm in among]
    top = max(values)
    least = top - _EQUAL * max(1.0, abs(top))
    for arm, value in zip(among, values, strict=True):
        if value >= least:
            return arm
    raise ValueError("no score is a number")


def number_of(models: ModelsView, name: str, policy: str) -> int:
    """Number of the arm that a parameter of a policy names.

    Raises
    ------
    ScenarioError
        If there is none of that name.
    """
    names = [arm.name for arm in models.arms]
    if name not in names:
        hint = nearest(name, names, "arms")
        raise ScenarioError(Finding(f'{policy} names the arm "{name}"', path="gateway.model_router", hint=hint))
    return names.index(name)
