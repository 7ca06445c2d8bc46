"""Failures beside encoders: what was made of images is lost with its replica, and is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import InputError
from tests.fleet import test_images as images
from tests.fleet.test_moves import MANY, column, run, same_in_single_steps

START = {"startup": {"weights": "none", "init": "0.3 s"}}


def split(name: str, replicas: int = 2) -> list[dict[str, Any]]:
    return [one | START | {"replicas": replicas, "server": {"accelerators": 1}} for one in images.SPLITS[name]]


def falls(pool: str, at_s: float = 2.0, **more: Any) -> dict[str, Any]:
    incident = {"at_s": at_s, "for_s": 1.0, "pool": pool, "replicas": [0], **more}
    return {"policy": "scheduled", "incidents": [incident]}


def test_images_wait_for_an_encoder_to_come_back(tmp_path: Path) -> None:
    given = images.scenario(split("E-P-D", 1), faults=[falls("images", 2.0)])
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    rows = result.requests().to_pylist()
    assert not [r for r in rows if r["images"] and 2.0 < r["encode_start_s"] < 3.3]
    assert [r for r in rows if not r["images"] and 2.0 < r["first_scheduled_s"] < 3.3]  # text goes on


def test_a_slow_replica_encodes_as_slowly(tmp_path: Path) -> None:
    slow = falls("all", 0.0, what="slow", factor=3.0, for_s=1000.0)
    given = images.scenario([images.pool("all", encoder=images.ENCODER)], workload=images.one_request())
    calm, result = run(given, tmp_path / "calm"), run(given | {"faults": [slow]}, tmp_path / "slow")
    assert column(result, "encode_s")[0] == pytest.approx(3 * column(calm, "encode_s")[0])


def test_cuts_beside_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"faults\[0\]\.incidents\[0\]\.what: a link is cut in a fleet with encoders"):
        run(images.scenario(split("all"), faults=[falls("all", what="cut")]), tmp_path / "out")


def test_what_may_cut_links_is_told_before_the_run(tmp_path: Path) -> None:
    given = images.scenario(split("all"), faults=["links"])
    with pytest.raises(InputError, match="set slow_share: 1"):
        run(given, tmp_path / "out")
    run(given | {"faults": [{"policy": "links", "slow_share": 1.0}]}, tmp_path / "slow")
    result = run(given | {"faults": ["empirical"]}, tmp_path / "empirical")
    assert any("links are cut now and then" in warning for warning in result.warnings)


@MANY
@given(
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(images.SPLITS)),
    detect_s=st.sampled_from([0.0, 0.1]),
    router=st.sampled_from(["least-outstanding", "round-robin"]),
    order=st.sampled_from(["first", "last"]),
    timeout=st.booleans(),
    storm=st.booleans(),
)
def test_failures_in_leaps_and_steps(
    seed: int, name: str, detect_s: float, router: str, order: str, timeout: bool, storm: bool, tmp_path: Path
) -> None:
    gateway: dict[str, Any] = {"router": router, "on_failure": {"detect": f"{detect_s} s", "max_retries": 100}}
    if timeout:
        gateway["timeout"] = "6 s"
    pools = split(name)
    for one in pools:
        if "encoder" in one:
            one["encoder"] = one["encoder"] | {"order": order}
    mtbf_h = 0.0006 if storm else 0.003
    crashes = {"policy": "crashes", "scope": "replica", "mtbf_h": mtbf_h, "repair_h": 0.0001}
    given = images.scenario(pools, gateway=gateway, faults=[crashes]) | {"seed": seed}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "timed_out"}
