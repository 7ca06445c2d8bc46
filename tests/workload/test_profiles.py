import numpy as np
import pytest

from fleetsim.errors import DataError
from fleetsim.workload.convert import synthesise
from fleetsim.workload.describe import describe_trace
from fleetsim.workload.profiles import list_profiles, load_profile
from tests.workload.conftest import synthetic

PROFILES = list_profiles()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
def test_drawn_traces_have_the_profile_s_quantiles_and_rate(tmp_path, profile):
    synthesise(profile.name, 20_000, 5, tmp_path / "t.parquet")
    found = describe_trace(tmp_path / "t.parquet")
    for lengths in ("prompt_tokens", "output_tokens"):
        for name, level in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            expected = profile.figures[lengths][profile.levels.index(level)]
            assert found[lengths][name] == pytest.approx(expected, rel=0.03), (lengths, name)
    if profile.rate is not None:
        assert found["rate_per_s"] == pytest.approx(profile.rate, rel=0.03)


@pytest.mark.parametrize("requests", [500, 7000, 14_176, 50_000])
def test_rate_is_the_recorded_one_for_any_number_of_requests(tmp_path, requests):
    synthesise("azure2023-conv", requests, 1, tmp_path / "t.csv")
    assert describe_trace(tmp_path / "t.csv")["rate_per_s"] == pytest.approx(5.907, rel=0.03)


def test_burstiness_is_the_recorded_one(tmp_path):
    for name in ("azure2023-conv", "lmsys-arena", "burstgpt3-slice", "mooncake-synthetic"):
        profile = load_profile(name)
        cvs = []
        for seed in range(5):
            synthesise(name, profile.requests, seed, tmp_path / "t.csv")
            cvs.append(describe_trace(tmp_path / "t.csv")["gap_cv"])
        assert np.median(cvs) == pytest.approx(profile.figures["arrivals"]["gap_cv"], rel=0.12), name


def test_course_of_the_rate_repeats_at_its_own_pace_without_a_number_of_requests():
    found = np.array([r.arrival_s for r in synthetic(duration="80 min", profile="azure2023-conv").requests()])
    counts = np.histogram(found % 2400, bins=40, range=(0, 2400))[0]
    recorded = load_profile("azure2023-conv").figures["arrivals"]["bins_per_s"]
    assert counts / 120 == pytest.approx(recorded, rel=0.25)
    assert np.corrcoef(counts, recorded)[0, 1] > 0.95


def test_rate_can_be_chosen(tmp_path):
    synthesise("azure2023-conv", 5000, 1, tmp_path / "t.csv", rate=50.0)
    assert describe_trace(tmp_path / "t.csv")["rate_per_s"] == pytest.approx(50, rel=0.01)
    synthesise("sharegpt", 5000, 1, tmp_path / "t.csv", rate=50.0)
    assert describe_trace(tmp_path / "t.csv")["rate_per_s"] == pytest.approx(50, rel=0.07)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
def test_figures_are_complete(profile):
    assert ";" in profile.figures["source"]  # where from; licence
    for name in ("prompt_tokens", "output_tokens"):
        values = profile.figures[name]
        assert len(values) == len(profile.levels)
        assert values == sorted(values)
        assert values[0] >= 0


def test_unknown_profile_is_told_with_the_nearest():
    with pytest.raises(DataError, match='did you mean "azure2023-conv"'):
        load_profile("azure2023-cnv")


@pytest.mark.parametrize(("requests", "rate"), [(0, None), (5, 0.0), (5, float("nan"))])
def test_senseless_numbers(tmp_path, requests, rate):
    with pytest.raises(DataError, match="must be above zero"):
        synthesise("azure2023-conv", requests, 1, tmp_path / "t.csv", rate=rate)
