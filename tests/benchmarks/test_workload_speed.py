"""Cost of making requests: counts are asserted, times only reported (`pytest --benchmark-enable`)."""

from collections import deque

import pytest

from fleetsim.workload.convert import synthesise
from tests.workload.conftest import synthetic, trace

REQUESTS = 200_000
LENGTHS = {
    "prompt_tokens": {"distribution": "lognormal", "mean": 1000, "cv": 1.2, "min": 16, "max": 8000},
    "output_tokens": {"distribution": "lognormal", "mean": 220, "cv": 1.0, "min": 2, "max": 2000},
}
GAMMA = {"process": "gamma", "rate": "1500 req/s", "burstiness": 0.5}


def last_id(workload):
    return deque(workload.requests(), maxlen=1)[0].id


def test_synthetic_requests_with_shared_prefixes(benchmark):
    def run():
        prefixes = {"groups": 200, "tokens": 512, "zipf": 1.0}
        return last_id(synthetic(requests=REQUESTS, arrivals=GAMMA, prefixes=prefixes, **LENGTHS))

    assert benchmark(run) == REQUESTS - 1


def test_requests_of_a_profile(benchmark):
    assert benchmark(lambda: last_id(synthetic(requests=REQUESTS, profile="azure2023-conv"))) == REQUESTS - 1


@pytest.mark.parametrize("form", ["azure", "mooncake", "parquet"])
def test_replay(benchmark, tmp_path, form):
    name = {"azure": "t.csv", "mooncake": "t.jsonl", "parquet": "t.parquet"}[form]
    synthesise("azure2023-conv", 20_000, 1, tmp_path / name, form)
    assert benchmark(lambda: last_id(trace(tmp_path, format=form, path=name))) == 19_999
