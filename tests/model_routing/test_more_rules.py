"""Rules of further model routers, each against its card: known cases, theory, and what it must lead to on a fleet."""

from __future__ import annotations

from math import e, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.errors import ScenarioError
from fleetsim.model_routing.agent_tts import AgentTtsConfig, Choice, done, planned, price
from fleetsim.model_routing.api import Answer, ModelsView, Outcome, Query
from fleetsim.model_routing.graph_router import GraphRouter, GraphRouterConfig
from fleetsim.model_routing.moma import pareto, topsis
from fleetsim.model_routing.online_knapsack import bar
from fleetsim.model_routing.orch import Orch, OrchConfig
from fleetsim.model_routing.pool_inference import PoolInference
from fleetsim.model_routing.route_profile import RouteProfile, RouteProfileConfig, shrunk_towards
from fleetsim.model_routing.tags import Tags
from fleetsim.model_routing.v_0 import V0, V0Config
from fleetsim.plugins import load, names
from fleetsim.quality.irt import area_under_curve
from tests.fleet.test_moves import column, run
from tests.model_routing.test_answering import BIG, SMALL, scenario


def view(quality: Any, usd: tuple[float, ...] = (1.0, 5.0)) -> ModelsView:
    """Models with a quality by domain, whose tokens have a price; nobody looks at their replicas."""
    from fleetsim.quality.api import Arm

    arms = [Arm(i, f"m{i}", f"m{i}", 0, price, price, 0.0, float("inf")) for i, price in enumerate(usd)]
    models = ModelsView(
        arms, [f"d{i}" for i in range(quality.shape[1])], quality, [1.0] * len(arms), lambda arm: Here()
    )
    models.offered = [True] * len(arms)
    return models


class Here:
    """A view of replicas that are there."""

    members = (0,)
    outstanding = (0,)
    now_s = 0.0


def asked(number: int, chance: Any, domain: int = 0, **more: Any) -> Query:
    tokens = np.full(len(chance), 100.0)
    return Query(number, 0.0, 100, None, None, -1, 1.0, float("inf"), domain, 0.0, np.array(chance), tokens, **more)


def told(query: Query, arm: int, quality: float, usd: float = 0.0, latency_s: float = 1.0) -> Outcome:
    return Outcome(query, arm, quality, 100, latency_s, 0.1, 1.0, usd, usd, 1)


def test_every_router_and_controller_says_what_kind_it_is() -> None:
    for kind in ("model_routers", "budgets"):
        for name in names(kind):
            assert isinstance(load(kind, name).tags, Tags), name


def test_analysts_are_those_that_were_worth_most() -> None:
    """EMA: s <- (1 - b) s + b r, for all that gave the answer; those that differed from a right one were wrong."""
    models = view(np.array([[0.5], [0.5], [0.5]]), (1.0, 1.0, 1.0))
    router = Orch(
        OrchConfig(analysts=2, beta=0.1, quality=1.0, latency=0.0, cost=0.0), np.random.default_rng(0), models
    )
    query = asked(1, [0.5, 0.5, 0.5])
    assert [ask.arm for ask in router.route(query)] == [0, 1]
    answers = [Answer(0, 0, 0, 10, 1.0, 0.0, 0.0), Answer(1, 0, 1, 10, 1.0, 0.0, 0.0)]
    assert router.proceed(query, answers).answer == 0
    router.feedback(told(query, 0, 1.0))
    np.testing.assert_allclose(router.scores, [0.55, 0.45, 0.5])
    assert [ask.arm for ask in router.route(query)] == [0, 2]


def test_symphony_finds_who_is_left_when_agents_fail(tmp_path: Path) -> None:
    """The better model fails for all requests from the middle on: within 200 requests the other one has nearly all of them."""
    config = scenario({"policy": "symphony-coord", "discount": 0.98, "latency": 0.0}, 600, 40.0)
    config["quality"]["models"][BIG]["ability"], config["quality"]["models"][SMALL]["ability"] = 3.0, 0.5
    config["quality"]["models"][BIG]["leaves"] = "7.5 s"
    models = column(run(config, tmp_path), "model")
    assert np.mean([model == BIG for model in models[100:250]]) > 0.8
    assert np.mean([model == SMALL for model in models[-100:]]) == 1.0


