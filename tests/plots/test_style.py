"""Colours that everybody tells apart, axes that say what they show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.plots.latencies import PART_COLOURS
from fleetsim.plots.style import COLOURS, axis, duration, marks_of, number, seconds_unit, thinned

WHITE, DARK = "#ffffff", "#171b22"
SIGHT = {
    "normal": np.eye(3),
    # Machado, Oliveira, Fernandes 2009, severity 1.0, in linear RGB
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart(sight: str) -> None:
    """The difference of two colours (CIE76) is ten times the just noticeable one of 2.3 or nearly so."""
    for a, b in itertools.combinations(COLOURS, 2):
        difference = np.linalg.norm(lab(SIGHT[sight] @ linear(a)) - lab(SIGHT[sight] @ linear(b)))
        assert difference > 20, (a, b)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("paper", [WHITE, DARK])
def test_colours_stand_out_from_the_paper(colour: str, paper: str) -> None:
    """As marks must by WCAG 2.2, 1.4.11 (3 to 1); those of lines with markers of their own may have a little less."""
    assert contrast(colour, paper) > 2.6


def test_parts_have_colours_of_their_own() -> None:
    assert len(set(PART_COLOURS.values())) == len(PART_COLOURS)


def test_a_name_keeps_its_mark() -> None:
    marks = marks_of("abcdefghijkl")
    assert len({(mark.colour, mark.dash) for mark in marks.values()}) == 12
    again = marks_of(["l", "x", "a"], marks)
    assert (again["l"], again["a"]) == (marks["l"], marks["a"])
    assert again["x"] not in marks.values()


@given(st.lists(st.floats(1e-6, 1e9), min_size=2, max_size=20))
def test_axes_are_logarithmic_beyond_a_factor_of_twenty(values: list[float]) -> None:
    layout = axis("TTFT p99", "s", values)
    assert layout["title"]["text"] == "TTFT p99 [s]"
    assert (layout.get("type") == "log") == (max(values) > 20 * min(values))
    if layout.get("type") == "log":
        low, high = layout["range"]
        assert 10**low < min(values)
        assert 10**high > max(values)
        assert len([tick for tick in layout["tickvals"] if min(values) / 10 <= tick <= max(values) * 10]) >= 2
        assert len(layout["tickvals"]) <= 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123456, "0.0123"), (1234.5, "1,234"), (12345, "12.3 k"), (2.5e6, "2.5 M"), (99.96, "100"), (7, "7")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value_s", "text"), [(0.0542, "54.2 ms"), (1, "1 s"), (59.5, "59.5 s"), (600, "10 min"), (28_368, "7.88 h")]
)
def test_times_for_people(value_s: float, text: str) -> None:
    assert duration(value_s) == text


def test_units_of_time() -> None:
    assert seconds_unit([0.3, 1.9]) == ("ms", 1e3)
    assert seconds_unit([0.3, 30.0, float("nan")]) == ("s", 1.0)


@given(st.integers(1, 100_000), st.integers(2, 5000))
def test_thinning_keeps_both_ends(length: int, most: int) -> None:
    places = thinned(length, most)
    assert len(places) <= max(most, 0)
    assert (places[0], places[-1]) == (0, length - 1)
    assert list(places) == sorted(set(places))
