"""The arena: its suite, who may enter, what a score is, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fleetsim.arena.contest import Contest, contest, decision_us
from fleetsim.arena.page import difference, page, ranking, scores, word
from fleetsim.arena.pictures import pictures
from fleetsim.arena.suite import (
    KINDS,
    NONE,
    Entry,
    entries,
    meeting_places,
    parameters,
    scenario_file,
    scenario_names,
    version,
)
from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.experiment.check import check_scenario
from fleetsim.experiment.run import run
from fleetsim.model_routing.api import Ask, ModelsView, Query
from fleetsim.plugins import PolicyConfig, allowing_imports, names
from fleetsim.routing.api import Reject
from fleetsim.scenario.load import load_scenario

ROOT = Path(__file__).parents[2]
BASE, RANDOM = Entry("routers", "least-outstanding"), Entry("routers", "random")
SMALL = """\
schema: 1
name: small
workload:
  kind: synthetic
  requests: 300
  arrivals: {process: poisson, rate: 40 req/s}
  prompt_tokens: {distribution: lognormal, mean: 1500, cv: 1, max: 8000}
  output_tokens: {distribution: lognormal, mean: 40, cv: 1, min: 2, max: 300}
slo: {ttft: 150 ms, tpot: 40 ms, attainment: 0.9}
pools:
  - {name: a, llm: llama-3.1-8b, accelerator: a100-80, replicas: 4}
