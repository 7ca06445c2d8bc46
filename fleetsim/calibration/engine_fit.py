"""Fits an engine's host time, front-end latency and scale to measured runs of a server that a scenario describes.

The scenario is simulated with the runs' own requests until the times agree. Which constants the runs can tell apart is
decided by the standard errors that the Jacobian of the logarithms of the compared figures gives.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from scipy.optimize import least_squares

from fleetsim.calibration.runs import Floats, Run, Sent
from fleetsim.catalog.data import read_yaml
from fleetsim.catalog.own import engine_profile
from fleetsim.errors import DataError, Finding
from fleetsim.experiment.check import require_valid
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.load import LoadedScenario
from fleetsim.workload.request import FINISHED, Request

NAMES = ("host", "frontend", "scale")
"""Constants that may be fitted, as calibration files call them."""
UNITS = {"host": ("ms", 1e3), "frontend": ("ms", 1e3), "scale": ("ratio", 1.0)}
"""Unit of each in a file, and units per second."""
SMALLEST = {"host": 0.5e-3, "frontend": 5e-3, "scale": 1.0}
"""What a constant is measured against where the engine's own is smaller [s, s, 1]."""
LIMITS = {"host": (0.0, 0.1), "frontend": (0.0, 5.0), "scale": (0.2, 5.0)}
"""What each may be [s, s, 1]."""
SUBSETS = (
    ("host", "frontend", "scale"),
    ("host", "frontend"),
    ("frontend", "scale"),
    ("host", "scale"),
    ("host",),
    ("frontend",),
    ("scale",),
)
"""What to fit, most first: the first set that the runs can tell apart. The scale goes first, since kernels were measured."""
NOISE = 0.02
"""Error that every compared figure is taken to have at least, in its logarithm."""
COARSE_NOISE = 0.05
"""The same where only means are known: lengths and times of sending are then drawn, not those of the run."""
TOLERANCE = {"host": 1e-3, "frontend": 10e-3, "scale": 0.1}
"""A constant is identifiable if its standard error is at most this [s, s, 1], or a share of the constant."""
SHARE = {"host": 0.3, "frontend": 0.3, "scale": 0.1}
"""That share."""
BINS = 8
"""Figures of a detailed run: mean TTFT in bins of prompt length, mean TPOT in bins of TPOT, this many of each."""
LARGEST_RUN = 2000
"""Requests of a run that are simulated at most."""
STEPS = (0.3, 0.1)
"""Steps of the differences that stand for derivatives, coarse first: one request more or less in a step is a jump."""
CHANCES = 3
"""Simulations that a figure is the mean of, their times of sending shifted by up to a step."""
TRIALS = 12
"""Simulations that show how much of the constants is chance."""


@dataclass(frozen=True)
class Times:
    """Times of a simulated run, by request in the order of sending."""

    ttft_s: Floats
    tpot_s: Floats
    """NaN for requests with one token."""
    batch_max: int
    """Most requests that decoded at the same time."""


@dataclass(frozen=True)
class Constant:
    """One fitted constant, or why it was left as it was."""

    name: str
    value: float
    """[s], or a ratio."""
    before: float
    error: float
    """Standard error in the same unit; infinite where the runs do not show the constant at all."""
    fitted: bool


@dataclass(frozen=True)
class Errors:
    """Absolute relative errors of one figure: over requests where they are known, else over the means of runs."""

    median: float
    p90: float
    count: int


@dataclass(frozen=True)
class EngineFit:
    """What a fit found, how good it is, and where it holds."""

    constants: Sequence[Constant]
    before: Mapping[str, Errors]
    """By figure: ttft, tpot."""
    after: Mapping[str, Errors]
    condition: float
    """Largest over smallest effect of the fitted constants on the figures, each in its own unit."""
    figures: int
    """Figures compared."""
    prompt_tokens_max: int
    context_tokens_max: int
    batch_max: int
    simulations: int


