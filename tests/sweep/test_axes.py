"""Axes: which values, which combinations, and what is said of those that cannot be used."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import ScenarioError
from fleetsim.scenario.source import parse_tree
from fleetsim.sweeping.axes import axes_of, axis_of, combinations, value_text


def _plain(axes: Any, seed: int = 0) -> list[dict[str, Any]]:
    return [{path: value.plain() for path, value in one.items()} for one in combinations(axes_of(axes), seed)]


def _values(axes: Any, path: str = "a.b") -> list[Any]:
    return [one[path] for one in _plain({path: axes})]


def test_blocks_multiply_and_the_last_varies_fastest() -> None:
    found = _plain(
        {"a": [1, 2], "grid": {"b": ["x", "y"]}, "zip": {"c": [5, 6], "d": [7, 8]}, "list": [{"e": 1}, {"f": 2}]}
    )
    assert len(found) == 2 * 2 * 2 * 2
    assert found[0] == {"a": 1, "b": "x", "c": 5, "d": 7, "e": 1}
    assert found[1] == {"a": 1, "b": "x", "c": 5, "d": 7, "f": 2}
    assert all(one["d"] == one["c"] + 2 for one in found)


def test_a_list_of_blocks_may_have_two_of_a_kind() -> None:
    found = _plain([{"zip": {"a": [1, 2], "b": [3, 4]}}, {"zip": {"c": [1, 2], "d": [3, 4]}}])
    assert len(found) == 4


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ({"range": [1, 5], "points": 3}, [1, 3, 5]),
        ({"range": [1, 4], "points": 3}, [1, 2, 4]),  # whole ends, whole values
        ({"range": [1.0, 4.0], "points": 3}, [1.0, 2.5, 4.0]),
        ({"range": [2, 8], "step": 3}, [2, 5, 8]),
        ({"range": [0.1, 0.3], "step": 0.1}, [0.1, 0.2, 0.3]),
        ({"range": ["10 req/s", "40 req/s"], "points": 4}, ["10 req/s", "20 req/s", "30 req/s", "40 req/s"]),
        ({"log-range": ["10 ms", "1000 ms"], "points": 3}, ["10 ms", "100 ms", "1000 ms"]),
        ({"log-range": [1, 1000], "points": 4}, [1, 10, 100, 1000]),
    ],
)
def test_ranges(axis: Any, values: list[Any]) -> None:
    assert _values(axis) == values


@given(low=st.floats(1e-3, 1e3), factor=st.floats(1.1, 1e3), points=st.integers(2, 30))
def test_log_ranges_rise_by_equal_ratios_between_their_ends(low: float, factor: float, points: int) -> None:
    values = _values({"log-range": [low, low * factor], "points": points})
    assert (values[0], values[-1], len(values)) == (low, low * factor, points)
    for before, after in pairwise(values):
        assert math.log(after / before) == pytest.approx(math.log(factor) / (points - 1), abs=1e-4)


def test_random_axes_come_from_a_named_stream_and_do_not_disturb_each_other() -> None:
    span = {"log-range": ["1 req/s", "100 req/s"]}
    alone = _plain({"random": {"draws": 50, "over": {"a": span}}}, seed=3)
    beside = _plain({"random": {"draws": 50, "over": {"z": {"range": [1, 6]}, "a": span, "c": ["x", "y"]}}}, seed=3)
    assert [one["a"] for one in alone] == [one["a"] for one in beside]
    assert {one["z"] for one in beside} == {1, 2, 3, 4, 5, 6}
    assert {one["c"] for one in beside} == {"x", "y"}
    numbers = [float(one["a"].split()[0]) for one in alone]
    assert all(1 <= number <= 100 for number in numbers)
    assert 15 <= sum(number < 10 for number in numbers) <= 35  # half of them in each decade
    assert _plain({"random": {"draws": 50, "over": {"a": span}}}, seed=4) != alone
    assert _plain({"random": {"draws": 50, "stream": "other", "over": {"a": span}}}, seed=3) != alone


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 3", "2:6  axes.a: expected several values, found 3"),
        ("a: []", "2:6  axes.a: expected several values"),
        ("a: {range: [1, 2]}", "axes.a.points: expected a whole number of at least 2, found nothing"),
        ("a: {range: [2, 1], points: 2}", "axes.a.range: expected low < high"),
        ("a: {log-range: [0, 1], points: 2}", "low > 0"),
        ("a: {range: [1 s, 2 ms], points: 2}", "both ends have the same unit, found s and ms"),
        ("a: {range: [1, 2], point: 3}", 'unknown key "point"'),
        ("a: {range: [x, 2], points: 3}", 'expected a number, with a unit where the field has one; found "x"'),
        ("zip: {a: [1, 2], b: [1]}", "values that go side by side are equally many: a has 2, b has 1"),
        ("list: [3]", "expected a block `path: value`, found 3"),
        ("random: {draws: 0, over: {a: [1]}}", "axes.random.draws: expected a whole number of at least 1, found 0"),
        ("random: {draws: 2, over: {a: {range: [1, 2], points: 3}}}", 'unknown key "points"'),
        ("random: {draws: 2, strem: x, over: {a: [1]}}", 'did you mean "stream"?'),
        ("a: [1, 2]\n  grid: {a: [3, 4]}", "axes.a: this path is varied twice"),
        ("a: {range: [1, 1000], step: 1}\n  b: {range: [1, 1000], step: 1}", "1,000,000 combinations"),
    ],
)
def test_findings_name_the_place(text: str, said: str) -> None:
    tree, _ = parse_tree(f"axes:\n  {text}\n", "sweep.yaml")
    axes = tree.child("axes")
    assert axes is not None
    with pytest.raises(ScenarioError) as caught:
        combinations(axes, 0)
    assert said in str(caught.value)
    assert str(caught.value).startswith("sweep.yaml:")


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("gateway.router=a,b", "gateway.router", ["a", "b"]),
        ("w.rate=10,20,40 req/s", "w.rate", ["10 req/s", "20 req/s", "40 req/s"]),
        ("w.rate=10 req/s,20 req/s", "w.rate", ["10 req/s", "20 req/s"]),
        ("n=[1, 2, 3]", "n", [1, 2, 3]),
        ("n={range: [1, 3], step: 1}", "n", [1, 2, 3]),
        ("r={policy: x, k: 2},y", "r", [{"policy": "x", "k": 2}, "y"]),
        ("n=5", "n", [5]),
    ],
)
def test_axes_of_the_command_line(text: str, path: str, values: list[Any]) -> None:
    found, node = axis_of(text)
    assert found == path
    assert [one[path] for one in _plain({path: node.plain()})] == values


@pytest.mark.parametrize("text", ["gateway.router", "=a", "a=", "a={range: [1"])
def test_bad_axes_of_the_command_line(text: str) -> None:
    with pytest.raises(ScenarioError, match="--axis"):
        axis_of(text)


def test_a_policy_is_told_by_its_name_and_parameters() -> None:
    assert value_text({"policy": "sticky", "inner": {"policy": "random"}, "n": 3}) == "sticky inner=random n=3"
    assert value_text({"min": 3}) == '{"min": 3}'
    assert [value_text(v) for v in ("x", True, 1.5, None)] == ["x", "true", "1.5", "null"]