"""


class Picky:
    """Turns every request away."""

    Config = PolicyConfig

    def __init__(self, config: PolicyConfig, *_: object) -> None:
        pass

    def route(self, request: object) -> Reject:
        return Reject("not today")


class Clumsy(Picky):
    """Makes a mistake."""

    def route(self, request: object) -> Reject:
        raise ZeroDivisionError("by nought")


class Broken(Picky):
    """Names a replica that is not there."""

    def route(self, request: object) -> int:  # type: ignore[override]
        return 99


class Cheapest:
    """The model with the lowest list price."""

    Config = PolicyConfig

    def __init__(self, config: PolicyConfig, rng: object, models: ModelsView) -> None:
        self._models = models

    def route(self, query: Query) -> Ask:
        return Ask(min(self._models.open(), key=self._models.usd(query).__getitem__))


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


def made(figures: dict[Entry, list[tuple[float, float, float]]]) -> Contest:
    keys = ("attainment", "ttft_mean_s", "ttft_p99_s", "itl_p99_s")
    runs = {
        (entry, "s"): [dict(zip(keys, (*run, 0.03), strict=True)) for run in rows] for entry, rows in figures.items()
    }
    return Contest(list(figures), ["s"], 2, runs, {})


# --- the suite ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*scenario_names(), *scenario_names("models")])
def test_scenarios_of_the_suite_stand_alone(name: str) -> None:
    loaded = load_scenario(scenario_file(name))
    assert not [f for f in check_scenario(loaded) if f.severity == "error"]
    assert loaded.scenario.slo is not None
    parts = getattr(loaded.scenario.workload, "parts", {"": loaded.scenario.workload})
    assert all(part.kind == "synthetic" for part in parts.values())


def test_without_names_every_installed_policy_takes_part() -> None:
    found = entries({"routers": [], "schedulers": []})
    assert {e.name for e in found if e.kind == "routers"} == set(names("routers"))
    assert {e.name for e in found if e.kind == "schedulers"} == set(names("schedulers"))


def test_the_baseline_always_takes_part_and_unknown_names_are_answered() -> None:
    assert entries({"routers": ["random"]}) == [BASE, RANDOM]
    with pytest.raises(InputError, match='did you mean "random"'):
        entries({"routers": ["randon"]})
    with pytest.raises(InputError, match="--allow-import"):
        entries({"routers": ["somewhere:Else"]})


def test_a_scheduler_is_set_in_every_pool() -> None:
    loaded = load_scenario(scenario_file("mixed-chips"))
    over = Entry("schedulers", "sarathi").overrides(loaded.scenario)
    changed = load_scenario(scenario_file("mixed-chips"), over).scenario
    assert [pool.engine.scheduler.name for pool in changed.pools] == ["sarathi"] * 4


# --- scores -------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_ratios_to_the_best_of_that_seed() -> None:
    found = scores(
        made({BASE: [(0.9, 0.1, 1.0), (0.8, 0.2, 2.0)], RANDOM: [(0.45, 0.2, 0.5), (0.8, 0.1, 4.0)]}), "routers"
    )
    assert found[BASE]["s"] == pytest.approx([(1 + 1 + 0.5 + 1) / 4, (1 + 0.5 + 1 + 1) / 4])
    assert found[RANDOM]["s"] == pytest.approx([(0.5 + 0.5 + 1 + 1) / 4, (1 + 1 + 0.5 + 1) / 4])


def test_differences_are_taken_seed_by_seed() -> None:
    result = made({BASE: [(0.9, 0.1, 1.0), (0.5, 0.9, 2.0)], RANDOM: [(0.8, 0.2, 1.0), (0.4, 1.0, 2.0)]})
    assert difference(result, RANDOM, "s", "attainment") == pytest.approx((-0.1, -0.1, -0.1))
    assert word(difference(result, RANDOM, "s", "attainment")) == "worse"
    assert word(difference(result, RANDOM, "s", "ttft_mean_s"), -1) == "worse"
    assert word(difference(result, RANDOM, "s", "ttft_p99_s"), -1) == ""
    assert [row.entry for row in ranking(result, "routers")] == [BASE, RANDOM]


def test_who_answered_nothing_gets_nothing() -> None:
    empty = {"attainment": 0.0, "ttft_mean_s": None, "ttft_p99_s": None, "itl_p99_s": None}
    result = made({BASE: [(0.9, 0.1, 1.0), (0.9, 0.1, 1.0)], RANDOM: [(1.0, 1.0, 1.0), (1.0, 1.0, 1.0)]})
    result = replace(result, figures={**result.figures, (RANDOM, "s"): [empty, empty]})
    assert scores(result, "routers")[RANDOM]["s"] == [0.0, 0.0]


# --- runs ---------------------------------------------------------------------------------------------------------------


def test_the_same_contest_gives_the_same_page_and_load_beats_chance(small: str) -> None:
    field = entries({"routers": ["random"]})
    once = contest(field, [small], 3)
    assert page(once, "c") == page(contest(field, [small], 3, jobs=2), "c")
    mean_s = {e: np.mean([run["ttft_mean_s"] for run in once.figures[e, small]]) for e in field}
    assert mean_s[BASE] < mean_s[RANDOM]
    assert ranking(once, "routers")[0].entry == BASE


def test_policies_from_elsewhere_enter_by_path_and_failures_are_told(small: str) -> None:
    with allowing_imports(True):
        field = entries({"routers": [f"{__name__}:{name}" for name in ("Picky", "Broken", "Clumsy")]})
    result = contest(field, [small], 2, allow_import=True)
    assert [run["attainment"] for run in result.figures[field[1], small]] == [0.0, 0.0]
    assert "99" in result.excluded[field[2], small]
    assert result.excluded[field[3], small] == "ZeroDivisionError: by nought"
    text = page(result, "c")
    assert "Who cannot run what" in text
    assert [row.entry for row in ranking(result, "routers")] == field[:2]


@pytest.mark.parametrize("entry", [BASE, Entry("schedulers", "vllm-v1")])
def test_decisions_are_timed_and_the_run_is_the_same(small: str, entry: Entry) -> None:
    spent = decision_us(entry, small)
    assert spent is not None
    assert 0.1 < spent < 10_000


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_ranks_and_writes_times_apart(small: str, tmp_path: Path) -> None:
    options = [
        "arena",
        "--routers",
        "random",
        "--scenarios",
        small,
        "--seeds",
        "2",
        "--fresh",
        "--out",
        str(tmp_path / "d"),
    ]
    report = json.loads(CliRunner().invoke(cli, [*options, "--json"]).stdout)
    assert report["suite_version"] == version()
    assert sorted(row["policy"] for row in report["rankings"]["routers"]) == ["least-outstanding", "random"]
    assert set(report["decision_us"]) == {"routers/least-outstanding", "routers/random"}
    text = (tmp_path / "d" / "arena.md").read_text()
    above, _, below = text.partition("## Cost of a decision")
    assert "µs" in below
    assert "µs" not in above
    again = CliRunner().invoke(cli, [*options, "--no-timing"])
    assert again.exit_code == 0
    assert (tmp_path / "d" / "arena.md").read_text().rstrip() == above.rstrip()
    assert re.search(r"[12]\s+least-outstanding \(baseline\)", again.stdout)


def test_a_mistyped_scenario_is_answered() -> None:
    found = CliRunner().invoke(cli, ["arena", "--routers", "random", "--scenarios", "chatt"])
    assert found.exit_code == 2
    assert 'did you mean "chat"?' in found.stderr


# --- admissions, evictions, rebalancers ------------------------------------------------------------------------------------


def test_every_kind_meets_somewhere_and_everything_installed_can_enter() -> None:
    places = meeting_places()
    assert set(places) | set(meeting_places("models")) == set(KINDS)
    assert set(places) == {name for name, kind in KINDS.items() if kind.suite == "fleet"}
    assert {name for names in places.values() for name in names} == set(scenario_names())
    for entry in entries({}):
        for name in places[entry.kind]:
            plain = load_scenario(scenario_file(name)).scenario
            loaded = load_scenario(scenario_file(name), entry.overrides(plain))
            assert not [f for f in check_scenario(loaded) if f.severity == "error"] or entry.kind in (
                "routers",
                "orders",
                "admissions",
            )


def test_nobody_deciding_is_a_baseline() -> None:
    found = entries({}, ["rebalancers"])
    assert found[0] == Entry("rebalancers", NONE)
    assert found[0].baseline
    over = found[0].overrides(load_scenario(scenario_file("skew")).scenario)
    assert load_scenario(scenario_file("skew"), over).scenario.gateway.rebalancer is None
    with pytest.raises(InputError, match='did you mean "evictions"'):
        entries({}, ["eviction"])


def test_policies_without_defaults_get_the_suites() -> None:
    assert parameters("admissions", "queue-cap")["per_replica"] > 0
    over = Entry("admissions", "queue-cap").overrides(load_scenario(scenario_file("overload")).scenario)
    assert load_scenario(scenario_file("overload"), over).scenario.gateway.admission is not None


def test_each_kind_decides_something_where_it_meets(tmp_path: Path) -> None:
    """A fixed part of each scenario that was made for them: blocks go, requests move, and some are turned away."""
    few: dict[str, object] = {"workload.requests": 900}
    small = run(
        load_scenario(
            scenario_file("small-cache"), {"workload.parts.tools.requests": 600, "workload.parts.chat.requests": 300}
        ),
        tmp_path / "small",
    )
    assert sum(e["count"] for e in small.table("events").to_pylist() if e["kind"] == "kv_evictions") > 1000
    moved = {**few, **Entry("rebalancers", "work-stealing").overrides(load_scenario(scenario_file("skew")).scenario)}
    assert run(load_scenario(scenario_file("skew"), moved), tmp_path / "skew").summary["migrations"] > 10
    shed: dict[str, object] = {"workload.duration": "60 s"}
    shed |= Entry("admissions", "queue-cap").overrides(load_scenario(scenario_file("overload")).scenario)
    assert run(load_scenario(scenario_file("overload"), shed), tmp_path / "shed").summary["rejected"] > 0


def test_kinds_meet_only_where_the_suite_says(small: str) -> None:
    field = entries({"evictions": ["fifo"], "routers": ["random"]})
    result = contest(field, [small], 1, only={"routers": [small], "evictions": []})
    assert {entry.kind for entry, _ in result.figures} == {"routers"}


def test_the_committed_page_is_of_this_suite() -> None:
    text = (ROOT / "docs" / "arena.md").read_text()
    assert f"(version {version()}," in text
    assert f"Scenarios: {', '.join(scenario_names())}." in text


# --- model routers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contest, str]:
    """A contest of model routers in a shorter scenario of their suite."""
    path = tmp_path_factory.mktemp("arena") / "answers.yaml"
    path.write_text(f"extends: {scenario_file('answers-calm')}\nworkload: {{requests: 200}}\n")
    return contest(entries({"model_routers": ["random", "oracle"]}, suite="models"), [str(path)], 3), str(path)


def test_every_model_router_can_enter_where_they_meet() -> None:
    field = entries({}, suite="models")
    assert {entry.name for entry in field} == set(names("model_routers"))
    for name in scenario_names("models"):
        plain = load_scenario(scenario_file(name)).scenario
        for entry in field:
            loaded = load_scenario(scenario_file(name), entry.overrides(plain))
            assert not [f for f in check_scenario(loaded) if f.severity == "error"], entry.name
    with pytest.raises(InputError, match="no routers meet in the suite of models"):
        entries({"routers": ["random"]}, suite="models")


def test_model_routers_are_compared_by_their_answers(routed: tuple[Contest, str]) -> None:
    result, name = routed
    by = {entry.name: result.figures[entry, name] for entry in result.entries}
    for seed in range(3):
        oracle, single, chance = (by[name][seed] for name in ("oracle", "single", "random"))
        assert oracle["arms"] == single["arms"] == chance["arms"], "all meet the same answers"
        assert oracle["regret"] == pytest.approx(0.0)
        assert single["quality"] == pytest.approx(single["arms"]["qwen2.5-14b"][1])
        assert single["list_usd"] == pytest.approx(single["arms"]["qwen2.5-14b"][0])
        assert single["pgr"] == pytest.approx(1.0)
        assert oracle["quality"] - oracle["regret"] == pytest.approx(chance["quality"] + chance["regret"])
        assert oracle["over_mix"] > 0.05
        assert single["over_mix"] <= 1e-9, "a model is no better than the mixes that it is part of"
        so_far = chance["regret_so_far"]
        assert so_far["requests"][-1] == 200
        assert so_far["regret"][-1] == pytest.approx(200 * chance["regret"])
    found = scores(result, "model_routers")
    assert all(0.0 < part <= 1.0 for rows in found.values() for row in rows.values() for part in row)
    text = page(result, "c", {"a.svg": "a picture"})
    assert "# Arena of model routers" in text
    assert "![a picture](a.svg)" in text
    assert "| policy | quality [%] | difference | over a mix [%] | PGR [%] | regret [%] | price [USD/1,000] |" in text


def test_quality_over_a_mix_is_taken_to_the_hull_of_the_single_models(routed: tuple[Contest, str]) -> None:
    result, name = routed
    (entry,) = (entry for entry in result.entries if entry.name == "random")
    for figures in result.figures[entry, name]:
        arms = sorted(map(tuple, figures["arms"].values()))
        mixes = [
            a[1] + (figures["list_usd"] - a[0]) / (b[0] - a[0]) * (b[1] - a[1])
            for a in arms
            for b in arms
            if a[0] <= figures["list_usd"] <= b[0] and b[0] > a[0]
        ]
        below = [quality for usd, quality in arms if usd <= figures["list_usd"]]
        assert figures["quality"] - figures["over_mix"] == pytest.approx(max(mixes + below))


def test_pictures_of_model_routers_name_them_by_their_places(routed: tuple[Contest, str]) -> None:
    result, _ = routed
    drawn = pictures(result, "model_routers")
    assert set(drawn) == {"arena-models-cost", "arena-models-latency", "arena-models-regret"}
    places = {f"{place} {row.entry.name}" for place, row in enumerate(ranking(result, "model_routers"), 1)}
    plane = {trace.name: trace for trace in drawn["arena-models-cost"].data}
    assert places <= set(plane)
    (oracle,) = (name for name in plane if name.endswith(" oracle"))
    assert plane[oracle].y[0] > max(plane["mix of two"].y)
    assert places == {trace.name for trace in drawn["arena-models-latency"].data}
    lines = {trace.name for trace in drawn["arena-models-regret"].data if trace.fill is None}
    assert lines == {"oracle", "single", "random"}


def test_decisions_of_model_routers_are_timed_even_of_who_is_told_the_answers(routed: tuple[Contest, str]) -> None:
    for name in ("oracle", "frugal-gpt"):
        spent = decision_us(Entry("model_routers", name), routed[1])
        assert spent is not None
        assert 0.1 < spent < 10_000


def test_the_command_writes_the_page_of_model_routers(
    routed: tuple[Contest, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetsim.plots.export.find_spec", lambda _: None)
    field = f"random,{__name__}:Cheapest"
    options = ["arena", "--model-routers", field, "--scenarios", routed[1], "--seeds", "2", "--no-timing", "-j", "1"]
    done = CliRunner().invoke(cli, [*options, "--allow-import", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["suite_version"] == version("models")
    rows = {row["policy"]: row["scenarios"][routed[1]] for row in report["rankings"]["model_routers"]}
    assert set(rows) == {"single", *field.split(",")}
    assert rows[f"{__name__}:Cheapest"]["pgr"] == pytest.approx(0.0)
    assert set(report["rankings"]["model_routers"][0]["scenarios"][routed[1]]) == set(KINDS["model_routers"].measures)
    assert [path.name for path in tmp_path.iterdir()] == ["arena-models.md"]
    assert "no pictures: images need an extra" in done.stderr
    assert "`fleetsim arena --suite models --model-routers random," in (tmp_path / "arena-models.md").read_text()
    mixed = CliRunner().invoke(cli, ["arena", "--suite", "models", "--routers", "random"])
    assert mixed.exit_code == 2
    assert "no routers meet in the suite of models" in mixed.stderr


def test_the_committed_page_of_model_routers_is_of_this_suite() -> None:
    text = (ROOT / "docs" / "arena-models.md").read_text()
    assert f"(version {version('models')}," in text
    assert f"Scenarios: {', '.join(scenario_names('models'))}." in text
    for name in names("model_routers"):
        assert re.search(rf"^\| {re.escape(name)} \|", text, re.MULTILINE), name
    for picture in re.findall(r"\]\((\S+\.svg)\)", text):
        assert (ROOT / "docs" / picture).is_file()
