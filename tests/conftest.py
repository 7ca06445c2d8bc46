"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# a busy machine is no failure
settings.register_profile("fleetsim", deadline=None)
settings.load_profile("fleetsim")
