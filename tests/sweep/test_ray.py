"""A real Ray cluster of two workers, one of which is killed in the middle, does what the local pool does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetsim.sweeping.study import Progress, Study, sweep

ray: Any = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals and /proc"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's own making
]
SEEDS = list(range(1, 9))
SECONDS = 60.0


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster for all tests here: it takes seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
    )
    yield
    ray.shutdown()


def _busy_workers() -> list[int]:
    """Processes of the cluster that carry out a run now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_perform"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _figures(study: Study) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in study.runs]


def _tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("run=*/*.parquet"))}


def test_a_killed_worker_changes_nothing(tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("requests: 40", "requests: 3000").replace("5 req/s", "20 req/s"))
    killed: list[int] = []
    ended: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not killed:
            workers = _busy_workers()
            if len(workers) == 2 and ended and ended[-1] >= 1:
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
            time.sleep(0.02)

    def progress(state: Progress) -> None:
        ended.append(state.finished)

    killer = threading.Thread(target=kill_one)
    killer.start()
    study = sweep(tiny, {"seed": SEEDS}, out="spread", engine="ray", progress=progress)
    killer.join()
    assert killed, "no worker was busy while the study ran"
    assert [row["status"] for row in study.runs] == ["finished"] * len(SEEDS)
    assert not list(Path("spread").glob(".*")), "leftovers of the killed worker"
    here = sweep(tiny, {"seed": SEEDS}, out="here", jobs=1)
    assert _figures(study) == _figures(here)
    assert _tables(Path("spread")) == _tables(Path("here")) != {}


def test_results_go_to_any_address(tiny: Path) -> None:
    address = f"file://{tiny.parent}/store"
    study = sweep(tiny, {"seed": [1, 2, 3]}, out=address, engine="ray")
    assert len(study.finished) == 3
    sweep(tiny, {"seed": [1, 2, 3]}, out="here", jobs=1)
    assert _tables(tiny.parent / "store") == _tables(Path("here"))
    told: list[Progress] = []
    again = sweep(tiny, {"seed": [1, 2, 3, 4]}, out=address, engine="ray", progress=told.append)
    assert (told[-1].kept, told[-1].finished, len(again.finished)) == (3, 1, 4)


def test_a_run_that_fails_is_a_row(tiny: Path) -> None:
    axes = {"gateway.router": ["round-robin", "tests.sweep.routers:Stumbles"]}
    study = sweep(tiny, axes, out="study", engine="ray", allow_import=True)
    assert [row["status"] for row in study.runs] == ["finished", "failed"]
    assert "lost my way" in study.failed[0]["error"]
