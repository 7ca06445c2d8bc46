"""What model routers compute on lists and step by step, against the plain formulas with NumPy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc

from fleetsim.model_routing.adaptive_consistency import AdaptiveConsistency, AdaptiveConsistencyConfig
from fleetsim.model_routing.amro_s import AmroS, AmroSConfig, Trail
from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, best
from fleetsim.model_routing.personalized_router import PersonalizedRouter, PersonalizedRouterConfig
from fleetsim.model_routing.route_balance import RouteBalance, RouteBalanceConfig
from fleetsim.model_routing.route_profile import binomial
from fleetsim.model_routing.symphony_coord import form
from fleetsim.model_routing.thompson import Thompson, ThompsonConfig
from tests.model_routing.test_more_rules import Here, asked, told, view

CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


@given(
    seed=st.integers(0, 10_000), kinds=st.integers(1, 6), arms=st.integers(1, 8), alpha=st.sampled_from([1.0, 0.5, 2.0])
)
def test_trails_are_the_belief_times_the_pheromone(seed: int, kinds: int, arms: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    sure = 0.9793 if kinds > 1 else 1.0
    unsure = (1.0 - 0.9793) / max(kinds - 1, 1)
    beliefs = np.full((kinds, kinds), unsure)
    np.fill_diagonal(beliefs, sure)
    tau, trail = np.ones((kinds, arms)), Trail(kinds, arms)
    for _ in range(60):
        arm, kind, deposit = int(rng.integers(arms)), int(rng.integers(kinds)), float(rng.random())
        tau[:, arm] = np.clip(0.9 * tau[:, arm] + deposit * beliefs[kind], 0.05, 5.0)
        trail.walk(arm, 0.9, [deposit * (unsure + (sure - unsure) * (k == kind)) for k in range(kinds)], alpha)
    np.testing.assert_allclose(trail.tau, tau, **CLOSE)
    for kind in range(kinds):
        np.testing.assert_allclose(trail.seen(kind, unsure, sure - unsure), beliefs[kind] @ tau**alpha, **CLOSE)


@pytest.mark.parametrize("shared", [False, True])
def test_the_edges_of_a_path_get_its_deposit(shared: bool) -> None:
    """``(1 - rho) tau + rho pi_k z / (1 + cost)`` of every edge of the path, and of no other."""
    models = view(np.array([[0.5, 0.5], [0.5, 0.5]]), (1.0, 2.0))
    router = AmroS(AmroSConfig(shared=shared, latency=0.0, load=0.0), np.random.default_rng(3), models)
    query = asked(1, [0.5, 0.5], domain=1)
    path: list[int] = []
    answers: list[Answer] = []
    said = router.route(query)
    while isinstance(said, Ask):
        path.append(said.arm)
        answers.append(Answer(said.arm, 0, 0, 100, 1.0, 0.0, 0.0))
        said = router.proceed(query, answers)
    assert len(path) == 3
    router.feedback(told(query, path[-1], 0.9, usd=600.0))
    cost = 600.0 / (3 * 2.0 * 200)
    beliefs = [1.0] if shared else [1.0 - 0.9793, 0.9793]
    before = 0
    for layer, arm in enumerate(path):
        for place in range(2):
            for other in range(2):
                trail = router.trails[layer][place]
                walked = (place, other) == (before, arm)
                expected = [0.9 + 0.1 * belief * 0.9 / (1.0 + cost) if walked else 1.0 for belief in beliefs]
                np.testing.assert_allclose([tau[other] for tau in trail.tau], expected, **CLOSE)
        before = arm


@given(seed=st.integers(0, 10_000))
def test_a_quadratic_form_needs_half_the_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    half, x = rng.normal(size=(5, 5)), rng.normal(size=5)
    matrix = half @ half.T
    np.testing.assert_allclose(form(matrix.tolist(), x.tolist()), x @ matrix @ x, rtol=1e-12, atol=1e-10)


@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.05, 0.1, 0.5]))
def test_ratings_are_a_ridge_regression(seed: int, noise: float) -> None:
    """What is believed of a user is the solution of his normal equations, begun where he was met."""
    rng = np.random.default_rng(seed)
    models = view(np.array([[0.5], [0.7]]), (1.0, 2.0))
    models.latency_s = lambda arm, query: 2.0 + arm  # type: ignore[method-assign]
    router = PersonalizedRouter(PersonalizedRouterConfig(rating_noise=noise), np.random.default_rng(seed), models)
    ratings = np.random.default_rng(seed)
    ratings.integers(1 << 62)
    matrix, moment = np.eye(3) / 0.3**2, np.full(3, 1 / 3) / 0.3**2
    for number in range(40):
        query = asked(number, rng.random(2))
        router.route(query)
        quality, usd, latency_s = float(rng.random()), 400.0 * float(rng.random()), 30.0 * float(rng.random())
        router.feedback(told(query, 0, quality, usd=usd, latency_s=latency_s))
        user = router.users.get(0)
        assert user is not None
        x = np.array([quality, 1.0 - usd / 400.0, 1.0 - latency_s / 30.0])
        rating = float(np.dot(user.true, x)) + noise * float(ratings.standard_normal())
        matrix, moment = matrix + np.outer(x, x) / noise**2, moment + x * rating / noise**2
    np.testing.assert_allclose(user.inverse, np.linalg.inv(matrix), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(user.mean, np.linalg.solve(matrix, moment), rtol=1e-8, atol=1e-10)


def test_thompsons_noise_is_what_single_draws_give() -> None:
    """Drawn many at a time it is the same sequence, and with nothing known the largest number decides."""
    models = view(np.full((3, 2), 0.5), (1.0, 1.0, 1.0))
    router = Thompson(ThompsonConfig(), np.random.default_rng(9), models)
    single = np.random.default_rng(9)
    chosen = [router.route(asked(number, [0.5] * 3)).arm for number in range(200)]
    assert chosen == [int(single.standard_normal(3).argmax()) for _ in range(200)]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_votes_are_counted_as_they_are(labels: list[int]) -> None:
    router = AdaptiveConsistency(
        AdaptiveConsistencyConfig(most=12), np.random.default_rng(0), view(np.array([[0.5], [0.7]]))
    )
    answers = [Answer(1, i, label, 10, 1.0, 0.0, 0.0) for i, label in enumerate(labels)]
    (leading, votes), (_, second) = [*Counter(labels).most_common(2), (None, 0)][:2]
    enough = 1.0 - betainc(votes + 1, second + 1, 0.5) > 0.95 or len(labels) == 12
    expected = Accept(labels.index(leading)) if enough else Ask(1)
    assert router.proceed(asked(1, [0.5, 0.7]), answers) == expected


@given(seed=st.integers(0, 10_000), quality=st.sampled_from(["raw", "min-max"]), away=st.booleans())
def test_route_balance_is_its_formula(seed: int, quality: Any, away: bool) -> None:
    rng = np.random.default_rng(seed)
    models = view(np.full((5, 1), 0.5), tuple(rng.random(5)))
    seconds = np.where(rng.random(5) < 0.2, np.inf, rng.random(5))
    models.latency_s = lambda arm, query: float(seconds[arm])  # type: ignore[method-assign]
    models.offered[0] = not away
    among = models.open()
    query = asked(1, rng.random(5))
    chance, usd = query.chance, models.usd(query)
    if quality == "min-max":
        low, high = chance[among].min(), chance[among].max()
        chance = (chance - low) / (high - low)
    slow = np.where(np.isfinite(seconds), seconds, 0.0)
    slow = slow / max(slow[among].max(), 1e-300)
    scores = (chance - usd / usd[among].max() - slow) / 3
    router = RouteBalance(RouteBalanceConfig(quality=quality), np.random.default_rng(0), models)
    assert router.route(query).arm == best(scores, among)


def test_similar_requests_are_drawn_as_one_by_one() -> None:
    """A block of uniform numbers is the sequence of single ones."""
    block, single = np.random.default_rng(4), np.random.default_rng(4)
    assert [binomial(10, 0.3, u) for u in block.random(500).tolist()] == [
        binomial(10, 0.3, single.random()) for _ in range(500)
    ]


@given(st.lists(st.lists(st.integers(0, 90), max_size=4), min_size=1, max_size=5))
def test_loads_of_several_are_those_of_each(outstanding: list[list[int]]) -> None:
    """Requests over seats of those that are there: of one, of several, of none, and of arms nobody has looked at before."""
    models = view(np.full((len(outstanding), 1), 0.5), (1.0,) * len(outstanding))
    models.seats = tuple(3 + arm for arm in range(len(outstanding)))
    models._replicas = lambda arm: Seen(outstanding[arm])  # type: ignore[assignment, return-value]
    expected = [
        sum(there) / (len(there) * (3 + arm)) if there else float("inf") for arm, there in enumerate(outstanding)
    ]
    assert models.loads(range(len(outstanding))) == expected
    assert [models.load(arm) for arm in range(len(outstanding))] == expected


class Seen(Here):
    """Replicas with so many requests each."""

    def __init__(self, outstanding: list[int]) -> None:
        self.members, self.outstanding = tuple(range(len(outstanding))), tuple(outstanding)  # type: ignore[assignment]


def test_views_are_told_the_time_when_loads_are_looked_at() -> None:
    models: ModelsView = view(np.full((2, 1), 0.5))
    models.now_s = 3.5
    models.loads([0, 1])
    assert [models.replicas(arm).now_s for arm in range(2)] == [3.5, 3.5]
    models.now_s = 4.5
    models.loads([1])
    assert models._views[1].now_s == 4.5
