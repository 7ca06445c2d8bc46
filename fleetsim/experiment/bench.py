"""How fast the simulator is on this machine: cases that run one after the other, each in a fresh process.

A case counts its requests, output tokens and events, which depend on the scenario alone, and times them, which depends on
the machine and on what else it does. Time begins after the imports and ends when the tables are written.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fleetsim import __version__
from fleetsim.errors import FleetsimError
from fleetsim.kernel.clock import BOUNDARY, Clock
from fleetsim.plugins import names
from fleetsim.scenario.template import scenarios_folder

GROUPS = ("trace", "million", "requests", "replicas", "floor", "week", "routers", "orders", "model-routers")
"""What can be asked for by name; the million ends the series in requests and is run once."""

ONLY_ASKED = ("week", "routers", "orders", "model-routers")
"""Groups that are run only if asked for."""

ROUTERS = (
    "power-of-two-choices",
    "consistent-hash",
    "cache-aware",
    "prefix-score",
    "preble",
    "aibrix-prefix",
    "lmetric",
    "dynamo-kv",
    "min-ttft",
    "route-balance",
    "conductor",
    "dualmap",
    "least-work",
    "vllm-dp",
    "pool-state",
    "llumnix",
    "xllm",
)
"""The plain router, and those that look at prefixes, loads or both."""

PAIRS = ("xllm",)
"""Of these, routers of pairs: prompts and answers are computed apart, which takes about twice the events whoever chooses."""

ORDERS = ("fcfs", "priority", "edf", "least-slack", "sjf", "srpt", "aging", "ltr", "mlfq", "vtc")

OVERLOAD = 2.0
"""Arrivals of the cases with orders, times those of the others: queues make the difference."""

MODELS = (3, 16)
"""Models that model routers choose among."""

REPLICAS = 64
RATE_PER_REPLICA = 1500 / REPLICAS
"""Arrivals at each replica of the synthetic cases [requests/s]."""

FLOOR_EVENTS_PER_REQUEST = 3
"""Events of the floor for each request of the million, where that case is not run and so its events are not counted."""

AZURE = Path("traces", "open", "chat", "AzureLLMInferenceTrace_conv_first40min.csv.gz")
"""The public trace, inside the folder that FLEETSIM_DATA names."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time."""

    name: str
    groups: tuple[str, ...]
    """Names under which it can be asked for."""
    what: str
    """For people."""
    scenario: str = ""
    """File to simulate; none for the floor."""
    overrides: tuple[tuple[str, Any], ...] = ()
    """Values laid over the scenario, by path."""
    queue: str = ""
    """Floor: whose timers, ``simpy`` or ``clock``."""
    events: int = 0
    """Floor: how many."""
    against: str = ""
    """Name of the plain case that it is compared to."""
    policy: tuple[str, str, int, int] | None = None
    """Model router or budget controller that is asked and told, without a fleet: kind, name, models, requests."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a case counted and how long it took.

    The floor has no requests, tokens or verdict, and a policy without a fleet no tokens or verdict: its events are calls.
    """

    case: str
    requests: int | None
    replicas: int | None
    output_tokens: int | None
    events: int
    verdict: str | None
    wall_s: float
    cpu_s: float
    """Processor time of all threads: well below `wall_s` where other work took the core."""
    peak_rss_bytes: int | None
    """Most memory that the process held [bytes]; None where the system does not tell."""
    compiled: bool
    """Whether the hot modules were compiled."""

    @property
    def events_per_request(self) -> float | None:
        """Events per request."""
        return self.events / self.requests if self.requests else None

    def per_wall_s(self, count: int | None) -> float | None:
        """A count of this case per second of wall time [1/s]."""
        return None if count is None or self.wall_s <= 0 else count / self.wall_s

    def row(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self) | {
            "requests_per_wall_s": self.per_wall_s(self.requests),
            "output_tokens_per_wall_s": self.per_wall_s(self.output_tokens),
            "events_per_wall_s": self.per_wall_s(self.events),
            "events_per_request": self.events_per_request,
            "cpu_us_per_request": self.cpu_s / self.requests * 1e6 if self.requests else None,
        }


# --- cases -----------------------------------------------------------------------------------------------------------


