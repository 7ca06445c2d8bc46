"""The public checker of placements: ours pass, and each kind of mistake is told."""

from __future__ import annotations

from typing import Any

import pytest

from fleetsim.errors import PolicyError
from fleetsim.placement.api import Decision, Load, Send
from fleetsim.placement.on_demand import OnDemand
from fleetsim.plugins import names
from fleetsim.testing import check_placement


@pytest.mark.parametrize("policy", names("placements"))
def test_ours_keep_the_rules(policy: str) -> None:
    report = check_placement(policy)
    assert len(report.checks) >= 5
    assert all(cost > 0 for cost in report.us_per_decision.values())


class Forgetful(OnDemand):
    """Sends every other request."""

    def arrived(self, request: Any, now_s: float) -> None:
        if request.id % 2:
            super().arrived(request, now_s)


class Peeking(OnDemand):
    """Looks at the true output length."""

    def decide(self, now_s: float) -> Decision:
        if sum(view._request.output_tokens for place in self.places for view in place.sent.values()) % 2:
            return Decision()
        return super().decide(now_s)


class Sharing(OnDemand):
    """Keeps state in its class."""

    calls = 0

    def decide(self, now_s: float) -> Decision:
        Sharing.calls += 1
        decision = super().decide(now_s)
        return Decision([*decision.actions, Load(0, f"llm-{Sharing.calls // 7 % 2}")])


class Wrong(OnDemand):
    """Names a replica that is not there."""

    def decide(self, now_s: float) -> Decision:
        return Decision([Send(0, 99)])


class Foreign(OnDemand):
    """Loads what no replica can hold."""

    def decide(self, now_s: float) -> Decision:
        return Decision([Load(0, "another")])


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Forgetful, "never sends"),
        (Peeking, "output"),
        (Sharing, "same seed"),
        (Wrong, "there are 2 replicas"),
        (Foreign, "can hold"),
    ],
)
def test_mistakes_are_told(policy: type, told: str) -> None:
    with pytest.raises(PolicyError, match=told):
        check_placement(policy)
