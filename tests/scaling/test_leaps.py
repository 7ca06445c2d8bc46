"""Pools under each autoscaler: leaps give what single steps give, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fleetsim.plugins import names
from tests.fleet.test_moves import MANY, column, pool, same_in_single_steps, scenario


@MANY
@given(
    seed=st.integers(0, 1000),
    policy=st.sampled_from(names("autoscalers")),
    least=st.integers(0, 2),
    drain=st.sampled_from(["wait", "migrate", "kill"]),
    init_s=st.sampled_from([0.1, 2.0]),
    rate=st.sampled_from([2, 10, 40]),
)
def test_autoscalers_in_leaps_and_steps(
    seed: int, policy: str, least: int, drain: str, init_s: float, rate: int, tmp_path: Path
) -> None:
    one = pool("main", 2) | {
        "min_replicas": least,
        "max_replicas": 5,
        "autoscaler": policy,
        "startup": {"weights": "none", "init": f"{init_s} s"},
        "drain": drain,
    }
    pieces = [("4 s", rate), ("20 s", 0), ("9 s", 2 * rate), ("90 s", 0.1)]
    steps = [{"duration": duration, "rate": f"{n} req/s"} for duration, n in pieces]
    given = scenario(seed=seed, pools=[one])
    given["workload"] |= {"requests": 100, "arrivals": {"process": "piecewise", "steps": steps}}
    assert set(column(same_in_single_steps(given, tmp_path), "status")) == {"finished"}
