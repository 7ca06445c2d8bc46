"""Real results, and Debian's chromium to look at their pages with."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

import fleetsim
from tests.results.conftest import RATE, RATES, ROUTER, ROUTERS, SCENARIO

HOSTILE = "<script>document.title='taken'</script>&\"'{{ 7 * 7 }}</script>"
"""A name that does harm where it is not escaped."""


def scenario(**changes: Any) -> dict[str, Any]:
    """Two pools, two tenants, two classes, carbon and prices."""
    parts = {
        name: {
            **SCENARIO["workload"],
            "requests": 150,
            "arrivals": {"process": "poisson", "rate": rate},
            "class": name,
            "tenant": tenant,
        }
        for name, tenant, rate in (("chat", "acme", "20 req/s"), ("batch", "<b>bold</b>", "12 req/s"))
    }
    workload = {"kind": "mix", "parts": parts}
    energy = {"carbon_intensity": "380 g/kWh", "electricity_price": "0.12 USD/kWh"}
    return SCENARIO | {"workload": workload, "energy": energy} | changes


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a scenario whose name is an attack; not to be changed."""
    return fleetsim.run(scenario(name=HOSTILE), out=tmp_path_factory.mktemp("report") / "hostile").out


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of routers and rates with two seeds each; not to be changed."""
    out = tmp_path_factory.mktemp("report") / "routers"
    axes = {ROUTER: list(ROUTERS), RATE: [f"{rate:g} req/s" for rate in RATES]}
    fleetsim.sweep(SCENARIO, axes, out=out, name="routers", replications=2, jobs=1)
    return out


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of model routers and rates with two seeds each; not to be changed."""
    out = tmp_path_factory.mktemp("report") / "model-routers"
    axes = {
        "gateway.model_router": ["random", "linucb", "oracle"],
        "workload.arrivals.rate": ["10 req/s", "30 req/s"],
    }
    overrides = {"workload.requests": 240}
    scenario = Path(__file__).parents[2] / "scenarios/models/three-models.yaml"
    fleetsim.sweep(scenario, axes, out=out, name="model routers", overrides=overrides, replications=2, jobs=1)
    return out


@pytest.fixture(scope="session")
def half_failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two runs of which one failed; not to be changed."""
    out = tmp_path_factory.mktemp("report") / "half-failed"
    axes = {ROUTER: ["round-robin", "tests.sweep.routers:Stumbles"]}
    fleetsim.sweep(SCENARIO, axes, out=out, name="half failed", jobs=1, allow_import=True)
    return out


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of chromium, installed when it is missing; where that cannot be, tests are skipped, and in CI they fail."""
    found = _chromium()
    if found is None:
        # one worker installs it, the others wait
        with open(Path(tempfile.gettempdir()) / "fleetsim-chromium.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            reason = None if _chromium() else _install()
        found = _chromium()
        if found is None:
            message = f"no chromium, and it cannot be installed: {reason}"
            if os.environ.get("CI", "").lower() in ("1", "true"):
                pytest.fail(message)
            pytest.skip(message)
    return found


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _install() -> str | None:
    """Install chromium as Debian does; why not, if that fails."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return "apt-get and root are needed"
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()[-300:]}"
    return None


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless browser, closed before other modules may want an event loop."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()
