"""Priorities that are drawn again every so many steps: FastSwitch's."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fleetsim.engine.orders.order import Key, Order, Outlook
from fleetsim.plugins import PolicyConfig
from fleetsim.workload.request import Request


class PriorityEpochsConfig(PolicyConfig):
    """Parameters of priority epochs."""

    frequency: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "per step"})] = 0.04
    """Epochs per step (FastSwitch: 0.04 for 8 billion parameters, 0.02 for 32)."""
    pattern: Literal["random", "markov"] = "markov"
    """Every request gets a new priority, or a running one keeps its own more often."""
    levels: Annotated[int, Field(ge=2, strict=True, json_schema_extra={"unit": "count"})] = 8
    """Priorities that there are; an assumption."""
    keep_ratio: Annotated[float, Field(ge=0, le=1)] = 0.8
    """With markov, chance that a running request keeps its priority; an assumption."""


class PriorityEpochs(Order):
    """FastSwitch's load: priorities change every 25 steps or so, and the highest that fit run.

    Rule: a request gets a random priority when it joins. Every 1 / frequency steps all requests, waiting and running, get new ones:
    all of them (`random`), or with a chance of 1 - `keep_ratio` those that run (`markov`). The highest priorities that fit run,
    among equals the earlier ones; others give way, but for those whose prompt is under way. It makes an engine show what it costs
    to be fair by changing who runs. Charged: preemption, as `engine.kv.preemption` says; FastSwitch itself is `{mode: swap,
    group_blocks: 20, asynchronous: true, reuse: true}` there.

    References
    ----------
    A. Shen et al., "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving",
    arXiv:2411.18424; frequencies are its, levels and the chance to keep a priority are assumptions.
    """

    Config: ClassVar = PriorityEpochsConfig
    preemptive: ClassVar[bool] = True
    eager: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def __init__(self, config: PriorityEpochsConfig, outlook: Outlook) -> None:
        super().__init__(config, outlook)
        self.rng = np.random.default_rng(0)
        """Where priorities come from; a fleet gives each rank a stream of its own."""
        self._drawn: dict[Request, int] = {}
        """Priority of each request, in order of arrival."""
        self._every = max(round(1 / config.frequency), 1)
        self._epoch = 0

    def key(self, request: Request) -> Key:
        """Highest priority first."""
        return -self._drawn[request]

    def append(self, request: Request) -> None:
        """Let a request join; it keeps its priority if it was here before in this epoch."""
        if request not in self._drawn:
            self._drawn[request] = self._draw()
        super().append(request)

    def remove(self, request: Request) -> None:
        """Take out a request that will not run here."""
        super().remove(request)
        self._drawn.pop(request, None)

    def left(self, request: Request) -> None:
        """Forget a request."""
        self._drawn.pop(request, None)

    def refresh(self) -> None:
        """Draw again once an epoch has passed."""
        epoch = self.batch.step // self._every
        if epoch == self._epoch:
            return
        self._epoch = epoch
        keep_ratio = self.config.keep_ratio if self.config.pattern == "markov" else 0.0
        running = self.batch.running
        for request in self._drawn:
            if keep_ratio and request in running and self.rng.random() < keep_ratio:
                continue
            self._drawn[request] = self._draw()
        for request in list(self._queue):
            self._queue.push(self.key(request), request)

    def until_change(self) -> tuple[int, float]:
        """Until the next epoch."""
        steps, at_s = super().until_change()
        return min(steps, self._every - self.batch.step % self._every), at_s

    def _draw(self) -> int:
        return int(self.rng.integers(self.config.levels))