class Server:
    """A scenario of one pool that can be run with other engine constants; a context manager.

    Parameters
    ----------
    loaded : LoadedScenario
        Describes the server: one pool.
    sections : mapping
        Other sections of the calibration file to be, such as ``accelerator``.

    Raises
    ------
    InputError
        If the scenario is not valid, has several pools, or its step times do not come from the roofline.
    """

    def __init__(self, loaded: LoadedScenario, sections: Mapping[str, Any] | None = None) -> None:
        require_valid(loaded, force=True)
        pools = loaded.scenario.pools
        if len(pools) != 1:
            message = f"describes {len(pools)} pools: the measured server is one"
            raise DataError(loaded.finding(("pools",), message, "write a scenario with that pool alone"))
        self._engine = pools[0].engine.located(loaded.base_dir)
        if self._engine.step_time.name != "roofline":
            message = f"is {self._engine.step_time.name}: host time and scale are constants of the roofline"
            raise DataError(loaded.finding(("pools", 0, "engine", "step_time"), message, "leave step_time out"))
        self._loaded, self._pool = loaded, pools[0]
        known = {} if self._engine.calibration is None else dict(read_yaml.__wrapped__(Path(self._engine.calibration)))
        self.sections: dict[str, Any] = {**known, **(sections or {})}
        """All of a calibration file but what is fitted here."""
        profile = engine_profile(self._engine)
        self.start = {"host": profile.host_s, "frontend": profile.frontend_s, "scale": profile.scale}
        """The constants as they are without a fit."""
        self.simulations = 0
        self._folder = tempfile.TemporaryDirectory(prefix="fleetsim-calibrate-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def simulate(self, run: Run, constants: Mapping[str, float], chance: int = 0) -> Times:
        """Times of the run's requests with these constants; see `Sent` for `chance`.

        Raises
        ------
        DataError
            If the pool rejects requests: it is not the server that was measured.
        """
        self.simulations += 1
        file = Path(self._folder.name, "trial.yaml")
        engine = {**self.sections.get("engine", {}), **quantities(constants, "trial", {})}
        file.write_text(json.dumps({**self.sections, "engine": engine}), encoding="utf-8")  # JSON is YAML
        pool = self._pool.model_copy(update={"engine": self._engine.model_copy(update={"calibration": str(file)})})
        scenario = self._loaded.scenario.model_copy(update={"pools": (pool,)})
        ended: list[Request] = []
        clock = Clock()
        fleet = Fleet(scenario, self._loaded.base_dir, clock, Streams(scenario.seed), ended.append)
        fleet.feed(Sent(run, chance))
        clock.run(float("inf"))
        refused = [request for request in ended if request.status != FINISHED]
        if refused:
            worst = refused[0]
            message = (
                f"{len(refused)} of {len(ended)} requests do not fit the scenario's pool, such as one of "
                f"{worst.prompt_tokens} + {worst.output_tokens} tokens: {worst.reason}"
            )
            raise DataError(Finding(message, file=str(run.file), hint="is this the server that was measured?"))
        return _times(sorted(ended, key=lambda request: request.id))


def _times(requests: Sequence[Request]) -> Times:
    arrival, first, end = np.array([(r.arrival_s, r.first_token_s, r.end_s) for r in requests]).T
    output = np.array([r.output_tokens for r in requests])
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output > 1, (end - first) / (output - 1), np.nan)
    changes = np.concatenate([first, end])
    signs = np.repeat([1, -1], len(requests))
    running = np.cumsum(signs[np.lexsort((signs, changes))])
    return Times(first - arrival, tpot, int(running.max()))