def test_paths_with_a_matrix_for_each_task_beat_a_shared_one(tmp_path: Path) -> None:
    """Each model is good in one domain: pheromones by type find that, one matrix for all cannot."""
    quality = {}
    for shared in (False, True):
        router = {"policy": "amro-s", "layers": 1, "shared": shared, "cost": 0.0, "latency": 0.0, "load": 0.0}
        config = scenario(router, 800, 60.0)
        config["quality"]["models"][BIG] |= {"ability": 0.0, "skills": {"sums": 3.0, "chat": -3.0}}
        config["quality"]["models"][SMALL] |= {"ability": 0.0, "skills": {"sums": -3.0, "chat": 3.0}}
        config["quality"]["domains"] = {"sums": {}, "chat": {}}
        quality[shared] = np.mean(column(run(config, tmp_path / str(shared)), "quality")[400:])
    assert quality[False] > 1.05 * quality[True]


def test_a_path_is_as_long_as_its_layers_and_gets_better(tmp_path: Path) -> None:
    quality = {}
    for layers in (1, 3):
        result = run(scenario({"policy": "amro-s", "layers": layers}, 200, 20.0), tmp_path / str(layers))
        assert set(column(result, "calls")) == {layers}
        quality[layers] = result.summary["quality_mean"]
    assert quality[3] > quality[1] + 0.1


def test_topsis_and_pareto_of_a_known_case() -> None:
    """Three models, the last beaten by the first; distances by hand."""
    gains, costs = np.array([0.9, 0.6, 0.8]), np.array([4.0, 1.0, 5.0])
    assert pareto(gains.tolist(), costs.tolist()) == [0, 1]
    assert pareto([0.5, 0.5], [1.0, 1.0]) == [0]
    a, b = 0.5 * np.array([0.9, 0.6]) / np.hypot(0.9, 0.6), 0.5 * np.array([4.0, 1.0]) / np.hypot(4.0, 1.0)
    near = np.array([b[0] - b[1], a[0] - a[1]])  # to the ideal (a[0], b[1]); each is best in one column
    far = near[::-1]
    np.testing.assert_allclose(topsis(gains[:2].tolist(), costs[:2].tolist(), 0.5, 0.5), far / (far + near))
    np.testing.assert_allclose(topsis([0.5], [1.0], 0.5, 0.5), [1.0])


def test_users_get_what_they_care_for(tmp_path: Path) -> None:
    """What ratings teach is worth more than the mean user, and nearly as much as knowing everybody."""
    from fleetsim.model_routing.personalized_router import PersonalizedRouter, PersonalizedRouterConfig

    utility = {}
    for known in ("none", "ratings", "all"):
        models = view(np.array([[0.3], [0.9]]))
        models.latency_s = lambda arm, query: (1.0, 12.0)[arm]  # type: ignore[method-assign]
        router = PersonalizedRouter(PersonalizedRouterConfig(users_known=known), np.random.default_rng(3), models)
        rng = np.random.default_rng(4)
        for number in range(6000):
            query = asked(number, [0.3, 0.9])
            query.tenant = f"user {number % 40}"
            arm = router.route(query).arm
            router.feedback(told(query, arm, float(rng.random() < (0.3, 0.9)[arm]), (200, 1000)[arm], (1.0, 12.0)[arm]))
        utility[known] = router.utility / router.rated
    assert utility["none"] + 0.02 < utility["ratings"] <= utility["all"] + 0.01
    assert utility["ratings"] > utility["none"] + 0.8 * (utility["all"] - utility["none"])


def test_settings_of_the_graph_and_models_that_join() -> None:
    models = view(np.array([[0.5], [0.9]]))
    for setting, arm in (("performance", 1), ("balance", 0), ("cost", 0)):
        router = GraphRouter(GraphRouterConfig(setting=setting, noise=0.0), np.random.default_rng(0), models)
        assert router.route(asked(0, [0.5, 0.9])).arm == arm
    models.offered[1] = False
    router = GraphRouter(GraphRouterConfig(retrain_every=50), np.random.default_rng(0), models)
    assert router.table.mean[1, 0] == pytest.approx(0.5)  # as all others are
    for number in range(100):
        router.feedback(told(asked(number, [0.5, 0.9]), 1, 0.9))
    assert router.table.mean[1, 0] == pytest.approx((0.7 * 90 + 10 * 0.7 * 140 / 140) / (0.7 * 100 + 10), abs=0.1)


