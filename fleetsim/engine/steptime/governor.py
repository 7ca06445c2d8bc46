"""Clocks, power caps, temperature and the logistic power curve, laid over any step-time model.

All of it keeps a decode step linear in the context sum, so that leaps stay exact: a cap bends a line where it begins to bite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor, inf
from typing import Any, cast

from fleetsim.catalog.accelerator import Accelerator, Logistic
from fleetsim.catalog.link import Link
from fleetsim.catalog.llm import Llm
from fleetsim.engine.api import Line, StepTimeModel
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.errors import PolicyError
from fleetsim.scenario.schema import Engine, Parallelism, PoolPower

LOWEST_VOLTAGE = 0.6
"""Voltage over that of the usual clock below which it does not fall. Down to it the voltage falls with the clock: energy
per operation then falls with its square. Measured energy-delay optima of LLaMA and ViT on A100 and H100 lie at 0.46 to
0.57 of the highest clock (mertside/ai-inference-energy): savings end about there."""
STRETCH = 0.2
"""Relative growth of a step's time over the relative power above idle that a cap takes away. Lower clocks take less energy
per operation and slow down arithmetic only: prompts on H100 capped at half their limit took 1.30 times as long and not
2.5 times (Splitwise, Patel et al. 2024, Llama 2 70B)."""
LEAKAGE_PER_K = 0.004
"""Relative growth of static and idle power per kelvin: assumed, about 1 W per K on an H100."""
REFERENCE_C = 60.0
"""Temperature that the powers of the catalogue hold at: assumed, that of a busy, air-cooled accelerator."""


def clocked(accelerator: Accelerator, ratio: float) -> Accelerator:
    """An accelerator at another clock: arithmetic slows down with it, memory does not.

    Dynamic power follows f V^2; what it draws idle and what its memory draws stay.
    """
    dynamic = ratio * max(ratio, LOWEST_VOLTAGE) ** 2
    power = accelerator.power
    return replace(
        accelerator,
        peak_flop_per_s={dtype: peak * ratio for dtype, peak in accelerator.peak_flop_per_s.items()},
        power=replace(
            power,
            static_w=power.idle_w + (power.static_w - power.idle_w) * dynamic,
            occupancy_w=power.occupancy_w * dynamic,
            active_w=power.active_w * dynamic,
            compute_w=power.compute_w * dynamic,
        ),
    )


def warmed(accelerator: Accelerator, temperature_c: float) -> Accelerator:
    """An accelerator at another temperature: static and idle power leak more."""
    factor = max(1 + LEAKAGE_PER_K * (temperature_c - REFERENCE_C), 0.0)
    power = accelerator.power
    idle_w = min(power.idle_w * factor, power.limit_w)
    static_w = min(power.static_w * factor, power.limit_w)
    return replace(accelerator, power=replace(power, idle_w=idle_w, static_w=static_w))


def governed(
    create: Callable[..., Any],
    power: PoolPower,
    llm: Llm,
    accelerator: Accelerator,
    link: Link,
    parallelism: Parallelism,
    engine: Engine,
) -> StepTimeModel:
    """The step-time model of a pool under its clocks, caps, temperature and power curve.

    Parameters
    ----------
    create : callable
        Makes the plain model of an LLM, accelerator, link, parallelism and engine.

    Raises
    ------
    PolicyError
        If the accelerator has no logistic curve and one is asked for.
    """
    if power.temperature != REFERENCE_C:
        accelerator = warmed(accelerator, power.temperature)
    if power.clock_ratio == 1:
        model = cast(StepTimeModel, create(llm, accelerator, link, parallelism, engine))
    else:
        slow = clocked(accelerator, power.clock_ratio)
        model = cast(StepTimeModel, create(llm, slow, link, parallelism, engine))
        if not isinstance(model, Roofline):
            model = Slowed(model, *(_roofline(llm, chip, link, parallelism, engine) for chip in (accelerator, slow)))
    if power.curve == "logistic":
        if accelerator.power.logistic is None:
            raise PolicyError(f"{accelerator.name} has no logistic power curve")
        model = ByBatch(model, accelerator.power.logistic, parallelism)
    if power.cap is not None:
        model = Capped(model, power.cap * parallelism.accelerators, parallelism.dp)
    return model


def _roofline(llm: Llm, accelerator: Accelerator, link: Link, parallelism: Parallelism, engine: Engine) -> Roofline:
    """The accelerators' times alone: a clock leaves the host as it is, and steps that wait for it would lose nothing."""
    alone = engine.model_copy(update={"kind": "generic"})
    return Roofline(Roofline.Config(), llm, accelerator, link, parallelism, alone)


class Wrapper:
    """A step-time model over another one: the same powers unless it says so."""

    def __init__(self, model: StepTimeModel) -> None:
        self.model = model
        self.idle_w, self.static_w, self.limit_w = model.idle_w, model.static_w, model.limit_w
        self.frontend_s = model.frontend_s

    def remarks(self) -> Sequence[str]:
        """What the model below has to say about its steps."""
        told: Callable[[], Sequence[str]] = getattr(self.model, "remarks", tuple)
        return told()

    def __getattr__(self, name: str) -> Any:
        """What a step of prompt chunks is made of, if the model below can say: its shares hold for a longer step as well."""
        if name != "prefill_operators":
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return getattr(self.model, name)


