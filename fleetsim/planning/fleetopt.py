"""FleetOpt: a pool for short requests and one for long ones, with the boundary, the compression and the sizes that cost least.

Two versions of the model are kept apart, since they differ by more than a factor of two: that of the paper's tables, where a step
takes ``W + H n`` whatever the lengths, and that of the code of the authors (``head``), where H grows with the length of the
requests and waits are those of slots, not of replicas.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from math import ceil, exp, inf, log2
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.queueing import wait_quantile
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Block, Count, Number, Ratio, Tokens
from fleetsim.units import PerSecond, Seconds, UsdPerHour, Watts

Floats = np.ndarray[Any, np.dtype[np.float64]]
HOURS_PER_YEAR = 8760
_REFERENCE_TOKENS = 8192
"""Context at which slots and H were measured."""
_BLOCK_TOKENS = 16
_INPUT_RATIO = 0.8
"""Share of a request's tokens that is its prompt, as the authors split their histograms."""


class StepProfile(Block):
    """A replica of the authors' model: a step of n requests takes ``base + per_request n``."""

    base: Seconds
    """W: time of a step without any request."""
    per_request: Seconds
    """H: time that each request adds, at 8,192 tokens."""
    chunk_tokens: Tokens
    """Prompt tokens per step and request."""
    kv_blocks: Count
    """Blocks of 16 tokens."""
    max_slots: Count
    """Requests at a time, at 8,192 tokens each."""
    price: UsdPerHour
    """Of a replica."""
    idle: Watts = 0.0
    """Power with hardly any request …"""
    nominal: Watts = 0.0
    """… and with very many; in between a logistic curve over log2 of the requests."""
    steepness: Number = 1.0
    """k of that curve."""
    midpoint: Number = 0.0
    """x0 of that curve: log2 of the requests at half the range."""

    def slots(self, context_tokens: int) -> int:
        """Requests at a time where each may have `context_tokens`."""
        by_memory = self.kv_blocks // ceil(context_tokens / _BLOCK_TOKENS)
        return min(self.max_slots * _REFERENCE_TOKENS // context_tokens, by_memory)

    def step_s(self, requests: int, mean_tokens: float = _REFERENCE_TOKENS) -> float:
        """Duration of a step [s]."""
        return self.base + self.per_request * (mean_tokens / _REFERENCE_TOKENS) * requests

    def power_w(self, requests: int) -> float:
        """Power of a replica with so many requests [W]."""
        curve = 1.0 + exp(-self.steepness * (log2(max(requests, 1)) - self.midpoint))
        return self.idle + (self.nominal - self.idle) / curve

    def tokens_per_joule(self, context_tokens: int) -> float:
        """The 1/W law: output tokens per second and watt with all slots decoding, each at half its window."""
        slots = self.slots(context_tokens)
        return slots / self.step_s(slots, context_tokens / 2) / self.power_w(slots)


@dataclass(frozen=True, slots=True)
class Sized:
    """A pool that was sized."""

    replicas: int
    slots: int
    rate_per_s: float
    service_s: float
    """Mean time of a request in a slot [s]."""
    service_cv2: float
    wait_s: float
    """99th percentile of the wait [s]."""
    prefill_s: float
    """Mean time of prompts alone [s]."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two pools for a boundary and a compression."""

    boundary_tokens: int
    gamma: float
    short: Sized
    long: Sized
    cost_usd_per_h: float


class Drawn(Block):
    """Requests drawn from the histogram to estimate service times: the authors' code takes 3,000 by Python's generator, seed 42."""

    requests: Count = 3000
    """How many."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 42
    """Of Python's generator."""


class StatedFleetOpt(Block):
    """Two pools by request length: boundary, compression and sizes that cost least under a limit on the wait."""

    kind: Literal["fleetopt"]
    version: Literal["paper", "head"]
    """Model of the paper's tables, or of the authors' code of 2026."""
    rate: PerSecond
    """Arrivals."""
    lengths: Annotated[tuple[tuple[Tokens, Ratio], ...], Field(min_length=1)]
    """Pairs of a length, prompt and answer together, and the share of requests up to it; even in between."""
    boundaries: Annotated[tuple[Tokens, ...], Field(min_length=1)]
    """B: longest short request; the best of these is taken."""
    gammas: Annotated[tuple[Annotated[Number, Field(ge=1)], ...], Field(min_length=1)] = (1.0,)
    """Requests up to this times B are compressed into the short pool; the best of these is taken."""
    compressed_share: Ratio = 0.75
    """Part of those that can be compressed."""
    wait_limit: Seconds
    """99th percentile of the wait for a slot, at most."""
    utilisation: Annotated[Number, Field(gt=0, le=1)] = 0.85
    """Of each pool, at most."""
    long_context: Tokens = 65_536
    """Window of the long pool."""
    drawn: Drawn | None = None
    """Draw requests instead of integrating over the histogram, as the authors' code does."""
    short_replica: StepProfile
    """Replicas of the short pool."""
    long_replica: StepProfile | None = None
    """Replicas of the long pool; default: the same."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        tokens, shares = ([pair[k] for pair in self.lengths] for k in (0, 1))
        if tokens != sorted(set(tokens)):
            raise ValueError("lengths must rise")
        if shares != sorted(shares) or shares[-1] != 1.0:
            raise ValueError("shares of requests must not fall and end at 1")
        return self

    def share_up_to(self, tokens: float) -> float:
        """Share of requests that are no longer than `tokens`."""
        return float(np.interp(tokens, *self._curve()))

    def _curve(self) -> tuple[Floats, Floats]:
        """Lengths from 0 on, and shares up to them."""
        tokens, shares = zip((0, 0.0), *self.lengths, strict=True)
        return np.array(tokens, dtype=np.float64), np.array(shares)

    @property
    def longest_tokens(self) -> int:
        """Longest request [tokens]."""
        return self.lengths[-1][0]

    def _densities(self, above: float, up_to: float) -> tuple[Floats, Floats]:
        """Whole lengths in (above, up_to] and their shares, adding up to 1."""
        if self.drawn is not None:
            return self._draws(self.drawn, above, up_to)
        tokens = np.arange(int(above) + 1, int(up_to) + 1, dtype=np.float64)
        known, shares = self._curve()
        weights = np.interp(tokens, known, shares) - np.interp(tokens - 1.0, known, shares)
        return tokens[weights > 0], weights[weights > 0] / weights.sum()

    def _draws(self, drawn: Drawn, above: float, up_to: float) -> tuple[Floats, Floats]:
        """Lengths as they are drawn: a step of the histogram, then a whole number in it, or the longest where none is possible."""
        rng = random.Random(drawn.seed)  # noqa: S311 - the published figure depends on these draws
        least, most = self.share_up_to(above), self.share_up_to(up_to)
        steps = [(tokens, share) for tokens, share in self.lengths if above < tokens <= up_to]
        shares = [min((share - least) / (most - least), 1.0) for _, share in steps]
        shares[-1] = 1.0
        lowest, longest = max(int(above), 1), int(self._window(up_to))
        tokens = []
        for _ in range(drawn.requests):
            place = bisect_left(shares, rng.random())
            first = max(lowest, (steps[place - 1][0] if place else 0) + 1)
            last = min(longest, steps[place][0])
            tokens.append(rng.randint(first, last) if first <= last else longest)
        return np.array(tokens, dtype=np.float64), np.full(drawn.requests, 1.0 / drawn.requests)

    def _window(self, up_to: float) -> float:
        """Context of the pool whose longest request this is."""
        return up_to if up_to in self.boundaries else float(self.long_context)

    def _sized(self, profile: StepProfile, rate: float, context: int, above: float, up_to: float) -> Sized:
        """The smallest pool for requests with lengths in (above, up_to]."""
        slots = profile.slots(context)
        if rate <= 1e-9 or self.share_up_to(up_to) - self.share_up_to(above) <= 0.0:
            return Sized(0 if rate <= 1e-9 else 1, slots, rate, 0.0, 0.0, 0.0, 0.0)
        tokens, shares = self._densities(above, up_to)
        prompts = np.maximum(np.floor(tokens * _INPUT_RATIO), 1.0)
        answers = np.maximum(tokens - prompts, 1.0)
        growth = tokens / _REFERENCE_TOKENS if self.version == "head" else np.ones_like(tokens)
        chunks = np.ceil(prompts / profile.chunk_tokens)
        service = (chunks + answers) * (profile.base + profile.per_request * growth * slots)
        mean = float(shares @ service)
        cv2 = max(float(shares @ service**2) / mean**2 - 1.0, 0.0)
        prefill = float(shares @ chunks) * profile.step_s(1)
        least = ceil(rate * mean / slots) + 1 if self.version == "head" else int(rate * mean / slots) + 1
        replicas = max(ceil(rate * mean / (slots * self.utilisation)), least)
        while self._wait_s(replicas, slots, rate, mean, cv2) > self.wait_limit:
            replicas += 1
            if replicas > 100_000:
                raise InputError(Finding("100,000 replicas do not keep the wait", hint="relax wait_limit"))
        return Sized(replicas, slots, rate, mean, cv2, self._wait_s(replicas, slots, rate, mean, cv2), prefill)

    def _wait_s(self, replicas: int, slots: int, rate: float, mean: float, cv2: float) -> float:
        """99th percentile of the wait: a slot is a server (head), or a replica with a slot's share of the time (paper)."""
        if self.version == "head":
            return wait_quantile(replicas * slots, rate * mean, 0.99, cv2) * mean
        per_replica = mean / slots
        return wait_quantile(replicas, rate * per_replica, 0.99, cv2) * per_replica

    def candidate(self, boundary: int, gamma: float) -> Candidate:
        """Both pools for one boundary and one compression."""
        short_profile, long_profile = self.short_replica, self.long_replica or self.short_replica
        here, there = self.share_up_to(boundary), self.share_up_to(int(gamma * boundary))
        taken = min(here + (there - here) * self.compressed_share, 1.0)
        short = self._sized(short_profile, taken * self.rate, boundary, 0, boundary)
        left = 1.0 - taken
        longest = self.longest_tokens
        above = int(gamma * boundary) if there < 1.0 else boundary
        long = self._sized(long_profile, left * self.rate, self.long_context, above, min(self.long_context, longest))
        cost = short.replicas * short_profile.price + long.replicas * long_profile.price
        return Candidate(boundary, gamma, short, long, cost)

    def homogeneous(self) -> Sized:
        """One pool for all requests, with the long pool's window."""
        profile = self.long_replica or self.short_replica
        return self._sized(profile, self.rate, self.long_context, 0, min(self.long_context, self.longest_tokens))

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - enumeration needs no solver
        """The cheapest boundary and compression, all of them tried."""
        found = [self.candidate(boundary, gamma) for boundary in self.boundaries for gamma in self.gammas]
        best = min(found, key=lambda c: (c.cost_usd_per_h, c.gamma, c.boundary_tokens))
        alone = self.homogeneous()
        single = alone.replicas * (self.long_replica or self.short_replica).price
        rows = [
            {
                "boundary": c.boundary_tokens,
                "gamma": c.gamma,
                "short": c.short.replicas,
                "long": c.long.replicas,
                "USD/h": c.cost_usd_per_h,
                "kUSD/y": c.cost_usd_per_h * HOURS_PER_YEAR / 1000,
                "wait p99 s": max(c.short.wait_s, c.long.wait_s),
            }
            for c in sorted(found, key=lambda c: (c.cost_usd_per_h, c.gamma, c.boundary_tokens))
        ]
        figures = {
            "boundary_tokens": float(best.boundary_tokens),
            "gamma": best.gamma,
            "replicas_short": float(best.short.replicas),
            "replicas_long": float(best.long.replicas),
            "replicas": float(best.short.replicas + best.long.replicas),
            "cost_usd_per_y": best.cost_usd_per_h * HOURS_PER_YEAR,
            "replicas_homogeneous": float(alone.replicas),
            "saved_ratio": 1.0 - best.cost_usd_per_h / single if single else 0.0,
        }
        router = {
            "policy": "fleetopt",
            "boundary_tokens": best.boundary_tokens,
            "gamma": best.gamma,
            "compressed_share": self.compressed_share,
        }
        slowest = best.long.wait_s + best.long.prefill_s if best.long.replicas else inf
        notes = [
            f"the {self.version} model: the limit is on the wait, not on the first token; prompts of the long pool take "
            f"{best.long.prefill_s:.2g} s more on average ({slowest:.2g} s with the wait)",
            f"route with gateway.router: {router}",
        ]
        cost = best.cost_usd_per_h
        return Plan("fleetopt", "optimal", cost, "USD/h", cost, {}, figures, tuple(rows), (), tuple(notes))
