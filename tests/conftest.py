"""Settings of all tests."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import settings

# a busy machine is no failure
settings.register_profile("fleetsim", deadline=None)
settings.load_profile("fleetsim")

TOGETHER = ("acceptance", "docs", "report", "results")
"""Folders whose tests look at the same few long runs: one process makes these, not each."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of such a folder in one of the processes of `pytest -n`, and begin with them."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = nodeid.split("/")[1]
            return folder if folder in TOGETHER else nodeid

    return Together(config, log)


def pytest_collection_finish() -> None:
    """Keep all that was imported out of every search for garbage."""
    gc.collect()
    gc.freeze()
