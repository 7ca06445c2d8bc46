"""Pools under each autoscaler: leaps give what single steps give, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fleetsim.plugins import names
from tests.fleet.test_moves import MANY, column, pool, same_in_single_steps, scenario

QUICK = {
    "hpa": {"target": 4.0, "period_s": 2.0, "down_window_s": 8.0},
    "apa": {"target": 0.3, "period_s": 2.0, "window_s": 6.0},
    "cron": {"schedule": [1, 4, 0], "begin_hour": 0.997, "period_s": 2.0},
    "dynamo-planner": {"interval_s": 5.0},
    "dynamollm": {"period_s": 3.0},
    "knative-rl": {"period_s": 2.0, "explore": 1.0, "step": 3},
    "llumnix": {"period_s": 1.0, "lasting_s": 2.0},
    "newsvendor": {"period_s": 4.0},
    "oracle": {"period_s": 3.0},
    "sageserve": {"period_s": 2.0, "plan_s": 10.0, "forecast_from_s": 2.0, "forecast_to_s": 10.0},
}
"""Parameters with which they decide often in a short run."""


@MANY
@given(
    seed=st.integers(0, 1000),
    policy=st.sampled_from(names("autoscalers")),
    least=st.integers(0, 2),
    forecaster=st.sampled_from(["constant", "kalman", "seasonal", "oracle"]),
    drain=st.sampled_from(["wait", "migrate", "kill"]),
    init_s=st.sampled_from([0.1, 2.0]),
    rate=st.sampled_from([2, 10, 40]),
)
def test_autoscalers_in_leaps_and_steps(
    seed: int, policy: str, least: int, forecaster: str, drain: str, init_s: float, rate: int, tmp_path: Path
) -> None:
    one = pool("main", 2) | {
        "min_replicas": least,
        "max_replicas": 5,
        "autoscaler": {"policy": policy, **QUICK.get(policy, {})},
        "forecaster": forecaster,
        "startup": {"weights": "none", "init": f"{init_s} s"},
        "drain": drain,
    }
    pieces = [("4 s", rate), ("20 s", 0), ("9 s", 2 * rate), ("90 s", 0.1)]
    steps = [{"duration": duration, "rate": f"{n} req/s"} for duration, n in pieces]
    given = scenario(seed=seed, pools=[one], slo={"ttft": "500 ms", "tpot": "30 ms"})
    given["workload"] |= {"requests": 100, "arrivals": {"process": "piecewise", "steps": steps}}
    assert set(column(same_in_single_steps(given, tmp_path), "status")) == {"finished"}
