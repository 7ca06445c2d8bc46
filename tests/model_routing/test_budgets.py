"""What answers may take: samples, rounds and tokens that a budget controller grants, against theory and known cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.errors import PolicyError, ScenarioError
from fleetsim.model_routing.api import ModelsView, Query
from fleetsim.model_routing.budgets.api import Effort, LoadConfig, shrunk
from fleetsim.model_routing.budgets.ttspm import saturation
from fleetsim.plugins import PolicyConfig, names
from fleetsim.testing import check_budget, check_model_router
from tests.fleet.test_moves import column, run, same_in_single_steps
from tests.model_routing.test_answering import BIG, HERE, SMALL, scenario

PERFECT = {"judge": {"auc": 0.999999, "time": "0 s"}}


@pytest.mark.parametrize("name", names("budgets"))
def test_every_controller_keeps_the_rules(name: str) -> None:
    assert check_budget(name).checks


def test_the_checker_finds_controllers_that_break_them() -> None:
    class Nothing(PolicyConfig):
        """Nothing to set."""

    class None_:
        Config = Nothing

        def __init__(self, config: Any, rng: Any, models: ModelsView) -> None:
            self.asked = 0

        def spend(self, query: Query, arm: int) -> Effort:
            return Effort(samples=0)

    class Changing(None_):
        def spend(self, query: Query, arm: int) -> Effort:
            query.chance[arm] = 0.5
            return Effort()

    with pytest.raises(PolicyError, match="answered Effort"):
        check_budget(None_)
    with pytest.raises(PolicyError, match="changes the query"):
        check_budget(Changing)


def test_saturation_points_are_the_published_ones() -> None:
    points = {0.05: 32, 0.1: 22, 0.3: 10, 0.5: 6, 0.8: 3}
    assert {chance: saturation(chance) for chance in points} == points
    assert saturation(0.0) == saturation(0.005) == saturation(1.0) == 1
    for chance in (0.02, 0.3, 0.77):  # the gain of the next answer, before and after
        n = saturation(chance)
        assert chance * (1 - chance) ** n <= 0.01 < chance * (1 - chance) ** (n - 1)


def test_budgets_fall_with_the_load() -> None:
    config = LoadConfig(calm=0.5, busy=1.5)
    assert [shrunk(9, load, config) for load in (0.0, 0.5, 1.0, 1.25, 1.5, float("inf"))] == [9, 9, 5, 3, 1, 1]
    assert shrunk(1, 0.0, config) == 1


def test_samples_with_a_judge_that_never_errs_and_rounds_of_thinking_are_right_alike(tmp_path: Path) -> None:
    """Both draw the same answers, so that every request is answered as well; the mean is what the chances say."""
    config = scenario({"policy": "single", "model": SMALL}, 300, 100.0, quality=PERFECT)
    budgets: dict[str, Any] = {
        "samples": {"policy": "best-of-n", "samples": 4, "calm": 1e9, "busy": 1e9},
        "rounds": {"policy": "rethinking", "rounds": 4, "settled": 0, "calm": 1e9, "busy": 1e9},
    }
    results = {}
    for name, budget in budgets.items():
        config["gateway"]["budget"] = budget
        results[name] = run(config, tmp_path / name)
        assert set(column(results[name], "calls")) == {4}
    quality = column(results["samples"], "quality")
    assert quality == column(results["rounds"], "quality")
    del config["gateway"]["budget"]
    once = column(run(config, tmp_path / "once"), "quality")
    assert all(more >= one for more, one in zip(quality, once, strict=True))
    # F(N) = 1 - (1 - p)^N over abilities that are -0.7 below difficulties of N(0.5, 1) and N(-0.5, 1)
    rng = np.random.default_rng(0)
    b = rng.normal(np.where(rng.random(200_000) < 2 / 3, 0.5, -0.5), 1.0)
    p = 1.0 / (1.0 + np.exp(-np.exp(0.3 * rng.normal(size=b.size)) * (-0.7 - b)))
    assert np.mean(quality) == pytest.approx(np.mean(1.0 - (1.0 - p) ** 4), abs=3 * 0.5 / 300**0.5)
    assert np.mean(once) == pytest.approx(np.mean(p), abs=3 * 0.5 / 300**0.5)


def test_a_context_grows_by_what_was_thought(tmp_path: Path) -> None:
    config = scenario({"policy": "single", "model": BIG}, 30, 0.2)
    config["gateway"]["budget"] = {"policy": "rethinking", "rounds": 3, "settled": 0}
    result = same_in_single_steps(config, tmp_path)
    prompts, outputs = np.array(column(result, "prompt_tokens")), np.array(column(result, "call_output_tokens"))
    calls = np.array(column(result, "call_prompt_tokens"))
    assert ((calls > 3 * prompts) & (calls < 3 * prompts + 2 * outputs)).all()
    computed = sum(result.table("replicas")["prompt_tokens"].to_pylist())
    assert prompts.sum() <= computed < calls.sum()  # keys and values of what was written are found again


def test_what_is_cut_off_is_no_answer(tmp_path: Path) -> None:
    config = scenario({"policy": "single", "model": BIG}, 100, 20.0)
    config["gateway"]["budget"] = {"policy": "rethinking", "rounds": 1, "most_tokens": 40}
    result = same_in_single_steps(config, tmp_path)
    outputs, quality = np.array(column(result, "output_tokens")), np.array(column(result, "quality"))
    assert outputs.max() == 40
    assert quality[outputs == 40].mean() < 0.05
    assert quality[outputs < 40].mean() > 0.3


def test_training_for_shorter_answers_shortens_them_as_published(tmp_path: Path) -> None:
    """HBPO: 60.6 % fewer tokens on average (3 points), least for hard requests; DRQA: a third fewer. Quality is as it was."""
    ratios, quality = {}, {}
    for shortening in (None, "hbpo", "drqa"):
        config = scenario({"policy": "single", "model": BIG}, 600, 200.0, quality={"length_slope": 0.0})
        config["workload"]["output_tokens"] = {"distribution": "fixed", "value": 1000}
        config["workload"]["prompt_tokens"] = {"distribution": "fixed", "value": 10}
        config["quality"]["models"][BIG]["shortening"] = shortening
        result = run(config, tmp_path / str(shortening))
        ratios[shortening] = np.array(column(result, "output_tokens")) / 1000
        quality[shortening] = column(result, "quality")
    assert (ratios[None] == 1.0).all()
    assert ratios["hbpo"].mean() == pytest.approx(0.394, abs=0.03)
    assert ratios["hbpo"].min() == pytest.approx(0.25, abs=0.01)
    assert ratios["hbpo"].max() == pytest.approx(0.8, abs=0.01)
    assert (ratios["drqa"] == 0.675).all()
    assert quality[None] == quality["hbpo"] == quality["drqa"]
    right = np.array(quality[None]) == 1.0
    assert ratios["hbpo"][right].mean() < ratios["hbpo"][~right].mean()


def test_votes_help_who_is_mostly_right(tmp_path: Path) -> None:
    """A model that is right more often than it repeats one wrong answer gains by voting, another one does not gain by it."""
    gains = {}
    for ability, coincide in ((0.5, 0.2), (-2.0, 1.0)):
        config = scenario({"policy": "single", "model": BIG}, 300, 100.0)
        config["quality"]["models"][BIG]["ability"] = ability
        config["quality"]["wrong_answers"] = {"coincide": coincide}
        alone = np.mean(column(run(config, tmp_path / f"alone{ability}"), "quality"))
        config["gateway"]["budget"] = {"policy": "self-consistency", "samples": 9, "calm": 1e9, "busy": 1e9}
        gains[ability] = np.mean(column(run(config, tmp_path / f"vote{ability}"), "quality")) - alone
    assert gains[0.5] > 0.05
    assert gains[-2.0] < 0.02


def test_a_budget_sees_the_load(tmp_path: Path) -> None:
    """The same requests at ten times the rate get fewer answers each."""
    calls = {}
    for rate in (2.0, 60.0):
        config = scenario({"policy": "single", "model": BIG}, 150, rate)
        config["gateway"]["budget"] = {"policy": "ttspm", "most": 8, "calm": 0.1, "busy": 0.5}
        calls[rate] = np.mean(column(run(config, tmp_path / str(rate)), "calls"))
    assert calls[2.0] > 1.5 * calls[60.0]


def test_models_think_for_the_router_alone(tmp_path: Path) -> None:
    """A thought, an answer of at most 60 tokens, a verdict of 25, and the answer thought over: four calls, two answers."""
    result = same_in_single_steps(scenario({"policy": f"{HERE}:Thoughtful"}, rate=5.0), tmp_path)
    assert set(column(result, "calls")) == {4}
    made, given = np.array(column(result, "call_output_tokens")), np.array(column(result, "output_tokens"))
    assert ((made - given >= 40 + 25 + 1) & (made - given <= 40 + 25 + 60)).all()
    assert check_model_router(f"{HERE}:Thoughtful").checks


def test_a_budget_needs_models(tmp_path: Path) -> None:
    config = scenario("single")
    del config["gateway"]["model_router"], config["quality"]
    config["gateway"]["budget"] = "best-of-n"
    with pytest.raises(ScenarioError, match="budget is spent on answers"):
        fleetsim.run(config, tmp_path)
