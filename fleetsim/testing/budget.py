"""Checker of budget controllers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetsim.model_routing.budgeted import Budgeted
from fleetsim.model_routing.frugal_gpt import FrugalGpt, FrugalGptConfig
from fleetsim.model_routing.single import Single, SingleConfig
from fleetsim.testing.model_router import Course
from fleetsim.testing.report import Config, Policy, Report

_ARMS = (1, 3)
_LOADS = (0, 20, 200)
"""Requests at each replica, of 16 seats."""
_ROUTERS: tuple[tuple[Any, Any], ...] = ((Single, SingleConfig()), (FrugalGpt, FrugalGptConfig()))


def check_budget(policy: type | str, config: Config = None) -> Report:
    """Try a budget controller behind routers that ask one arm and that ask several, with models whose answers are drawn.

    Checked are: every answer is an `Effort` of at least one sample and one round; each request comes to an end with an answer; the
    same seed gives the same answers, whatever other instances do; neither the query nor the view of the models is changed; no load
    and no chance of 0 or 1 makes it fail.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per request of router and controller together.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    costs = {}
    for inner, parameters in _ROUTERS:
        checked = Behind(inner, parameters, policy, config)
        for arms in _ARMS:
            for load in _LOADS:
                course = Course(checked, arms, 3, load=load)
                expected = course.steps()
                if any(step[1] == "reject" for step in expected):
                    checked.fail("a budget controller cannot reject")
                if Course(checked, arms, 3, beside=True, load=load).steps() != expected:
                    checked.fail(
                        "answers otherwise with the same seed: draw only from the given `rng`, keep state in the instance"
                    )
        costs[f"{arms} models, {inner.__name__}"] = course.us_per_request()
        checked.surely()
    checked.passed("every answer is an effort of at least one sample and one round")
    checked.passed("each request comes to an end with an answer")
    checked.passed("the same seed gives the same answers, with other instances beside it or without")
    checked.passed("query and view are left as they are")
    checked.passed("no load and no chance makes it fail")
    return checked.report(costs)


class Behind(Policy):
    """A controller under test, behind a router."""

    def __init__(self, router: Any, parameters: Any, policy: type | str, config: Config) -> None:
        super().__init__("budgets", policy, config, ["spend"])
        self._router, self._parameters = router, parameters

    def create(self, *args: Any) -> Any:
        """The router, which spends what the controller grants."""
        rng, models = args
        return Budgeted(self._router(self._parameters, rng, models), super().create(rng, models), self.name)

    def surely(self) -> None:
        """Try chances of 0 and 1."""
        course = Course(self, 2, 0)
        router: Budgeted = course.policy
        for chance in (0.0, 1e-12, 1.0):
            query = course.query(0)[1]
            query.chance = np.full(2, chance)
            with self.complaining(f"`spend` failed with a chance of {chance:g}"):
                router.route(query)
