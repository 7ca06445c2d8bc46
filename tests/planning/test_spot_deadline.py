"""Spot capacity under a deadline: the oracle against enumeration, laws of all policies, recorded traces, and what is refused."""

from __future__ import annotations

import json
import tarfile
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import InputError
from fleetsim.planning.problems import load_problem
from fleetsim.planning.result import Plan
from fleetsim.planning.spot_deadline import (
    POLICIES,
    Choice,
    DrawnSpot,
    Job,
    Now,
    evaluate,
    follow,
    greedy,
    on_demand,
    oracle_usd,
    resampled,
)  # fmt: skip
from fleetsim.reproduce.paper import data_folder

ARCHIVE = Path("traces", "open", "cluster", "spot_traces_skypilot.tar.xz")


def solved(folder: Path | None = None, **changes: Any) -> Plan:
    problem = {
        "kind": "spot-deadline", "work": "4 h", "deadline": "7 h", "overhead": "5 min", "spot": "1 USD/h", "on_demand": "3 USD/h",
    }  # fmt: skip
    return load_problem({"name": "test", "problem": problem | changes}).problem.solve()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.integers(1, 4),
    st.sampled_from([0, 120, 300, 420]),
    st.sampled_from([0, 150]),
)
def test_the_oracle_equals_enumeration(available: list[bool], work_ticks: int, overhead_s: int, more_s: int) -> None:
    """Of all ways to choose in five ticks, the cheapest that is in time."""
    job = Job(work_ticks * 300 - 60, 5 * 300 - more_s, overhead_s, 300, 1.0, 3.0)
    best = inf
    options: tuple[Choice, ...] = ("spot", "on-demand", "nothing")
    for choices in product(options, repeat=5):
        if any(choice == "spot" and not there for choice, there in zip(choices, available, strict=True)):
            continue

        def chosen(job: Job, now: Now, choices: tuple[Choice, ...] = choices) -> Choice:
            return choices[now.elapsed_s // job.tick_s]

        outcome = follow(chosen, job, available)
        if outcome.finished_s <= job.deadline_s:
            best = min(best, outcome.cost_usd)
    found = oracle_usd(job, available)
    assert found == pytest.approx(best) if best < inf else found == inf


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.3, 8),
    st.floats(0.3, 8),
    st.integers(1, 20),
    st.floats(1.05, 3.0),
    st.sampled_from([0, 300, 720]),
)
def test_policies_are_in_time_and_no_cheaper_than_the_oracle(
    seed: int, up_h: float, down_h: float, work_h: int, room: float, overhead_s: int
) -> None:
    work_s = work_h * 3600
    deadline_s = max(int(work_s * room) // 60 * 60, work_s + overhead_s)
    job = Job(work_s, deadline_s, overhead_s, 300, 1.0, 3.0)
    ticks = -(-deadline_s // 300)
    (line,) = DrawnSpot.model_validate({"traces": 1, "up": f"{up_h} h", "down": f"{down_h} h", "seed": seed}).draw(
        ticks, 300
    )
    least = oracle_usd(job, line)
    assert least <= job.price("on-demand") * (work_s + overhead_s) + 1e-9
    for policy in POLICIES.values():
        outcome = follow(policy, job, line)
        assert outcome.finished_s <= deadline_s
        assert outcome.cost_usd >= least - 1e-9
        assert outcome.on_demand_s + outcome.spot_s >= work_s + overhead_s - 1e-9


def test_by_hand() -> None:
    """Two hours within five, spot gone in the second: greedy pays 1 + 5 min, waits, and pays 1 + 5 min again."""
    job = Job(7200, 5 * 3600, 300, 300, 1.0, 3.0)
    line = [k // 12 != 1 for k in range(60)]
    outcome = follow(greedy, job, line)
    assert outcome.spot_s == 7200 + 600
    assert outcome.starts == 2
    assert outcome.cost_usd == pytest.approx((7200 + 600) / 3600)
    assert outcome.finished_s == 2 * 3600 + 3600 + 600
    assert oracle_usd(job, line) == pytest.approx((7200 + 300) / 3600)  # begins in the third hour
    assert follow(on_demand, job, line).cost_usd == pytest.approx(3 * 7500 / 3600)
    assert POLICIES["uniform-progress"](job, Now(3600, 6000, False, "nothing")) == "on-demand"
    assert POLICIES["uniform-progress"](job, Now(3600, 5000, False, "nothing")) == "nothing"


def test_policies_see_no_future_and_obey_availability() -> None:
    def blind(job: Job, now: Now) -> Choice:
        return "spot"

    with pytest.raises(ValueError, match="where there is none"):
        follow(blind, Job(3600, 7200, 0, 300, 1.0, 3.0), [False] * 24)
    with pytest.raises(ValueError, match="ends before the deadline"):
        evaluate(greedy, Job(3600, 7200, 0, 300, 1.0, 3.0), [[True] * 23])
    one, other = [True] * 12 + [False] * 12, [True] * 24
    asked: list[list[Now]] = [[], []]
    for line, seen in zip((one, other), asked, strict=True):

        def watching(job: Job, now: Now, seen: list[Now] = seen) -> Choice:
            seen.append(now)
            return greedy(job, now)

        follow(watching, Job(5400, 7200, 0, 300, 1.0, 3.0), line)
    assert asked[0][:12] == asked[1][:12]


def test_plans_rank_policies_and_drawn_capacity_is_as_stated() -> None:
    plan = solved(availability={"traces": 40, "up": "2 h", "down": "1 h"})
    names = [row["policy"] for row in plan.table]
    assert set(names) == set(POLICIES)
    assert all(row["in time"] == 1.0 for row in plan.table)
    assert plan.bound == plan.figures["oracle_usd"] <= plan.objective <= plan.figures["on_demand_usd"]
    lines = DrawnSpot.model_validate({"traces": 400, "up": "2 h", "down": "1 h"}).draw(200, 300)
    assert np.mean(lines) == pytest.approx(2 / 3, abs=0.02)


def test_files_and_bad_input(tmp_path: Path) -> None:
    trace = {"metadata": {"gap_seconds": 600}, "data": [1, 0] * 30}
    (tmp_path / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
    path = tmp_path / "plan.yaml"
    head = "name: x\nproblem: {kind: spot-deadline, work: 2 h, deadline: 5 h, spot: 1 USD/h, on_demand: 3 USD/h, "
    text = head + "availability: [NAME]}\n"
    path.write_text(text.replace("NAME", "trace.json"), encoding="utf-8")
    plan = load_problem(path).problem.solve()
    assert plan.figures["cases"] == 1
    path.write_text(text.replace("NAME", "trace.json").replace("5 h", "50 h"), encoding="utf-8")
    with pytest.raises(InputError, match=r"trace.json ends after 9\.\d+ h, the deadline is 50 h"):
        load_problem(path).problem.solve()
    path.write_text(text.replace("NAME", "none.json"), encoding="utf-8")
    with pytest.raises(InputError, match="no spot trace"):
        load_problem(path).problem.solve()
    for changes, message in (
        ({"deadline": "4 h"}, "nothing is in time: work and one start end 300 s after the deadline"),
        ({"work": "1.0001 s"}, "work must be whole seconds"),
        ({"on_demand": "-3 USD/h"}, "on_demand"),
        ({"availability": []}, "there is no trace of availability"),
    ):
        with pytest.raises(InputError, match=message):
            solved(**changes)


def test_recorded_traces() -> None:
    """On one node's traces the oracle pays least, Uniform Progress less than on-demand capacity alone; all jobs are in time."""
    archive = data_folder() / ARCHIVE
    if not archive.is_file():
        pytest.skip(f"needs {ARCHIVE} in the folder that FLEETSIM_DATA names")
    job = Job(24 * 3600, 36 * 3600, 720, 300, 1.0, 3.0)
    lines = []
    with tarfile.open(archive) as files:
        for info in files.getmembers():
            stream = (
                files.extractfile(info) if "availability/1-node" in info.name and info.name.endswith(".json") else None
            )
            if stream is not None:
                content = json.load(stream)
                gap_s = float(content["metadata"]["gap_seconds"])
                line = resampled([(k * gap_s, float(n)) for k, n in enumerate(content["data"])], 300)
                lines.append(line[:432])
    assert len(lines) == 14
    means = {}
    for name, policy in POLICIES.items():
        outcomes = evaluate(policy, job, lines)
        assert all(one.finished_s <= job.deadline_s for one in outcomes)
        means[name] = float(np.mean([one.cost_usd for one in outcomes]))
    least = float(np.mean([oracle_usd(job, line) for line in lines]))
    assert least <= min(means.values())
    assert means["uniform-progress"] <= means["on-demand"]
