"""From the quality block of a scenario to a world."""

from __future__ import annotations

from pathlib import Path

from fleetsim.quality.api import World
from fleetsim.quality.irt import IrtWorld
from fleetsim.quality.outcomes import OutcomeWorld
from fleetsim.scenario.quality import Quality


def build_world(config: Quality, seed: int, base_dir: Path) -> World:
    """What is true of requests: replayed outcomes where the scenario names a table, else drawn ones.

    Raises
    ------
    InputError
        If a profile or a table cannot be used.
    """
    if config.outcomes is not None:
        return OutcomeWorld(config, seed, base_dir)
    return IrtWorld(config, seed)