class Slowed(Wrapper):
    """A model whose times know nothing of clocks: what a roofline loses by the lower clock is added to them.

    Its energies are those of the operators at that clock already, unless the scenario states its powers.
    """

    def __init__(self, model: StepTimeModel, usual: StepTimeModel, slow: StepTimeModel) -> None:
        super().__init__(model)
        self._usual, self._slow = usual, slow

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        line, usual, slow = (m.decode(batch, ctx_tokens, group_tokens) for m in (self.model, self._usual, self._slow))
        return Line(
            line.time_s + slow.time_s - usual.time_s,
            line.time_per_ctx_s + slow.time_per_ctx_s - usual.time_per_ctx_s,
            line.energy_j,
            line.energy_per_ctx_j,
            min(line.ctx_end, usual.ctx_end, slow.ctx_end),
        )

    def mixed(
        self,
        tokens: int,
        sampled: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
        group_tokens: int,
    ) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of a step; see `fleetsim.engine.api.StepTimeModel`."""
        (time_s, energy_j), (usual_s, _), (slow_s, _) = (
            m.mixed(
                tokens,
                sampled,
                prefill_pairs,
                prefill_ctx_tokens,
                prefill_sequences,
                decode_batch,
                decode_ctx_tokens,
                group_tokens,
            )
            for m in (self.model, self._usual, self._slow)
        )
        return time_s + slow_s - usual_s, energy_j


class ByBatch(Wrapper):
    """The energy of a step from its duration and a power by batch size alone."""

    def __init__(self, model: StepTimeModel, curve: Logistic, parallelism: Parallelism) -> None:
        super().__init__(model)
        self._curve = curve
        self._chips = parallelism.accelerators // parallelism.dp
        self._static_w = model.static_w / parallelism.dp

    def _dynamic_w(self, batch: int) -> float:
        return max(self._curve.watts(batch) * self._chips - self._static_w, 0.0)

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        line, watts = self.model.decode(batch, ctx_tokens, group_tokens), self._dynamic_w(batch)
        return line._replace(energy_j=watts * line.time_s, energy_per_ctx_j=watts * line.time_per_ctx_s)

    def mixed(
        self,
        tokens: int,
        sampled: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
        group_tokens: int,
    ) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of a step; see `fleetsim.engine.api.StepTimeModel`."""
        time_s, _ = self.model.mixed(
            tokens,
            sampled,
            prefill_pairs,
            prefill_ctx_tokens,
            prefill_sequences,
            decode_batch,
            decode_ctx_tokens,
            group_tokens,
        )
        return time_s, self._dynamic_w(decode_batch + prefill_sequences) * time_s


class Capped(Wrapper):
    """Steps that would take more than a cap are stretched, so that they take just that.

    A step of time T and power P above the cap C, both above idle power, lasts T x (1 + STRETCH x (P / C - 1)) and takes
    C on average: its energy falls, since lower clocks come with lower voltages. T and P x T are linear in the context sum,
    so is the stretched time; where P = C it joins the plain line.

    Parameters
    ----------
    cap_w : float
        Most power of the whole replica [W].
    ranks : int
        Data-parallel ranks: each keeps to its share.
    """

    def __init__(self, model: StepTimeModel, cap_w: float, ranks: int) -> None:
        super().__init__(model)
        self.limit_w = min(model.limit_w, cap_w)
        self.static_w = min(model.static_w, self.limit_w)
        self.idle_w = min(model.idle_w, self.limit_w)
        self._below_w = (model.static_w - self.limit_w) / ranks
        """Static power minus the cap: what a step's time adds to its excess."""
        self._room_w = (self.limit_w - self.static_w) / ranks
        self._stretch = STRETCH / max((self.limit_w - self.idle_w) / ranks, 1e-9)

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        time_s, slope_s, energy_j, slope_j, end = line = self.model.decode(batch, ctx_tokens, group_tokens)
        excess = energy_j + self._below_w * time_s
        rise = slope_j + self._below_w * slope_s
        if excess + rise * ctx_tokens <= 0:
            return line if rise <= 0 else line._replace(ctx_end=min(end, _after(-excess / rise, ctx_tokens)))
        if rise < 0:
            end = min(end, _after(-excess / rise, ctx_tokens))
        time_s += self._stretch * excess
        slope_s += self._stretch * rise
        return Line(time_s, slope_s, self._room_w * time_s, self._room_w * slope_s, end)

    def mixed(
        self,
        tokens: int,
        sampled: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
        group_tokens: int,
    ) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of a step; see `fleetsim.engine.api.StepTimeModel`."""
        time_s, energy_j = self.model.mixed(
            tokens,
            sampled,
            prefill_pairs,
            prefill_ctx_tokens,
            prefill_sequences,
            decode_batch,
            decode_ctx_tokens,
            group_tokens,
        )
        excess = energy_j + self._below_w * time_s
        if excess <= 0:
            return time_s, energy_j
        time_s += self._stretch * excess
        return time_s, self._room_w * time_s


def _after(knot: float, ctx_tokens: int) -> float:
    """First whole context sum behind a knot, and behind the step that was asked for."""
    return max(floor(knot) + 1, ctx_tokens + 1) if knot < inf else inf
