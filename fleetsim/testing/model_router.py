"""Checker of model routers."""

from __future__ import annotations

from collections import deque
from time import thread_time_ns
from typing import Any

import numpy as np

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query
from fleetsim.quality.answers import Signals
from fleetsim.quality.api import Truth
from fleetsim.quality.irt import IrtWorld
from fleetsim.routing.api import FleetView, Freshness, Reject
from fleetsim.scenario.quality import Quality
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.station import Station

_REQUESTS = 250
_ARMS = (1, 3, 8)
_SPEED = 5000.0
_ROUNDS = 100
_DELAYS = (0, 17)
"""Requests that come before the router hears how good an answer was."""
_COSTS = (2, 8, 16)
_LEAVES, _BACK = 100, 180
"""Requests at which an arm leaves, and comes back."""

Step = tuple[Any, ...]


def check_model_router(policy: type | str, config: Config = None) -> Report:
    """Try a model router on sets of 1 to 8 models whose answers are drawn, with feedback that comes late.

    Checked are: every answer is an `Ask`, a list of them, an `Accept` of an answer that is there, or a `Reject` with a reason; it
    comes to an end with every request, and with some by giving an answer; a model that may not be chosen is not, neither after it
    has left nor before it has joined; the same seed gives the same answers, whatever other instances do; neither the query nor the
    view of the models is changed.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per request, feedback included, with 2, 8 and 16 models.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("model_routers", policy, config, ["route"])
    for arms in _ARMS:
        for delay in _DELAYS:
            expected = Course(checked, arms, delay).steps()
            if not any(step[1] == "accept" for step in expected):
                checked.fail(f"gives none of {_REQUESTS} requests an answer with {arms} models")
            if Course(checked, arms, delay, beside=True).steps() != expected:
                checked.fail(
                    "answers otherwise with the same seed: draw only from the given `rng`, keep state in the instance"
                )
    checked.passed("every answer is to ask a model, to give an answer that is there, or to reject with a reason")
    checked.passed("it comes to an end with every request")
    checked.passed("models that may not be chosen are not")
    checked.passed("the same seed gives the same answers, with other instances beside it or without")
    checked.passed("query and view are left as they are")
    costs = {}
    for arms in _COSTS:
        course = Course(checked, arms, 3)
        course.steps()
        costs[f"{arms} models"] = course.us_per_request()
    return checked.report(costs)


class Course:
    """Requests that are answered at once by models whose answers are drawn, and the router before them.

    Parameters
    ----------
    checked : Policy
        What is under test.
    arms : int
        Models to choose among.
    delay : int
        Requests that come before the router hears how good an answer was.
    beside : bool
        Whether another instance decides the same, with another seed.
    load : int
        Requests at each replica.
    requests : int
        How many come.
    """

    def __init__(
        self, checked: Policy, arms: int, delay: int, beside: bool = False, load: int = 0, requests: int = _REQUESTS
    ) -> None:
        self._checked = checked
        self._requests = requests
        self._delay = delay
        self._load = load
        config = _quality(arms)
        self._world = IrtWorld(config, 7)
        self._signals = Signals(config, 7, self._world)
        self._config = config
        rng = np.random.default_rng([arms, 31])
        self._prompts = np.maximum(rng.lognormal(5.5, 1.0, requests), 1).astype(int).tolist()
        self._outputs = np.maximum(rng.lognormal(4.5, 1.0, requests), 1).astype(int).tolist()
        self._stations = [[Station(_SPEED, 16, self._time_s) for _ in range(1 + arm % 3)] for arm in range(arms)]
        self._now_s = 0.0
        self._models: ModelsView
        self.policy: Any
        """The router."""
        self._models, self.policy = self._made(np.random.default_rng(5))
        self._other = self._made(np.random.default_rng(6)) if beside else None
        self._due: deque[tuple[int, Outcome]] = deque()
        self.spent_ns = 0
        self._qualities: list[float] = []
        """Of the answers to the request that is being answered."""
        self._identities: list[int] = []

    def us_per_request(self) -> float:
        """Time that the router took so far, by request [µs]."""
        return self.spent_ns / self._requests / 1e3

    def _made(self, rng: Any) -> tuple[ModelsView, Any]:
        views = [
            FleetView([f"pool-{arm}"] * len(stations), (), stations, Freshness(), self._time_s)
            for arm, stations in enumerate(self._stations)
        ]
        for view in views:
            for place in view.members:
                view.outstanding[place] = self._load
        count = len(views)
        joules = [0.05 * (1 + arm) for arm in range(count)]
        models = ModelsView(
            self._world.arms, self._world.domains, self._world.profile, joules, views.__getitem__, [16] * count
        )
        return models, self._checked.create(rng, models)

    def _time_s(self) -> float:
        return self._now_s

    def steps(self) -> list[Step]:
        """Let all requests be answered; what the router said of each."""
        steps: list[Step] = []
        for number in range(self._requests):
            self._now_s = 0.05 * number
            if number in (_LEAVES, _BACK) and self._models.count > 1:
                self._offer(number == _BACK)
            truth, query = self.query(number)
            before = _facts(query, self._models)
            steps += self._answered(number, truth, query)
            self._forget(query)
            if _facts(query, self._models) != before:
                self._checked.fail("changes the query or the view of the models; a policy only answers")
            while self._due and self._due[0][0] <= number - self._delay:
                self._tell(self._due.popleft()[1])
        return steps

    def _offer(self, offered: bool) -> None:
        """The first arm leaves or joins."""
        for models, policy in filter(None, [(self._models, self.policy), self._other]):
            models.offered[0] = offered
            models.epoch += 1
            told = getattr(policy, "joined" if offered else "left", None)
            if told is not None:
                with self._checked.complaining("cannot be told that a model joins or leaves"):
                    told(0)

    def query(self, number: int) -> tuple[Truth, Query]:
        """A request: what is true of it, and what a router sees."""
        truth = self._world.meet(number, None, self._prompts[number], self._outputs[number])
        expected = self._world.longer[0] * 90.0 + self._world.longer[1]
        seen = truth.seen
        query = Query(
            number,
            self._now_s,
            truth.prompt_tokens,
            ("chat", "batch", None)[number % 3],
            "ab"[number % 2],
            -1,
            1.0,
            self._now_s + 5.0,
            seen.domain,
            seen.difficulty,
            seen.chance,
            expected,
            self._now_s,
        )
        return truth, query

    def _answered(self, number: int, truth: Truth, query: Query) -> list[Step]:
        """Ask until there is an answer."""
        steps: list[Step] = []
        answers: list[Answer] = []
        self._qualities, self._identities = [], []
        samples: dict[int, int] = {}
        labels: dict[int, int] = {}
        said = self._say("route", truth, query)
        for _ in range(_ROUNDS):
            if isinstance(said, Reject):
                if not (isinstance(said.reason, str) and said.reason):
                    self._checked.fail(f"rejects request {number} without a reason")
                return [*steps, (number, "reject", said.reason)]
            if isinstance(said, Accept):
                if type(said.answer) is not int or not 0 <= said.answer < len(answers):
                    self._checked.fail(f"accepts answer {said.answer!r} of request {number}; there are {len(answers)}")
                self._given(number, query, answers[said.answer], self._qualities[said.answer])
                return [*steps, (number, "accept", said.answer)]
            asks = self._asks(number, said, len(answers))
            for ask in asks:
                steps.append((number, "ask", ask.arm, ask.samples, ask.judge, ask.verify, ask.thought, ask.behind))
                self._call(ask, truth, answers, samples, labels)
            last = len(asks) == 1 and asks[0].last
            if last or not hasattr(self.policy, "proceed"):
                given = -1 if last else 0
                self._given(number, query, answers[given], self._qualities[given])
                return [*steps, (number, "accept", -1)]
            said = self._say("proceed", truth, query, answers)
        self._checked.fail(f"never comes to an end with request {number}")

    def _say(self, method: str, truth: Truth, query: Query, *more: Any) -> Any:
        """What the router says."""
        if method == "route" and getattr(self.policy, "knows_answers", False):
            method, more = "route_knowing", (truth.quality,)
        self._checked.decisions += 1
        self._models.now_s = self._now_s
        start_ns = thread_time_ns()
        with self._checked.complaining(f"`{method}` failed for request {query.id}"):
            said: Any = getattr(self.policy, method)(query, *more)
        self.spent_ns += thread_time_ns() - start_ns
        if self._other is not None:
            self._other[0].now_s = self._now_s
            getattr(self._other[1], method)(query, *more)
        return said

    def _asks(self, number: int, said: Any, answers: int) -> list[Ask]:
        """Whom it asks, if that can be."""
        asks = [said] if isinstance(said, Ask) else said
        if not (isinstance(asks, list | tuple) and asks and all(isinstance(ask, Ask) for ask in asks)):
            self._checked.fail(f"answered {said!r}: expected an `Ask`, a list of them, an `Accept` or a `Reject`")
        for ask in asks:
            if type(ask.arm) is not int or not 0 <= ask.arm < self._models.count:
                self._checked.fail(f"asks arm {ask.arm!r}; there are {self._models.count}")
            if not self._models.offered[ask.arm]:
                self._checked.fail(f"asks arm {ask.arm} for request {number}, which may not be chosen now")
            if type(ask.samples) is not int or ask.samples < 1 or max(ask.verify, ask.behind) >= answers:
                self._checked.fail(f"answered {ask!r} with {answers} answers there")
        return list(asks)

    def _call(
        self, ask: Ask, truth: Truth, answers: list[Answer], samples: dict[int, int], labels: dict[int, int]
    ) -> None:
        """Let an arm answer, or check an answer."""
        arm = self._world.arms[ask.arm]
        for _ in range(ask.samples):
            if ask.verify >= 0:
                checked, right = answers[ask.verify], self._qualities[ask.verify]
                votes = checked.votes
                votes.append(self._signals.agrees(truth, checked.arm, checked.sample, ask.arm, len(votes), right))
            if ask.verify >= 0 or ask.thought:
                continue
            sample = samples.get(ask.arm, 0)
            samples[ask.arm] = sample + 1
            tokens = truth.output_tokens[ask.arm]
            quality = self._world.quality_of(truth, ask.arm, sample)
            identity = self._signals.identity(truth, ask.arm, sample)
            if 0 < ask.most_tokens < tokens:
                tokens, quality, identity = ask.most_tokens, 0.0, -1 - len(answers)
            if ask.behind >= 0 and self._qualities[ask.behind] >= quality:
                quality, identity = self._qualities[ask.behind], self._identities[ask.behind]
            label = labels.setdefault(identity, len(labels))
            usd = arm.list_usd(truth.prompt_tokens, tokens)
            answer = Answer(ask.arm, sample, label, tokens, 1e-3 * tokens, usd, 0.1 * tokens)
            answer.ttft_s = 0.1
            if ask.judge:
                answer.score = self._signals.score(truth, ask.arm, sample, quality)
            answers.append(answer)
            self._qualities.append(quality)
            self._identities.append(identity)

    def _given(self, number: int, query: Query, answer: Answer, quality: float) -> None:
        outcome = Outcome(
            query,
            answer.arm,
            quality,
            answer.output_tokens,
            answer.latency_s,
            0.1,
            answer.energy_j,
            answer.list_usd,
            1e-4,
            1,
        )
        self._due.append((number, outcome))

    def _forget(self, query: Query) -> None:
        """Let the router know that a request has come to its end."""
        policies: list[Any] = [self.policy, *([] if self._other is None else [self._other[1]])]
        for policy in policies:
            if hasattr(policy, "forget"):
                with self._checked.complaining(f"`forget` failed for request {query.id}"):
                    policy.forget(query)

    def _tell(self, outcome: Outcome) -> None:
        policies: list[Any] = [self.policy, *(() if self._other is None else (self._other[1],))]
        for policy in policies:
            if hasattr(policy, "feedback"):
                start_ns = thread_time_ns()
                with self._checked.complaining(f"`feedback` failed for request {outcome.query.id}"):
                    policy.feedback(outcome)
                self.spent_ns += thread_time_ns() - start_ns


def _quality(arms: int) -> Quality:
    """Models of rising ability and price, in two domains."""
    models = {
        f"model-{arm}": {
            "ability": 0.5 * arm - 0.5,
            "skills": {"sums": 0.3 * (-1) ** arm},
            "price": {"input": 0.1 * (1 + arm), "output": 0.3 * (1 + arm)},
        }
        for arm in range(arms)
    }
    return Quality.model_validate({"models": models, "domains": {"sums": {"difficulty": 0.5}, "chat": {}}})


def _facts(query: Query, models: ModelsView) -> list[str]:
    """Copies of what a policy could change."""
    values = [query.chance.tolist(), query.output_tokens.tolist(), query.domain, query.difficulty, query.prompt_tokens]
    return [
        repr(value) for value in (*values, models.offered, models.quality.tolist(), models.joules_per_token.tolist())
    ]