def test_shrunk_profiles_beat_biased_and_noisy_ones() -> None:
    """Mean squared error of predicted chances: both kinds of profile together are nearer than each alone."""
    rng = np.random.default_rng(2)
    models = view(np.array([[0.5], [0.6]]))
    chances = np.clip(np.array([0.5, 0.6]) + 0.2 * rng.standard_normal((4000, 2)), 0.02, 0.98)
    error = {}
    for profile in ("domain", "query", "both"):
        router = RouteProfile(RouteProfileConfig(profile=profile, neighbours=10), np.random.default_rng(1), models)
        error[profile] = np.mean(
            [(np.array(router.predicted(asked(i, chances[i]))) - chances[i]) ** 2 for i in range(4000)]
        )
    assert error["both"] < 0.75 * min(error["domain"], error["query"])
    assert shrunk_towards(0.5, 0.9, 10, 1e-6) == pytest.approx(0.5)
    assert shrunk_towards(0.5, 0.9, 10**9, 0.2) == pytest.approx(0.9)


def test_a_value_model_sees_more_with_a_longer_context() -> None:
    """The area under its predictions' curve rises with the context; samples go where the outcome is least sure."""
    rng = np.random.default_rng(5)
    chances = np.clip(rng.random((3000, 1)), 0.01, 0.99)
    right = (rng.random(3000) < chances[:, 0]).astype(float)
    area = []
    for calibration in (0, 50, 256):
        models = view(np.array([[0.5]]), (1.0,))
        router = V0(V0Config(calibration=calibration, cost_weight=0.0), np.random.default_rng(1), models)
        noise = router._errors[0] * np.random.default_rng(1).standard_normal(3000)
        odds = np.log(chances[:, 0] / (1.0 - chances[:, 0]))
        area.append(area_under_curve(odds + noise, right))
    assert area[0] + 0.03 < area[1]
    assert area[1] + 0.01 < area[2]
    router = V0(V0Config(samples=4.0), np.random.default_rng(1), view(np.array([[0.5]]), (1.0,)))
    asks = [router.route(asked(i, chances[i])).samples for i in range(3000)]
    assert np.mean(asks) == pytest.approx(4.0, abs=0.3)


def test_a_router_that_thinks_pays_for_it(tmp_path: Path) -> None:
    """Thoughts are calls of the policy model; a larger weight of cost never makes the answers dearer."""
    spent = {}
    for alpha in (0.0, 0.5, 0.9):
        router = {"policy": "router-r1", "policy_model": SMALL, "alpha": alpha, "thought_tokens": 150}
        result = run(scenario(router, 120, 5.0), tmp_path / str(alpha))
        calls = np.array(column(result, "calls"))
        assert set(calls.tolist()) <= {3, 5}  # thought, answer, verdict; and another pair
        made, given = np.array(column(result, "call_output_tokens")), np.array(column(result, "output_tokens"))
        assert (made - given >= 150 * (calls + 1) // 2).all()
        spent[alpha] = result.summary["list_usd"]
    assert spent[0.0] >= spent[0.5] >= spent[0.9]


SIGNALS = {
    "policy": "semantic-router",
    "signals": {
        "sums": {"of": "domain", "values": ["sums"], "latency": 0.012},
        "hard": {"of": "difficulty", "above": 0.3, "latency": 0.05, "usd": 1e-6},
        "unused": {"of": "prompt_tokens", "above": 500.0, "latency": 3.0},
    },
    "conditions": {"tricky": {"all": ["sums", "hard"]}},
    "decisions": {
        "strong": {"any": ["tricky"], "models": [BIG], "priority": 10},
        "rest": {"none": ["tricky"], "models": [SMALL]},
    },
}


def test_signals_become_decisions_and_errors_wrong_routes(tmp_path: Path) -> None:
    """Without errors, requests go where the truth says; a classifier that misses a fifth of the sums sends these astray."""
    share = {}
    for sure in (1.0, 0.8):
        router = {
            **SIGNALS,
            "signals": {**SIGNALS["signals"], "sums": {**SIGNALS["signals"]["sums"], "true_positives": sure}},
        }  # type: ignore[dict-item]
        config = scenario(router, 600, 200.0, quality={"features": {"difficulty_sd": 0.0}})
        result = run(config, tmp_path / str(sure))
        share[sure] = np.mean([model == BIG for model in column(result, "model")])
        waits = np.array(column(result, "ttft_s"))
        assert waits.min() > 0.05  # the slowest signal that is needed, and not the one that is not
        assert waits.min() < 1.0
    assert share[1.0] == pytest.approx(2 / 3 * 0.579, abs=0.06)  # P(N(0.5, 1) > 0.3)
    assert share[0.8] == pytest.approx(0.8 * share[1.0], abs=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decisions": {"x": {"all": ["hrad"]}}}, "no signal or condition is called"),
        ({"signals": {"sums": {"of": "domain", "above": 1.0}}}, "says `values`"),
        (
            {"signals": {"sums": {"of": "domain", "values": ["poems"]}}, "conditions": {}, "decisions": {}},
            "names the domain",
        ),
        ({"decisions": {"x": {"all": ["sums"], "models": ["gpt"]}}}, "names the arm"),
    ],
)
def test_bad_signals_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=words):
        fleetsim.run(scenario({**SIGNALS, **change}), tmp_path / "out")


