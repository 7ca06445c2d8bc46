"""A language model that thinks about whom to ask, asks, reads, and thinks again."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, best, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Tokens = Annotated[int, Field(ge=1, le=100_000, strict=True, json_schema_extra={"unit": "tokens"})]
_LOW, _HIGH = 0.05, 0.95


class RouterR1Config(PolicyConfig):
    """Parameters of Router-R1."""

    policy_model: str = ""
    """Arm that thinks (the published one has 3B parameters). Empty: the cheapest by the list."""
    turns: Annotated[int, Field(ge=1, le=20, strict=True, json_schema_extra={"unit": "count"})] = 4
    """Models that are asked at most, one after the other."""
    thought_tokens: _Tokens = 200
    """What the policy model writes in a turn (150 to 300)."""
    answer_tokens: _Tokens = 512
    """Longest answer of a model that is asked; one that is cut off is as bad as a wrong one."""
    alpha: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.0
    """Weight of the cost reward against the outcome; the publication studies 0 to 0.9."""
    window: Annotated[int, Field(ge=2, le=100_000, strict=True, json_schema_extra={"unit": "count"})] = 1000
    """Costs that the quantiles of the cost reward are taken of: the last ones."""


class RouterR1:
    """Router-R1: a small model thinks, asks a model, reads its answer, and asks another one until it is content.

    Rule: the policy model writes a thought; the arm with the largest ``(1 - alpha) p + alpha r`` that was not asked yet answers,
    with the predicted chance p and the cost reward ``r = 1 - clip((sqrt(c) - q05) / (q95 - q05), 0, 1)``, c the output price times
    the expected tokens, quantiles over the last costs; the policy model reads the answer in another thought, whose verdict is as
    reliable as the scenario's verifications. A yes ends it, and so does the last turn, then with the answer of the arm with the
    best chance.

    Charged: thoughts and answers as calls, one after the other; the policy model's context grows by all that was written. Its
    tokens often cost more than those of the cheapest model.

    References
    ----------
    Router-R1, arXiv:2506.09033. The trained policy is replaced by the rule that its reward makes best.
    """

    Config: ClassVar = RouterR1Config
    tags: ClassVar[Tags] = Tags(("during",), ("query", "profile"), ("reinforcement",), "step", ("cascade",))
    verifies: ClassVar[bool] = True

    def __init__(self, config: RouterR1Config, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        cheapest = min(range(models.count), key=lambda arm: (usd[arm], models.mean_quality[arm]))
        self._policy = number_of(models, config.policy_model, "router-r1") if config.policy_model else cheapest
        self._prices: list[float] = models.usd_per_output_token.tolist()
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def route(self, query: Query) -> Ask:
        """A first thought."""
        return self._thinks()

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """An answer after a thought, a verdict after an answer, and on after a no."""
        if not answers:
            return self._asks(query, answers)
        newest = len(answers) - 1
        if not answers[newest].votes:
            return self._thinks(newest)
        if answers[newest].votes[-1]:
            return Accept(newest)
        left = self._left(answers)
        if len(answers) >= self._config.turns or not left:
            return Accept(max(range(len(answers)), key=lambda i: (float(query.chance[answers[i].arm]), -i)))
        return self._asks(query, answers)

    def _thinks(self, verify: int = -1) -> Ask:
        """The policy model, or who stands in for it."""
        among = self._models.open()
        arm = self._policy if self._policy in among or not among else among[0]
        return Ask(arm, verify=verify, thought=self._config.thought_tokens)

    def _left(self, answers: Sequence[Answer]) -> list[int]:
        """Arms that were not asked yet."""
        asked = {answer.arm for answer in answers}
        return [arm for arm in self._models.open() if arm not in asked]

    def _asks(self, query: Query, answers: Sequence[Answer]) -> Ask:
        """The arm with the largest reward."""
        config, models = self._config, self._models
        among = self._left(answers) or models.open()
        most, tokens = config.answer_tokens, query.output_tokens.tolist()
        cost = [(price * min(length, most)) ** 0.5 for price, length in zip(self._prices, tokens, strict=True)]
        rewards = self._cost_rewards(cost)
        alpha = config.alpha
        arm = best(
            [(1.0 - alpha) * p + alpha * reward for p, reward in zip(query.chance.tolist(), rewards, strict=True)],
            among,
        )
        self._note(cost[arm])
        return Ask(arm, most_tokens=config.answer_tokens)

    def _cost_rewards(self, cost: list[float]) -> list[float]:
        """One for what is cheap among the last costs, zero for what is dear; among the arms' own before there are two."""
        known = self._sorted if len(self._sorted) > 1 else sorted(cost)
        low, high = known[int(_LOW * len(known))], known[min(int(_HIGH * len(known)), len(known) - 1)]
        if high <= low:
            low, high = min(cost), max(cost)
        if high <= low:
            return [1.0] * len(cost)
        return [1.0 - min(max((value - low) / (high - low), 0.0), 1.0) for value in cost]

    def _note(self, cost: float) -> None:
        self._last.append(cost)
        insort(self._sorted, cost)
        if len(self._last) > self._config.window:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