def quantities(values: Mapping[str, float], source: str, notes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Constants of the engine as a calibration file states them."""
    return {
        name: {
            "value": float(f"{value * UNITS[name][1]:.6g}"),
            "unit": UNITS[name][0],
            "source": source,
            **({"note": notes[name]} if name in notes else {}),
        }
        for name, value in values.items()
    }


# --- what is compared --------------------------------------------------------------------------------------------------


def figures(run: Run, ttft_s: Floats, tpot_s: Floats) -> Floats:
    """The figures of a run that a fit compares [s]: two means, or means in bins where every request is known."""
    if not run.detailed:
        gaps = tpot_s
        if run.by_token and len(tpot_s) > 1:
            gaps = np.average(np.nan_to_num(tpot_s), weights=np.maximum(run.output_tokens - 1, 0), keepdims=True)
        found = [float(ttft_s.mean())]
        return np.array(found + ([float(np.nanmean(gaps))] if np.isfinite(gaps).any() else []))
    bins = max(min(BINS, len(ttft_s) // 10), 1)
    by_prompt = np.array_split(np.argsort(run.prompt_tokens, kind="stable"), bins)
    gaps = np.sort(tpot_s[np.isfinite(tpot_s) & (tpot_s > 0)])
    by_gap = np.array_split(gaps, min(bins, len(gaps))) if len(gaps) else []
    return np.array([ttft_s[b].mean() for b in by_prompt] + [b.mean() for b in by_gap])


def errors(runs: Sequence[Run], simulated: Sequence[Times]) -> dict[str, Errors]:
    """Errors of both figures."""
    found: dict[str, Errors] = {}
    for name in ("ttft", "tpot"):
        parts = []
        for run, times in zip(runs, simulated, strict=True):
            measured, predicted = getattr(run, f"{name}_s"), getattr(times, f"{name}_s")
            if not run.detailed:
                place = 0 if name == "ttft" else -1
                predicted = figures(run, times.ttft_s, times.tpot_s)[[place]]
            kept = np.isfinite(measured) & np.isfinite(predicted) & (measured > 0)
            parts.append(np.abs(predicted[kept] / measured[kept] - 1))
        both = np.concatenate(parts)
        if len(both):
            found[name] = Errors(float(np.median(both)), float(np.quantile(both, 0.9)), len(both))
    return found


# --- the fit -----------------------------------------------------------------------------------------------------------


class _Problem:
    """Logarithms of simulated over measured figures as a function of the constants, each in its own unit."""

    def __init__(self, server: Server, runs: Sequence[Run]) -> None:
        self.server, self.runs = server, runs
        self.unit = np.array([max(server.start[name], SMALLEST[name]) for name in NAMES])
        self.low, self.high = (np.array([LIMITS[n][side] for n in NAMES]) / self.unit for side in (0, 1))
        self.start = np.clip(np.array([server.start[name] for name in NAMES]) / self.unit, self.low, self.high)
        self._measured = [figures(run, run.ttft_s, run.tpot_s) for run in runs]
        self._known: dict[bytes, Floats] = {}

    def times(self, x: Floats, chance: int = 0) -> list[Times]:
        """Simulated times of all runs."""
        constants = dict(zip(NAMES, (x * self.unit).tolist(), strict=True))
        return [self.server.simulate(run, constants, chance) for run in self.runs]

    def residuals(self, x: Floats, chance: int) -> Floats:
        """Logarithms of simulated over measured figures, those of less certain runs scaled down to the noise of the others."""
        parts = []
        for run, measured, one in zip(self.runs, self._measured, self.times(x, chance), strict=True):
            simulated = figures(run, one.ttft_s, one.tpot_s)
            length = min(len(simulated), len(measured))
            weight = 1.0 if run.detailed else NOISE / COARSE_NOISE
            parts.append(weight * np.log(simulated[:length] / measured[:length]))
        return np.concatenate(parts)

    def at(self, x: Floats) -> Floats:
        """Residuals, the mean over some times of sending."""
        key = x.tobytes()
        if key not in self._known:
            self._known[key] = np.asarray(np.mean([self.residuals(x, chance) for chance in range(CHANCES)], axis=0))
        return self._known[key]

    def jacobian(self, x: Floats, step: float, of: Sequence[int] = (0, 1, 2)) -> Floats:
        """Change of every residual per unit of each constant `of`: central differences, one-sided at a limit."""
        columns = []
        for i in of:
            up, down = x.copy(), x.copy()
            up[i], down[i] = min(x[i] + step, self.high[i]), max(x[i] - step, self.low[i])
            columns.append((self.at(up) - self.at(down)) / (up[i] - down[i]))
        return np.stack(columns, axis=1)

    def solve(self, x: Floats, free: Sequence[int]) -> Floats:
        """The constants `free` with the least residuals, large ones counting less; the others as in `x`."""
        chosen = list(free)

        def whole(part: Floats) -> Floats:
            full = x.copy()
            full[chosen] = part
            return full

        for step in STEPS:
            solved = least_squares(
                lambda part: self.at(whole(part)),
                np.clip(x[chosen], self.low[chosen] + 1e-9, self.high[chosen] - 1e-9),
                jac=lambda part, step=step: self.jacobian(whole(part), step, chosen),
                bounds=(self.low[chosen], self.high[chosen]),
                loss="soft_l1",
                f_scale=0.1,
                xtol=1e-3,
                ftol=1e-4,
                max_nfev=12,
            )
            x = whole(solved.x)
        return x

    def identifiable(
        self, x: Floats, jacobian: Floats, within: Sequence[int], spread: Floats | None = None
    ) -> tuple[int, ...]:
        """Indices of the constants among `within` that the figures determine together, by `SUBSETS` in order."""
        for subset in SUBSETS:
            chosen = [NAMES.index(name) for name in subset]
            enough = np.array([max(TOLERANCE[NAMES[i]], SHARE[NAMES[i]] * x[i] * self.unit[i]) for i in chosen])
            error = standard_errors(jacobian[:, chosen], NOISE, spread) * self.unit[chosen]
            if set(chosen) <= set(within) and np.all(error <= enough):
                return tuple(chosen)
        return ()

    def spread(self, x: Floats) -> Floats:
        """Change of the residuals by chance alone: one row per trial."""
        trials = np.stack([self.residuals(x, chance) for chance in range(1, TRIALS + 1)])
        return np.asarray(trials - trials.mean(axis=0))


def standard_errors(jacobian: Floats, noise: float, spread: Floats | None = None) -> Floats:
    """Standard error of each constant in its own unit; infinite where the figures cannot tell them apart.

    Parameters
    ----------
    jacobian : array, shape (figures, constants)
        Change of each figure's logarithm per constant.
    noise : float
        Error of each logarithm.
    spread : array, shape (trials, figures), optional
        How the logarithms vary by chance, together; what that does to the constants is added.
    """
    constants = jacobian.shape[1]
    if jacobian.shape[0] < constants:
        return np.full(constants, np.inf)
    singular = np.linalg.svd(jacobian, compute_uv=False)
    if singular[-1] <= 1e-6 * max(singular[0], 1e-300):
        return np.full(constants, np.inf)
    inverse = np.linalg.pinv(jacobian)
    variance = noise**2 * np.sum(inverse**2, axis=1)
    if spread is not None:
        variance = variance + np.var(spread @ inverse.T, axis=0)
    return np.asarray(np.sqrt(variance))


def fit_engine(server: Server, runs: Sequence[Run]) -> EngineFit:
    """Fits what the runs can tell apart of host time, front end and scale; the rest stays as it is.

    Parameters
    ----------
    server : Server
        The scenario.
    runs : sequence of Run
        Measured; the first 2000 requests of each count.

    Raises
    ------
    DataError
        If the runs show none of the constants.

    Notes
    -----
    One run of which only the means are known gives two figures, so at most two constants; runs at several loads tell
    host time (the same at every load) from scale (grows with the load). On runs simulated with known constants the fit
    returns them within 5 % (tests/calibration/test_engine_fit.py).
    """
    runs = [run.first(LARGEST_RUN) for run in runs]
    problem = _Problem(server, runs)
    start = x = problem.start
    before = errors(runs, problem.times(x))
    free = problem.identifiable(x, problem.jacobian(x, STEPS[0]), range(len(NAMES)))
    while free:
        x = problem.solve(np.where(np.isin(np.arange(len(NAMES)), free), x, start), free)
        jacobian, spread = problem.jacobian(x, STEPS[0]), problem.spread(x)
        shown = problem.identifiable(x, jacobian, free, spread)
        if shown == free:
            noise = max(float(np.sqrt(np.mean(problem.at(x) ** 2))), NOISE)
            return _report(problem, x, free, jacobian, noise, spread, before)
        free = shown
    raise DataError(Finding("none of host, frontend and scale shows in these runs", file=str(runs[0].file)))


def _report(
    problem: _Problem,
    x: Floats,
    free: Sequence[int],
    jacobian: Floats,
    noise: float,
    spread: Floats,
    before: Mapping[str, Errors],
) -> EngineFit:
    chosen = list(free)
    found = standard_errors(jacobian[:, chosen], noise, spread)
    singular = np.linalg.svd(jacobian[:, chosen], compute_uv=False)
    constants = []
    for i, name in enumerate(NAMES):
        fitted = i in chosen
        error = found[chosen.index(i)] if fitted else standard_errors(jacobian[:, [*chosen, i]], noise, spread)[-1]
        unit = problem.unit[i]
        constants.append(Constant(name, float(x[i] * unit), problem.server.start[name], float(error * unit), fitted))
    times = problem.times(x)
    return EngineFit(
        constants=constants,
        before=before,
        after=errors(problem.runs, times),
        condition=float(singular[0] / singular[-1]),
        figures=len(jacobian),
        prompt_tokens_max=max(int(run.prompt_tokens.max()) for run in problem.runs),
        context_tokens_max=max(int((run.prompt_tokens + run.output_tokens).max()) for run in problem.runs),
        batch_max=max(one.batch_max for one in times),
        simulations=problem.server.simulations,
    )
