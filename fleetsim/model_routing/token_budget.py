"""Sessions that use far more tokens than others get less and less."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query, Reject, best, number_of
from fleetsim.model_routing.pairs import Remembered
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_TURNS = 64


class TokenBudgetConfig(PolicyConfig):
    """Parameters of token budgets."""

    model: str = ""
    """Arm for sessions within their budget. Empty: the one with the highest predicted chance."""
    factor: Annotated[float, Field(gt=0)] = 3.0
    """A session may use so many times what `quantile` of the others used up to its turn."""
    quantile: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.9
    """Of the tokens of all sessions at the same turn."""
    window: Annotated[int, Field(ge=10, le=100_000, strict=True, json_schema_extra={"unit": "count"})] = 500
    """Sessions that the quantile is taken of: the last ones at each turn (assumption)."""
    least: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 20
    """Sessions before which nobody is over budget (assumption)."""
    cut_tokens: Annotated[int, Field(ge=1, le=1_000_000, strict=True, json_schema_extra={"unit": "tokens"})] = 128
    """Longest answer of a session that is cut (assumption); one that is longer is as bad as a wrong one."""


class TokenBudget:
    """Token budgets of sessions: who uses more than three times what is usual is cut, downgraded, and ended at last.

    Rule: a session's tokens, prompts and answers, are compared with the quantile of those of the sessions at the same turn. Each
    time that it is over `factor` times that, it goes one step on: its answers are cut to `cut_tokens`; then also given by the arm
    with the lowest list price; then it is turned away with the reason ``token-budget``. It never comes back. Requests without a
    session are never over budget.

    Charged: nothing. Answers count once they are reported (the scenario's feedback). Not modelled: the first published step, fewer
    tools, and compressed prompts; answers are cut in their place.

    References
    ----------
    Workload-Router-Pool, arXiv:2603.21354, direction 5.
    """

    Config: ClassVar = TokenBudgetConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "user"), ("rule",), "step", ("single", "budget"))

    def __init__(self, config: TokenBudgetConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._named = number_of(models, config.model, "token-budget") if config.model else -1
        self._cost = -(models.usd_per_prompt_token + models.usd_per_output_token) * 1e6
        self._tokens: Remembered[int] = Remembered()
        self._steps: Remembered[int] = Remembered()
        self._last: list[deque[int]] = [deque() for _ in range(_TURNS)]
        self._sorted: list[list[int]] = [[] for _ in range(_TURNS)]

    def route(self, query: Query) -> Ask | Reject:
        """As the session's step says."""
        step = self._step(query) if query.session >= 0 else 0
        if step >= 3:
            return Reject("token-budget")
        most = self._config.cut_tokens if step else 0
        among = self._models.open()
        if step >= 2:
            return Ask(best(self._cost, among), most_tokens=most)
        return Ask(self._named if self._named in among else best(query.chance, among), most_tokens=most)

    def feedback(self, outcome: Outcome) -> None:
        """An answer counts."""
        session = outcome.query.session
        if session >= 0:
            self._tokens.keep(session, (self._tokens.get(session) or 0) + outcome.output_tokens)

    def _step(self, query: Query) -> int:
        """How far a session has come."""
        session, turn = query.session, min(query.turn, _TURNS - 1)
        tokens = (self._tokens.get(session) or 0) + query.prompt_tokens
        self._tokens.keep(session, tokens)
        step = self._steps.get(session) or 0
        others = self._sorted[turn]
        if len(others) >= self._config.least:
            usual = others[min(int(self._config.quantile * len(others)), len(others) - 1)]
            if tokens > self._config.factor * usual:
                step += 1
                self._steps.keep(session, step)
        insort(others, tokens)
        last = self._last[turn]
        last.append(tokens)
        if len(last) > self._config.window:
            del others[bisect_left(others, last.popleft())]
        return step
