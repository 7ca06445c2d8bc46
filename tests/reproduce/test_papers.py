"""The paper files that fleetsim carries: they load, the fast ones give the recorded verdicts, and the page says what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetsim.reproduce.page import page
from fleetsim.reproduce.paper import MissingDataError, load_paper, paper_names, paper_path
from fleetsim.reproduce.reproduce import recorded, reproduce

ROOT = Path(__file__).parents[2]
FAST = [name for name in paper_names() if "\nspeed: fast\n" in paper_path(name).read_text(encoding="utf-8")]
"""Found without loading them all before the first test of any process; the first test here loads them."""


@pytest.fixture(autouse=True)
def _at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the data folder's default is relative to


@pytest.mark.parametrize("name", paper_names())
def test_every_arm_of_every_paper_is_a_valid_scenario(name: str) -> None:
    file = load_paper(paper_path(name))
    assert (file.paper.speed == "fast") == (name in FAST)
    for arm in file.paper.arms:
        try:
            loaded = file.loaded(arm, 3, {}, {})
        except MissingDataError as missing:
            pytest.skip(str(missing))
        assert loaded.scenario.seed == 3


@pytest.mark.parametrize("name", FAST)
def test_fast_papers_give_the_recorded_verdicts(name: str) -> None:
    (outcome,) = reproduce([load_paper(paper_path(name))])
    assert not outcome.skipped
    for figure, ours in zip(outcome.file.paper.figures, outcome.ours, strict=True):
        assert figure.ours is not None, figure.name
        assert ours.verdict == figure.ours.verdict, figure.name
        assert ours.value == pytest.approx(figure.ours.value, rel=1e-3, abs=1e-4), figure.name


def test_the_page_is_that_of_the_committed_papers() -> None:
    every = [recorded(load_paper(paper_path(name))) for name in paper_names()]
    assert (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8") == page(every)


@pytest.mark.parametrize("name", paper_names())
def test_what_failed_its_band_is_explained(name: str) -> None:
    file = load_paper(paper_path(name))
    if recorded(file).verdict in ("direction only", "not reproduced"):
        assert len(file.paper.finding) > 100