def test_actions_are_kept_small_where_that_is_safe(tmp_path: Path) -> None:
    """Risky requests go to the strongest model; of the others the small one keeps those of which it is sure."""
    router = {"policy": "adaptive-vlm", "risky": ["sums"], "threshold": 0.5, "hopeless": 0.0}
    config = scenario(router, 300, 60.0, quality={"features": {"difficulty_sd": 0.0}})
    result = run(config, tmp_path)
    domains, models, calls = (column(result, name) for name in ("domain", "model", "calls"))
    assert {model for model, domain in zip(models, domains, strict=True) if domain == "sums"} == {BIG}
    assert {call for call, domain in zip(calls, domains, strict=True) if domain == "sums"} == {1}
    small = [call for call, model in zip(calls, models, strict=True) if model == SMALL]
    assert len(small) > 30
    assert set(small) == {1}
    assert 2 in calls


def test_a_pool_is_known_by_its_first_tokens() -> None:
    """The rate within 10 % after 50 prompts, a queue by counting, and a slowdown to a half within 30 more."""
    rng = np.random.default_rng(8)
    pool = PoolInference()
    for _ in range(50):
        prompt = int(rng.integers(200, 4000))
        pool.started(prompt, 0.02 + prompt / 8000.0 + 0.002 * rng.standard_normal())
        pool.sent += 1
    assert pool.rate == pytest.approx(8000.0, rel=0.1)
    assert pool.prefill_s(4000) == pytest.approx(0.52, rel=0.1)
    assert pool.queue == 50
    assert not pool.slow
    needed = 0
    while not pool.slow:
        needed += 1
        prompt = int(rng.integers(200, 4000))
        pool.started(prompt, 0.02 + prompt / 4000.0 + 0.002 * rng.standard_normal())
    assert needed <= 30


def test_a_gate_keeps_a_cascade_from_waiting(tmp_path: Path) -> None:
    """The same cascade at a load that its dear pool cannot bear: the gate gives cheap answers in time instead."""
    ttft, dear = {}, {}
    for gated in (True, False):
        router = {"policy": "pool-aware-cascade", "threshold": 0.9, "limit": 1.5 if gated else 1e9}
        config = scenario(router, 250, 60.0)
        config["pools"][0]["replicas"] = 1
        config["pools"][0]["engine"]["scheduler"]["max_seqs"] = 4
        result = run(config, tmp_path / str(gated))
        ttft[gated] = np.quantile(column(result, "ttft_s"), 0.95)
        dear[gated] = np.mean([model == BIG for model in column(result, "model")])
    assert 0.02 < dear[True] < 0.8 * dear[False]
    assert ttft[True] < 0.6 * ttft[False]


def test_runaway_sessions_are_held_back() -> None:
    """One session in ten answers at twenty times the length: it is cut, downgraded, ended, and its tokens fall by half."""
    from fleetsim.model_routing.api import Reject
    from fleetsim.model_routing.token_budget import TokenBudget, TokenBudgetConfig

    tokens = {}
    for factor in (1e9, 3.0):
        config = TokenBudgetConfig(factor=factor, cut_tokens=60)
        router = TokenBudget(config, np.random.default_rng(0), view(np.array([[0.4], [0.8]])))
        spent, said = np.zeros(400), {}
        for wave in range(0, 400, 40):
            for turn in range(8):
                for session in range(wave, wave + 40):
                    query = asked(session * 8 + turn, [0.4, 0.8], turn=turn)
                    query.session, query.prompt_tokens = session, 50
                    answer = router.route(query)
                    said.setdefault(session, []).append(answer)
                    if isinstance(answer, Reject):
                        continue
                    wanted = 2000 if session % 10 == 9 else 100
                    made = min(wanted, answer.most_tokens or wanted)
                    spent[session] += 50 + made
                    router.feedback(Outcome(query, answer.arm, 1.0, made, 1.0, 0.1, 1.0, 0.0, 0.0, 1))
        tokens[factor] = np.quantile(spent, 0.99)
        others = [answer for session in range(400) if session % 10 != 9 for answer in said[session]]
        assert all(answer.arm == 1 and not answer.most_tokens for answer in others)
    assert tokens[3.0] < 0.5 * tokens[1e9]
    last = said[399]
    assert isinstance(last[-1], Reject)
    steps = [(answer.arm, answer.most_tokens) for answer in last if not isinstance(answer, Reject)]
    assert list(dict.fromkeys(steps)) == [(1, 0), (1, 60), (0, 60)]


