"""Settings of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is no failure
settings.register_profile("fleetsim", deadline=None)
settings.load_profile("fleetsim")

TOGETHER = ("acceptance", "docs", "report", "results")
"""Folders whose tests look at the same few long runs: one process makes these, not each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of such a folder in one of the processes of `pytest -n`."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(folder))