def cases(quick: bool = False, only: Sequence[str] = ()) -> list[Case]:
    """The cases in the order in which they run.

    Parameters
    ----------
    quick : bool
        A tenth of the requests, a fifth in the series in replicas.
    only : sequence of str
        Members of `GROUPS`; all if empty.
    """
    last = 100_000 if quick else 1_000_000
    each = 20_000 if quick else 100_000
    every = [_trace()]
    every += [_fleet(f"requests-{n // 1000}k", "requests", n, REPLICAS) for n in (10_000, 100_000) if n < last]
    every += [_fleet("million/10" if quick else "million", "requests", last, REPLICAS, "million")]
    every += [_fleet(f"replicas-{n}", "replicas", each, n) for n in (10, 100, 1000)]
    every += [_floor(queue, last * FLOOR_EVENTS_PER_REQUEST) for queue in ("simpy", "clock")]
    every += [_week(last * 5)]
    every += [_router(name, each) for name in ROUTERS if name not in PAIRS]
    every += [_apart(each), *[_router(name, each, "router-apart") for name in PAIRS]]
    every += [_order(name, each // 5) for name in ORDERS]
    every += [_model_router(name, models, each // 20) for name in names("model_routers") for models in MODELS]
    every += [_budget(name, each // 20) for name in names("budgets")]
    return [case for case in every if set(case.groups) & set(only or set(GROUPS) - set(ONLY_ASKED))]


def million() -> Path:
    """Scenario of the synthetic cases."""
    return scenarios_folder() / "bench" / "million.yaml"


def _trace() -> Case:
    data = Path(os.environ.get("FLEETSIM_DATA", Path("..", "shared", "data")), AZURE).absolute()
    scenario = str(scenarios_folder() / "replay.yaml")
    if data.is_file():
        return Case("trace-azure", ("trace",), "40 min of Azure 2023", scenario, (("workload.path", str(data)),))
    return Case("trace-default", ("trace",), "the embedded trace", scenario)


def _fleet(name: str, group: str, requests: int, replicas: int, *more: str) -> Case:
    overrides = (
        ("workload.requests", requests),
        ("workload.arrivals.rate", f"{RATE_PER_REPLICA * replicas!r} req/s"),
        ("pools[0].replicas", replicas),
    )
    what = f"{requests:,} requests on {replicas:,} replicas"
    return Case(name, (group, *more), what, str(million()), overrides)


def _week(requests: int) -> Case:
    what = f"{requests:,} requests over days and nights, autoscaled"
    return Case("week", ("week",), what, str(million().with_name("week.yaml")), (("workload.requests", requests),))


def _router(name: str, requests: int, against: str = "router-power-of-two-choices") -> Case:
    case = _fleet(f"router-{name}", "routers", requests, REPLICAS)
    return replace(case, overrides=(*case.overrides, ("gateway.router", {"policy": name})), against=against)


def _apart(requests: int) -> Case:
    """The plain router on both sides of a fleet that computes prompts and answers apart."""
    case = _fleet("router-apart", "routers", requests, REPLICAS // 2)
    what = f"{requests:,} requests on {REPLICAS // 2} replicas for prompts and {REPLICAS // 2} for answers"
    laid = (("workload.requests", requests),)
    return replace(case, what=what, scenario=str(million().with_name("apart.yaml")), overrides=laid, against=case.name)


def _order(name: str, requests: int) -> Case:
    case = _fleet(f"order-{name}", "orders", requests, REPLICAS)
    laid = (
        ("workload.arrivals.rate", f"{RATE_PER_REPLICA * REPLICAS * OVERLOAD!r} req/s"),
        ("gateway.predictor", {"policy": "rank"}),
        ("pools[0].engine.order", {"policy": name}),
    )
    return replace(case, overrides=(*case.overrides, *laid), against="order-fcfs")


def _model_router(name: str, models: int, requests: int) -> Case:
    what = f"decisions and feedback of {requests:,} requests, {models} models"
    return Case(f"{name}-{models}", ("model-routers",), what, policy=("model_routers", name, models, requests))


def _budget(name: str, requests: int) -> Case:
    what = f"decisions of {requests:,} requests behind `single`, {MODELS[0]} models"
    return Case(name, ("model-routers",), what, policy=("budgets", name, MODELS[0], requests))


def _floor(queue: str, events: int) -> Case:
    return Case(f"floor-{queue}", ("floor",), "timers that do nothing", queue=queue, events=events)


# --- running them ----------------------------------------------------------------------------------------------------


def bench(chosen: Sequence[Case], repeat: int = 1, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Run cases, each in a fresh process.

    Parameters
    ----------
    chosen : sequence of Case
        See `cases`. The floor runs as many events as the million did, if that is among them.
    repeat : int
        Runs of each case; the one of median wall time is reported (of an even number, the faster of the two).
    tell : callable, optional
        Told in a line what runs.

    Returns
    -------
    dict
        The rows under ``cases``, and what they depend on: versions, processors, load of the machine at the start.

    Raises
    ------
    FleetsimError
        If a case fails, or counts differently when repeated.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows: list[Measured] = []
    floor_events = 0
    for number, case in enumerate(chosen, start=1):
        tell(f"{number}/{len(chosen)} {case.name}: {case.what}")
        runs = [fresh(replace(case, events=floor_events or case.events)) for _ in range(repeat)]
        counts = {(run.requests, run.output_tokens, run.events) for run in runs}
        if len(counts) > 1:
            raise FleetsimError(f"{case.name}: runs of the same seed differ: {sorted(counts)}")
        rows.append(sorted(runs, key=lambda run: run.wall_s)[(repeat - 1) // 2])
        if "million" in case.groups:
            floor_events = rows[-1].events
    return {
        "fleetsim_version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": sys.platform,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "load_average": load,
        "compiled": compiled(),
        "repeat": repeat,
        "cases": [row.row() | _against_plain(row, case, rows) for row, case in zip(rows, chosen, strict=True)],
    }


def _against_plain(row: Measured, case: Case, rows: Sequence[Measured]) -> dict[str, float | None]:
    """Processor time and events over those of the plain case; None where there is none, or it was not run."""
    plain = next((other for other in rows if other.case == case.against), None)
    if plain is None or plain.cpu_s <= 0:
        return {"times_plain": None, "events_times_plain": None}
    return {"times_plain": row.cpu_s / plain.cpu_s, "events_times_plain": row.events / plain.events}


_CHILD = "from fleetsim.experiment.bench import answer; answer()"


def fresh(case: Case) -> Measured:
    """Run a case in a new interpreter, so that its peak of memory is its own and nothing is warm.

    Raises
    ------
    FleetsimError
        If it fails there.
    """
    with tempfile.TemporaryDirectory(prefix="fleetsim-bench-") as folder:
        question = json.dumps({"case": asdict(case), "folder": folder})
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], input=question, capture_output=True, text=True, check=False
        )
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise FleetsimError(f"{case.name}: {said.splitlines()[-1] if said.startswith('Traceback') else said}")
    return Measured(**json.loads(done.stdout))


def answer() -> None:
    """Run the case on stdin and write what it measured on stdout: the other end of `fresh`."""
    question = json.load(sys.stdin)
    try:
        measured = measure(Case(**question["case"]), Path(question["folder"]))
    except FleetsimError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(asdict(measured)))


def measure(case: Case, folder: Path) -> Measured:
    """Run a case in this process, with its tables in `folder`."""
    if case.policy is not None:
        return _measure_policy(case.name, *case.policy)
    return _measure_floor(case) if case.queue else _measure_run(case, folder)


def _measure_policy(case: str, kind: str, name: str, models: int, requests: int) -> Measured:
    from fleetsim.testing.pace import pace

    paced = pace(kind, name, models, requests)
    memory = peak_rss_bytes()
    return Measured(case, requests, None, None, paced.calls, None, paced.wall_s, paced.cpu_s, memory, compiled())


def _measure_run(case: Case, folder: Path) -> Measured:
    from fleetsim.experiment.run import run
    from fleetsim.scenario.load import load_scenario

    started, cpu_started = time.perf_counter(), time.process_time()
    loaded = load_scenario(case.scenario, dict(case.overrides))
    result = run(loaded, folder / "run")
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return Measured(
        case=case.name,
        requests=int(result.summary["requests"]),
        replicas=sum(pool.most_replicas for pool in loaded.scenario.pools),
        output_tokens=int(result.summary["output_tokens"]),
        events=result.events,
        verdict=result.verdict,
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_rss_bytes=peak_rss_bytes(),
        compiled=compiled(),
    )


def _measure_floor(case: Case) -> Measured:
    work = {"simpy": simpy_timeouts, "clock": clock_timers}[case.queue]
    gc.disable()
    started, cpu_started = time.perf_counter(), time.process_time()
    events = work(case.events)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    gc.enable()
    return Measured(case.name, None, None, None, events, None, wall_s, cpu_s, peak_rss_bytes(), compiled())


# --- the floor: what an event costs when nothing happens in it -------------------------------------------------------


def _delays(events: int) -> Iterator[float]:
    """As many delays as events [s], all different within a thousand, so that the queue is really sorted."""
    return islice(cycle([i * 0.6180339887498949 % 1.0 for i in range(1, 1025)]), events)


def simpy_timeouts(events: int) -> int:
    """Run bare SimPy timeouts, as many at a time as the million has replicas, each setting the next; how many ran."""
    environment = Clock().environment
    delays = _delays(events)
    ran = 0

    def fire(_: object) -> None:
        nonlocal ran
        ran += 1
        delay = next(delays, None)
        if delay is not None:
            environment.timeout(delay).callbacks.append(fire)

    for delay in islice(delays, REPLICAS):
        environment.timeout(delay).callbacks.append(fire)
    environment.run()
    return ran


def clock_timers(events: int) -> int:
    """Run timers of fleetsim's clock in the same pattern as `simpy_timeouts`; how many ran."""
    clock = Clock()
    delays = _delays(events)

    def fire() -> None:
        delay = next(delays, None)
        if delay is not None:
            clock.at(clock.now_s + delay, fire, BOUNDARY)

    for delay in islice(delays, REPLICAS):
        clock.at(delay, fire, BOUNDARY)
    clock.run()
    return clock.events


# --- this process ----------------------------------------------------------------------------------------------------


def compiled() -> bool:
    """Whether the hot modules were compiled when fleetsim was installed."""
    file = import_module("fleetsim.engine.batch").__file__ or ""
    return file.endswith((".so", ".pyd"))


def peak_rss_bytes() -> int | None:
    """Most memory that this process has held since its program began [bytes]; None where the system does not tell.

    Linux hands the peak of the parent on to the child in ``getrusage``; what it says in ``/proc`` is the child's own.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
