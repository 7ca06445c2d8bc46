"""The hidden truth about requests, what is seen of it, and how it is fitted to tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleetsim.calibration.quality_fit import TABLES, Answers, fit, held_out_error
from fleetsim.catalog.data import names
from fleetsim.errors import DataError
from fleetsim.quality.answers import Signals, zipf_of
from fleetsim.quality.draws import Draws, key_of, uniform
from fleetsim.quality.irt import IrtWorld, area_under_curve
from fleetsim.quality.outcomes import OutcomeWorld, read_outcomes
from fleetsim.quality.profile import load_quality
from fleetsim.scenario.quality import Quality, WrongAnswers
from tests.fleet.test_moves import column, run
from tests.model_routing.test_answering import BIG, SMALL, scenario

DATA = os.environ.get("FLEETSIM_DATA")


def quality(**changes: Any) -> Quality:
    models = {"a": {"ability": -0.5, "budgets": (0, 1024)}, "b": {"ability": 1.0, "skills": {"sums": -1.0}}}
    domains = {"sums": {"difficulty": 0.5, "share": 2.0}, "chat": {"difficulty": -1.0, "spread": 0.5}}
    return Quality.model_validate({"models": models, "domains": domains, **changes})


def truths(config: Quality, count: int = 4000, seed: int = 3) -> tuple[IrtWorld, list[Any]]:
    world = IrtWorld(config, seed)
    return world, [world.meet(i, None, 100, 100) for i in range(count)]


def test_draws_depend_on_seed_name_and_number_alone() -> None:
    both, one = Draws(5, ["x", "y"]), Draws(5, ["y"])
    np.testing.assert_array_equal(both.block(100, 50)[:, 1], one.block(100, 50)[:, 0])
    np.testing.assert_array_equal(both.block(0, 150)[100:], both.block(100, 50))
    assert uniform(key_of(5, "y"), 120) == one.block(120, 1)[0, 0]
    values = both.block(0, 20_000).ravel()
    assert 0.0 < values.min() < 1e-3
    assert values.mean() == pytest.approx(0.5, abs=0.01)


def test_another_model_beside_changes_nothing_for_the_others() -> None:
    _, before = truths(quality(), 300)
    config = quality()
    more = Quality.model_validate(
        {**config.model_dump(by_alias=True), "models": {"c": {"ability": 3.0}, **config.model_dump()["models"]}}
    )
    _, after = truths(more, 300)
    for x, y in zip(before, after, strict=True):
        assert x.difficulty == y.difficulty
        assert x.quality.tolist() == y.quality.tolist()[1:]


def test_answers_are_as_good_as_the_profile_says() -> None:
    world, met = truths(quality(), 20_000)
    domain = np.array([truth.domain for truth in met])
    right = np.array([truth.quality for truth in met])
    assert (domain == 0).mean() == pytest.approx(2 / 3, abs=0.01)
    for k in range(2):
        np.testing.assert_allclose(right[domain == k].mean(axis=0), world.profile[:, k], atol=0.015)
    assert (world.profile[1] > world.profile[0]).all()  # reasoning helps
    longer = [truth.output_tokens[1] - truth.output_tokens[0] for truth in met]
    assert 256 <= min(longer) < max(longer) <= 1024


def test_what_is_seen_is_calibrated_and_as_sharp_as_it_is_said_to_be() -> None:
    for auc in (0.68, 0.75):
        _, met = truths(quality(features={"auc": auc}), 20_000)
        seen, right = (
            np.array([values(truth) for truth in met]) for values in (lambda t: t.seen.chance, lambda t: t.quality)
        )
        areas = [area_under_curve(seen[:, arm], right[:, arm]) for arm in range(3)]
        assert np.mean(areas) == pytest.approx(auc, abs=0.012)
        for arm in range(3):
            for low in np.arange(0.1, 0.9, 0.2):
                rows = (seen[:, arm] >= low) & (seen[:, arm] < low + 0.2)
                if rows.sum() > 500:
                    assert right[rows, arm].mean() == pytest.approx(seen[rows, arm].mean(), abs=0.05)


def test_domains_are_mistaken_as_often_as_is_said() -> None:
    _, met = truths(quality(features={"domain_accuracy": 0.8}), 10_000)
    assert np.mean([truth.domain == truth.seen.domain for truth in met]) == pytest.approx(0.8, abs=0.015)


def test_a_judge_is_as_good_as_its_area_under_the_curve() -> None:
    for auc in (0.6, 0.9):
        config = quality(judge={"auc": auc})
        world, met = truths(config, 6000)
        signals = Signals(config, 3, world)
        score = np.array([signals.score(truth, 0, 0) for truth in met])
        assert area_under_curve(score, np.array([truth.quality[0] for truth in met])) == pytest.approx(auc, abs=0.015)


def test_wrong_answers_coincide_as_often_as_is_said() -> None:
    for coincide in (0.2, 0.4, 0.8, 1.0):
        shares = zipf_of(WrongAnswers(count=5, coincide=coincide))
        assert (shares**2).sum() == pytest.approx(coincide, abs=1e-6)
        assert shares.sum() == pytest.approx(1.0)
    config = quality()
    world, met = truths(config, 3000)
    signals = Signals(config, 3, world)
    pairs = [(signals.identity(t, 0, 1), signals.identity(t, 0, 2)) for t in met]
    wrong = [(a, b) for a, b in pairs if a and b]
    assert np.mean([a == b for a, b in wrong]) == pytest.approx(0.4, abs=0.04)


def test_samples_of_an_arm_are_right_with_its_chance() -> None:
    world, met = truths(quality(), 5000)
    mean = np.mean([world.quality_of(truth, 2, 7) for truth in met])
    assert mean == pytest.approx(np.mean([truth.chance[2] for truth in met]), abs=0.02)


def test_a_fit_finds_what_was_drawn() -> None:
    rng = np.random.default_rng(2)
    abilities, spread, n = np.array([-1.0, 0.0, 0.5, 1.5]), 1.5, 4000
    domain = rng.integers(2, size=n)
    b = np.array([-0.5, 0.5])[domain] + spread * rng.standard_normal(n)
    a = np.exp(0.3 * rng.standard_normal(n))
    p = 1.0 / (1.0 + np.exp(-a[:, None] * (abilities - b[:, None])))
    right = (rng.random(p.shape) < p).astype(float)
    right[rng.random(p.shape) < 0.2] = np.nan
    answers = Answers(right, ("a", "b", "c", "d"), domain, ("easy", "hard"), (0.0, 0.0))
    item = fit(answers)
    shift = item.ability.mean() - abilities.mean()
    np.testing.assert_allclose(item.ability - shift, abilities, atol=0.12)
    np.testing.assert_allclose(item.mean[1] - item.mean[0], 1.0, atol=0.15)
    np.testing.assert_allclose(item.spread, spread, rtol=0.12)
    assert abs(item.skill).max() < 0.15
    error = held_out_error(answers)
    assert error["log_loss"] < error["log_loss_domain_mean"] - 0.03
    assert error["auc"] > 0.74


@pytest.mark.parametrize("name", names("quality"))
def test_profiles_tell_answers_better_than_means(name: str) -> None:
    profile = load_quality(name)
    assert profile.fit.log_loss < profile.fit.log_loss_domain_mean
    assert sum(domain.share for domain in profile.domains.values()) == pytest.approx(1.0, abs=1e-3)
    assert name in TABLES


@pytest.mark.skipif(DATA is None, reason="FLEETSIM_DATA does not name the folder of the tables")
def test_a_profile_is_what_its_table_gives() -> None:
    profile, answers = load_quality("greenserv"), TABLES["greenserv"][3](Path(DATA or ""))
    item = fit(answers)
    for number, name in enumerate(answers.models):
        assert item.ability[number] == pytest.approx(profile.models[name].ability, abs=2e-3)


def table_file(folder: Path, **columns: list[Any]) -> Path:
    rows = [(f"p{i}", model, float((i + shift) % 3 == 0)) for i in range(30) for model, shift in (("x", 0), ("y", 1))]
    content = {
        "prompt_id": [row[0] for row in rows],
        "model": [row[1] for row in rows],
        "quality": [row[2] for row in rows],
        "category": ["even" if int(row[0][1:]) % 2 == 0 else "odd" for row in rows],
        "prompt_tokens": [100 + int(row[0][1:]) for row in rows],
        "output_tokens": [10 if row[1] == "x" else 20 for row in rows],
        "cost_usd": [0.001 if row[1] == "x" else 0.003 for row in rows],
        **columns,
    }
    path = folder / "answers.parquet"
    pq.write_table(pa.table(content), path)
    return path


def test_a_table_of_answers_is_replayed(tmp_path: Path) -> None:
    path = table_file(tmp_path)
    config = scenario({"policy": "single", "model": BIG}, 60, 20.0)
    config["quality"] = {
        "models": {BIG: {"known_as": "y"}, SMALL: {"known_as": "x"}},
        "outcomes": {"path": str(path), "shuffle": False},
        "features": {"auc": 0.8},
    }
    result = run(config, tmp_path / "run")
    assert column(result, "prompt_tokens") == [100 + i % 30 for i in range(60)]
    assert set(column(result, "output_tokens")) == {20}
    assert column(result, "quality") == [float((i % 30 + 1) % 3 == 0) for i in range(60)]
    assert column(result, "list_usd") == [0.003] * 60
    assert column(result, "domain")[:2] == ["even", "odd"]
    assert result.summary["quality_best_mean"] == pytest.approx(2 / 3)


def test_tables_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = table_file(tmp_path)
    with pytest.raises(DataError, match='no answers of "z"'):
        read_outcomes(path, ("x", "z"))
    with pytest.raises(DataError, match="no column source"):
        read_outcomes(path, ("x",), "somebody")
    with pytest.raises(DataError, match="between 0 and 1"):
        read_outcomes(table_file(tmp_path, quality=[3.0] * 60), ("x",))
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        read_outcomes(tmp_path / "broken.parquet", ())


def test_what_is_seen_of_a_table_has_the_area_that_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    quality_ = [float(x) for x in rng.random(6000) < 0.6]
    content = {
        "prompt_id": [f"p{i}" for i in range(3000) for _ in range(2)],
        "model": ["x", "y"] * 3000,
        "quality": quality_,
    }
    pq.write_table(pa.table(content), tmp_path / "t.parquet")
    config = Quality.model_validate(
        {"models": {"x": {}, "y": {}}, "outcomes": {"path": "t.parquet"}, "features": {"auc": 0.75}}
    )
    world = OutcomeWorld(config, 1, tmp_path)
    met = [world.meet(i, None, 1, 1) for i in range(3000)]
    for arm in range(2):
        seen = np.array([truth.seen.chance[arm] for truth in met])
        right = np.array([truth.quality[arm] for truth in met])
        assert area_under_curve(seen, right) == pytest.approx(0.75, abs=0.02)
        assert seen.mean() == pytest.approx(right.mean(), abs=0.03)


@pytest.mark.skipif(DATA is None, reason="FLEETSIM_DATA does not name the folder of the tables")
def test_energies_of_greenserv_are_what_was_published_of_static_choices() -> None:
    """Half accuracy and half thrift make the reward again; the joules, fitted to four totals, come near two that can be counted."""
    from fleetsim.reproduce.functions import model_routers as functions

    folder = Path(DATA or "")
    rewards = str(folder / "traces/open/router/greenserv_rewards.parquet")
    sweep, bounds = (
        str(folder / f"reference/open/greenserv_{name}.parquet") for name in ("router_lambda_sweep", "task_bounds")
    )
    if not Path(sweep).is_file() or not Path(rewards).is_file():
        pytest.skip("the folder has no published totals of GreenServ")
    models, table, task = functions._world_of(rewards, 3)
    right, thrift, joules = functions._energies(rewards, sweep, bounds, 3)
    plain = task != functions._SUMMARIES
    np.testing.assert_allclose((0.5 * right + 0.5 * thrift)[plain], np.clip(table, 0.0, 1.0)[plain], atol=0.02)
    assert set(np.unique(right[plain])) == {0.0, 1.0}
    assert (joules >= 0.0).all()
    for model, accuracy, wh in (("qwen2.5-0.5b", 0.3225, 52.46), ("gemma-3-27b", 0.685, 731.4)):
        number = models.index(model)
        assert right[:, number].mean() == pytest.approx(accuracy, abs=1e-3)
        assert joules[:, number].sum() / 3600.0 == pytest.approx(wh, rel=0.15)
    files = (rewards, sweep, bounds)
    cheap, dear = (functions.greenserv_wh(3, *files, "epsilon-greedy", weight, runs=1) for weight in (1.0, 0.0))
    assert cheap < dear
