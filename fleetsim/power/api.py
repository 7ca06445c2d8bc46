"""What a power manager sees of the replicas that it looks after, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Clock:
    """Set a replica's clock."""

    replica: int
    """Its number in the row."""
    ratio: float
    """Clock over the usual one, from the pool's lowest to 1."""


@dataclass(frozen=True, slots=True)
class Cap:
    """Cap the power of each of a replica's accelerators."""

    replica: int
    watts: float | None
    """Above idle power, at most the board limit [W]; None lifts the cap."""


@dataclass(frozen=True, slots=True)
class Brake:
    """Hold a replica at a very low clock over the driver's head, whatever clock is set: for when breakers are about to trip."""

    replica: int
    ratio: float | None
    """Clock over the usual one, above 0; None releases the brake."""


@dataclass(frozen=True, slots=True)
class Seats:
    """Let replicas of a pool run so many requests at a time, per data-parallel rank."""

    pool: int
    """Its number in the row."""
    count: int
    """From 1 to what the scenario's scheduler says."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Put a replica to sleep: nothing, if it has requests by then or is not ready."""

    replica: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake a replica: nothing, if it does not sleep."""

    replica: int


Setting = Clock | Cap | Brake | Seats | Sleep | Wake
"""What a manager may do."""


class Window:
    """Latencies of a pool since its manager looked last."""

    __slots__ = ("late", "longest_prompt", "slow", "tpot_sum_s", "tpots", "ttft_sum_s", "ttfts")

    def __init__(self) -> None:
        self.ttfts = 0
        self.ttft_sum_s = 0.0
        """Times to first token seen, and their sum [s]."""
        self.late = 0
        """Of these, those beyond the objective."""
        self.longest_prompt = 0
        """Longest prompt of these [tokens]."""
        self.tpots = 0
        self.tpot_sum_s = 0.0
        """Times per output token of requests that finished, and their sum [s]."""
        self.slow = 0
        """Of these, those beyond the objective."""


class ReplicaState:
    """A replica as its telemetry shows it."""

    __slots__ = (
        "braked",
        "busy_ratio",
        "cap_w",
        "clock_ratio",
        "ctx_tokens",
        "idle_s",
        "missed",
        "oldest_s",
        "output_tokens",
        "pool",
        "power_w",
        "prompt_tokens",
        "running",
        "state",
        "temperature_c",
        "throttled",
        "ttfts",
        "waiting",
        "waiting_tokens",
    )

    def __init__(self, pool: int) -> None:
        self.pool = pool
        """Number of its pool in the row."""
        self.state = "ready"
        """``ready``, ``asleep``, ``waking``, ``starting``, ``draining``, ``down`` or ``off``."""
        self.power_w = 0.0
        """Mean power of its accelerators since the manager looked last [W]."""
        self.clock_ratio = 1.0
        """Clock in force, brake and throttling included."""
        self.cap_w = inf
        """Cap of one accelerator in force [W]; infinite without."""
        self.braked = False
        self.throttled = False
        """Whether heat has lowered its clock."""
        self.temperature_c = nan
        """Of its accelerators [°C]; NaN where nobody measures it."""
        self.running = 0
        """Requests running."""
        self.waiting = 0
        """Requests in its queue."""
        self.waiting_tokens = 0
        """Prompt tokens that these, and those that are being computed, still need."""
        self.ctx_tokens = 0
        """Tokens of context that its decoding requests hold."""
        self.oldest_s = 0.0
        """Age of the oldest request without a first token [s]; 0 without one."""
        self.ttfts = 0
        """First tokens that it produced since the manager looked last."""
        self.missed = 0
        """Of these, those beyond the objective."""
        self.prompt_tokens = 0
        """Prompt tokens computed since the manager looked last."""
        self.output_tokens = 0
        """Tokens produced since then."""
        self.busy_ratio = 0.0
        """Share of that time in which steps ran."""
        self.idle_s = 0.0
        """Time for which it has had no request, as far as the manager has seen [s]."""


class PoolState:
    """What is the same for all replicas of a pool."""

    def __init__(
        self,
        name: str,
        low_priority: bool,
        accelerators: int,
        idle_w: float,
        limit_w: float,
        slots: int,
        sleep_w: float | None,
        wake_s: float,
        step_s: Callable[[float, int, int], float],
        prefill_s: Callable[[float, float], float],
    ) -> None:
        self.name = name
        self.low_priority = low_priority
        """Whether it is slowed down first."""
        self.accelerators = accelerators
        """Of one replica."""
        self.idle_w = idle_w
        """Power of one accelerator that computes nothing [W]."""
        self.limit_w = limit_w
        """Most power of one accelerator: its board limit, or what the scenario caps it at [W]."""
        self.lowest_ratio = 0.1
        """Lowest clock that a manager may set."""
        self.most_slots = slots
        """Requests that a rank runs at a time at most, as the scenario says."""
        self.slots = slots
        """The same as it is set now."""
        self.sleep_w = sleep_w
        """Power of one accelerator of a replica that sleeps [W]; None where there is no such state."""
        self.wake_s = wake_s
        """Time from waking a replica to its first request [s]."""
        self.step_s = step_s
        """Predicted duration of a decode step at a clock, of so many requests with so many tokens of context altogether [s]."""
        self.prefill_s = prefill_s
        """Predicted time at a clock to compute a prompt of so many tokens alone [s]."""
        self.ttft_limit_s = inf
        """Objective of the scenario [s]; infinite without one."""
        self.tpot_limit_s = inf
        self.waiting_outside = 0
        """Requests that wait at the gateway because none of its replicas is there."""
        self.window = Window()
        """Latencies since the manager looked last."""


class Row:
    """What a manager looks after, brought up to date before each tick: a row of racks, a pool, or a whole fleet.

    All of it is as it was at `seen_s`: `telemetry` before the manager is asked.
    """

    def __init__(self, pools: Sequence[PoolState], budget_w: float, attainment: float) -> None:
        self.pools = tuple(pools)
        self.budget_w = budget_w
        """Power that accelerators and servers are to keep to [W]; infinite if the scenario says none."""
        self.attainment = attainment
        """Share of the requests that are to meet their objectives."""
        self.replicas: Sequence[ReplicaState] = ()
        self.now_s = 0.0
        """Time of this tick [s]."""
        self.seen_s = 0.0
        """Time of what it shows [s]."""
        self.elapsed_s = 0.0
        """Time since the look before [s]."""
        self.power_w = 0.0
        """Mean power of accelerators and servers since then [W]."""
        self.host_w = 0.0
        """Of that, the servers' [W]."""


class PowerManager(Protocol):
    """Sets clocks, caps, batch sizes and sleep states.

    Built as ``Policy(config, rng, row)``: its parameters, its own random stream, and what it looks after. Its attribute `period_s`
    says how often it is asked. What it answers takes effect after the row's `actuation` (a brake after `brake`), at the next
    boundary between two steps; what is not mentioned stays as it is.
    """

    period_s: float

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        ...
