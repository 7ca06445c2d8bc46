"""Power and energy for step-time models that know times only."""

from __future__ import annotations

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.link import Link
from fleetsim.catalog.llm import Llm
from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.plugins import PolicyConfig
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.units import Watts


class PowerConfig(PolicyConfig):
    """Powers of one accelerator, where they are known better than from the catalogue."""

    idle_power: Watts | None = None
    """While it computes nothing; default: the catalogue's."""
    static_power: Watts | None = None
    """While a step runs, before what the computing adds; default: the catalogue's."""
    dynamic_power: Watts | None = None
    """What computing adds, in every step alike; default: the energy of each step's operators, as the roofline has it."""
    limit_power: Watts | None = None
    """What it never exceeds; default: the catalogue's."""


class Supply:
    """Powers of one replica, and who knows the dynamic energy of its steps."""

    def __init__(
        self,
        config: PowerConfig,
        llm: Llm,
        accelerator: Accelerator,
        link: Link,
        parallelism: Parallelism,
        engine: Engine,
    ) -> None:
        power, chips = accelerator.power, parallelism.accelerators
        idle, static, limit = config.idle_power, config.static_power, config.limit_power
        self.limit_w = (power.limit_w if limit is None else limit) * chips
        self.idle_w = min((power.idle_w if idle is None else idle) * chips, self.limit_w)
        self.static_w = min((power.static_w if static is None else static) * chips, self.limit_w)
        self.operators: StepTimeModel = Roofline(Roofline.Config(), llm, accelerator, link, parallelism, engine)
        self.frontend_s = self.operators.frontend_s
        per_rank = parallelism.accelerators // parallelism.dp
        self.dynamic_w = None if config.dynamic_power is None else config.dynamic_power * per_rank
        """Of one data-parallel rank; None where the operators say."""