def test_joules_are_saved_down_to_the_floor(tmp_path: Path) -> None:
    """A higher floor costs more energy; on average it is kept, where that is what is asked for."""
    energy, quality = [], []
    for floor in (0.0, 0.45, 1.0):
        config = scenario({"policy": "energy-aware", "floor": floor, "kept": "mean", "rate": 0.1}, 600, 30.0)
        result = run(config, tmp_path / str(floor))
        energy.append(result.summary["energy_j"])
        quality.append(result.summary["quality_mean"])
        share = np.mean([model == SMALL for model in column(result, "model")])
        assert share == 1.0 if floor == 0.0 else share < 1.0
    assert quality[0] < quality[1] < quality[2]
    assert quality[1] == pytest.approx(0.45, abs=0.05)


def test_the_knapsack_keeps_its_worst_case() -> None:
    """Items whose worth rises until it stops: the ratio to hindsight is that of theory, 1 / (1 + ln(U / L)), within 2 %."""
    least, most, size = 1.0, 50.0, 1e-5
    bound = 1.0 / (1.0 + log(most / least))
    assert bar(bound, least, most) == pytest.approx(least)
    assert bar(1.0, least, most) == pytest.approx(most)
    assert bar(0.9, least, most) == pytest.approx((most * e / least) ** 0.9 * least / e)
    filled = gained = 0.0
    worst = 1.0
    for worth in np.geomspace(least, most, 400):
        for _ in range(100_000):  # as many items of each worth as would fill the knapsack, if they were taken
            if worth < bar(filled, least, most) or filled + size > 1.0:
                break
            filled += size
            gained += size * worth
        worst = min(worst, gained / worth)
    assert worst >= bound * 0.98


def test_dear_calls_stay_within_their_budget(tmp_path: Path) -> None:
    config = scenario({"policy": "online-knapsack", "budget": 0.03, "period": 1e6, "least": 1.0}, 600, 10.0)
    result = run(config, tmp_path)
    usd, models = np.array(column(result, "list_usd")), np.array(column(result, "model"))
    dear = usd[models == BIG].sum()
    assert 0.02 < dear * 0.8 < 0.0345  # the dear one costs five times as much: four fifths of it count
    assert (models == SMALL).sum() > 100


def test_stages_share_a_budget() -> None:
    """The greedy plan is within the budget and near the best of all plans; more budget is never worse."""
    quality, usd = [0.35, 0.6, 0.8], [(1e-5, 2e-5), (4e-5, 1e-4), (2e-4, 5e-4)]
    for budget in (2e-4, 8e-4, 3e-3):
        value = {}
        for search in ("greedy", "grid"):
            config = AgentTtsConfig(stages=3, budget=budget, most=6, search=search)
            plan = planned(config, [0, 1, 2], quality, usd)
            assert price(plan, usd) <= budget
            value[search] = done(plan, quality, 0.5)
        assert 0.93 * value["grid"] <= value["greedy"] <= value["grid"] + 1e-12
    assert done((Choice(2, 1),), quality, 0.5) == pytest.approx(0.8)
    assert done((Choice(0, 2), Choice(1, 1)), quality, 0.5) == pytest.approx(0.6 * (0.5 + 0.5 * (1 - 0.65**2)))


def test_turns_are_stages(tmp_path: Path) -> None:
    config = scenario({"policy": "agent-tts", "stages": 3, "budget": 0.0008}, 60, 10.0)
    turns = {"distribution": "fixed", "value": 3}
    config["workload"]["sessions"] = {"turns": turns, "think_time": "0.5 s", "max_context_tokens": 1500}
    result = run(config, tmp_path)
    calls: dict[int, set[int]] = {}
    for turn, count in zip(column(result, "turn"), column(result, "calls"), strict=True):
        calls.setdefault(turn, set()).add(count)
    assert all(len(counts) == 1 for counts in calls.values())
    assert sum(counts.pop() for counts in calls.values()) > 3
