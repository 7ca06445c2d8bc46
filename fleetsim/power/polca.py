"""POLCA: more servers than a row's breakers were sized for, and lower clocks when too many of them are busy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import Brake, Clock, Row, Setting

Ratio = Annotated[float, Field(gt=0, le=1)]


class PolcaConfig(PolicyConfig):
    """Parameters of POLCA; its clocks are those of an A100, whose usual one is 1410 MHz."""

    first_ratio: Ratio = 0.80
    """T1: share of the row's budget above which pools of low priority run at `first_clock`."""
    second_ratio: Ratio = 0.89
    """T2: share above which they run at `second_clock`, and if that is not enough, the others at `high_clock`."""
    brake_ratio: Ratio = 1.0
    """Share at which everything is braked."""
    hysteresis_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """So much below a threshold what was done because of it is undone."""
    first_clock: Ratio = 0.9043
    """1275 MHz of 1410."""
    second_clock: Ratio = 0.7872
    """1110 MHz of 1410."""
    high_clock: Ratio = 0.9255
    """1305 MHz of 1410."""
    brake_clock: Ratio = 0.2043
    """288 MHz of 1410."""
    patience_s: Annotated[float, Field(ge=0)] = 40.0
    """Time that the row is given to react to `second_clock` before pools of high priority are slowed down too: that of the
    management controllers, 40 s. An assumption: the card does not say how long POLCA waits [s]."""
    period_s: Annotated[float, Field(gt=0)] = 2.0
    """Time between two looks at the row's power [s]."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.hysteresis_ratio < self.first_ratio < self.second_ratio < self.brake_ratio:
            raise ValueError("hysteresis_ratio, first_ratio, second_ratio and brake_ratio must rise in this order")
        return self


class Polca:
    """Low priority runs at lower clocks when the row's power nears its budget, then high priority, and a brake is the last resort.

    Rule: every `period_s` the row's power is compared with its `budget`. Above `first_ratio` the pools in `low_priority` run at
    `first_clock`; above `second_ratio` at `second_clock`; if the row is still above it `patience_s` later, all others run at
    `high_clock`. At `brake_ratio` everything is held at `brake_clock`. Each of these is undone once power is `hysteresis_ratio`
    below its threshold. Without a budget nothing is ever done.

    Charged: the row's `telemetry`, `actuation` (up to 40 s through management controllers) and `brake` (5 s); longer steps.

    References
    ----------
    Patel et al., "Characterizing Power Management Opportunities for LLMs in the Cloud", ASPLOS 2024 (POLCA). Thresholds and clocks
    are quoted from memory of it.
    """

    Config: ClassVar = PolcaConfig
    needs_budget = True

    def __init__(self, config: PolcaConfig, rng: Generator, row: Row) -> None:
        self.period_s = config.period_s
        self._config = config
        self._row = row
        self._low = self._high = 1.0
        self._second_since_s = -1.0
        self._braked = False

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        row, config = self._row, self._config
        used = row.power_w / row.budget_w
        self._brake(used)
        low, high = self._clocks(used)
        settings: list[Setting] = []
        for number, replica in enumerate(row.replicas):
            ratio, was = (low, self._low) if row.pools[replica.pool].low_priority else (high, self._high)
            if ratio != was:
                settings.append(Clock(number, ratio))
            if replica.braked != self._braked:  # also if an earlier answer is still on its way
                settings.append(Brake(number, config.brake_clock if self._braked else None))
        self._low, self._high = low, high
        return settings

    def _brake(self, used: float) -> None:
        if used >= self._config.brake_ratio:
            self._braked = True
        elif used < self._config.brake_ratio - self._config.hysteresis_ratio:
            self._braked = False

    def _clocks(self, used: float) -> tuple[float, float]:
        """Clocks of low and of high priority from now on."""
        config, now_s = self._config, self._row.now_s
        low, high = self._low, self._high
        if used > config.second_ratio:
            if low > config.second_clock:
                low, self._second_since_s = config.second_clock, now_s
            elif now_s - self._second_since_s >= config.patience_s:
                high = config.high_clock
        elif used > config.first_ratio:
            low = min(low, config.first_clock)
        if used < config.second_ratio - config.hysteresis_ratio:
            high = 1.0
            low = max(low, config.first_clock)
        if used < config.first_ratio - config.hysteresis_ratio:
            low = 1.0
        return low, high
