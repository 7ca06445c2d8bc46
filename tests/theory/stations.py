"""Queueing stations made of real parts: the engine, with a step time so simple that theory is exact.

With one-token prompts, a request of n output tokens needs n steps. If every step lasts the same whatever the batch, a replica
with `max_seqs` = c is a station of c servers with one first come, first served queue, and the service time is n steps. If a step
lasts in proportion to its batch, every request gets an equal share of one processor: processor sharing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from pydantic import Field

import fleetsim
from fleetsim.engine.api import Line
from fleetsim.plugins import PolicyConfig, allowing_imports
from fleetsim.routing.api import FleetView, Reject, RequestView
from fleetsim.scenario.schema import Scenario

Floats = np.ndarray[Any, np.dtype[np.float64]]

STEPS = 10_000
"""Steps per mean service time: starts wait half a step at most on average, 0.005 % of a service."""
STEP_S = 1.0 / STEPS
"""Duration of a step, so that the mean service time is 1 s."""


class StepConfig(PolicyConfig):
    step_s: float = Field(STEP_S, gt=0)


class ConstantStep:
    """Every step lasts the same, whatever it computes."""

    Config = StepConfig
    idle_w, static_w, limit_w, frontend_s = 50.0, 100.0, 400.0, 0.0

    def __init__(self, config: StepConfig, *_: Any) -> None:
        self.step_s = config.step_s

    def duration_s(self, tokens: int) -> float:
        return self.step_s

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return Line(self.duration_s(batch), 0.0, 1e-3 * batch, 0.0, float("inf"))

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
        return self.duration_s(tokens), 1e-3 * tokens


class SharedStep(ConstantStep):
    """A step lasts in proportion to the tokens that it computes."""

    def duration_s(self, tokens: int) -> float:
        return self.step_s * tokens


class AtMostConfig(PolicyConfig):
    limit: int = Field(ge=1)
    """Requests in the system at most."""


class AtMost:
    """Turns requests away while `limit` are in the system."""

    Config = AtMostConfig

    def __init__(self, config: AtMostConfig, rng: Generator, fleet: FleetView) -> None:
        self._limit = config.limit
        self._outstanding = fleet.outstanding

    def route(self, request: RequestView) -> int | Reject:
        return 0 if self._outstanding[0] < self._limit else Reject("full")


@dataclass(frozen=True)
class Station:
    """Replicas of one kind behind a router."""

    servers: int = 1
    """Of each replica (`max_seqs`)."""
    replicas: int = 1
    sharing: bool = False
    """Processor sharing instead of servers."""
    router: Any = "least-outstanding"
    step_s: float = STEP_S
    run: dict[str, Any] = field(default_factory=lambda: {"interval": "1000 s"})

    def scenario(self, workload: dict[str, Any], seed: int) -> Scenario:
        model = "SharedStep" if self.sharing else "ConstantStep"
        pool = {
            "name": "station",
            "llm": "llama-3.1-8b",
            "accelerator": "h100-sxm",
            "replicas": self.replicas,
            "engine": {
                "scheduler": {
                    "policy": "vllm-v1",
                    "max_seqs": self.servers,
                    "max_batched_tokens": max(2048, self.servers),
                },
                "kv": {"capacity_tokens": 2_000_000_000},
                "prefix_cache": False,
                "step_time": {"model": f"{__name__}:{model}", "step_s": self.step_s},
            },
        }
        with allowing_imports(True):
            return Scenario.model_validate(
                {
                    "schema": 1,
                    "name": "station",
                    "seed": seed,
                    "workload": workload,
                    "gateway": {"router": self.router},
                    "pools": [pool],
                    "run": self.run,
                }
            )

    def serve(self, workload: dict[str, Any], folder: Path, seed: int = 0, check: bool = False) -> Served:
        """Run the station to its end."""
        scenario = self.scenario(workload, seed)
        result = fleetsim.run(scenario, folder / f"out-{seed}", allow_import=True, check=check)
        return Served(result)


def controls(arrival_s: Floats, service_s: Floats, rate: float) -> tuple[float, float]:
    """How far the mean gap and the mean service are from their expectations, 1/rate and 1 s, relatively."""
    return float(arrival_s[-1]) * rate / len(arrival_s) - 1.0, float(service_s.mean()) - 1.0


class Served:
    """What happened to each request, in order of arrival."""

    def __init__(self, result: fleetsim.Result) -> None:
        self.result = result
        names = ["request_id", "status", "arrival_s", "first_scheduled_s", "first_token_s", "end_s", "output_tokens"]
        names.append("replica")
        table = pq.read_table(result.out / "requests.parquet", columns=names).sort_by("request_id")
        self.finished = np.asarray(table["status"].cast(pa.string()).to_numpy(zero_copy_only=False) == "finished")
        self.arrival_s = _floats(table["arrival_s"])
        self.start_s = _floats(table["first_scheduled_s"])
        self.first_token_s = _floats(table["first_token_s"])
        self.end_s = _floats(table["end_s"])
        self.wait_s = self.start_s - self.arrival_s
        self.sojourn_s = self.end_s - self.arrival_s
        self.tokens = table["output_tokens"].to_numpy()
        self.replica = table["replica"].fill_null(-1).to_numpy()

    def in_system(self, times_s: Floats) -> Floats:
        """Requests that were served in the end and had arrived but not ended at each of these times."""
        arrived = np.searchsorted(self.arrival_s[self.finished], times_s, side="right")
        ended = np.searchsorted(np.sort(self.end_s[self.finished]), times_s, side="right")
        return np.asarray(arrived - ended, dtype=np.float64)

    def most_in_system(self) -> int:
        """Largest number in the system at any time."""
        return int(self.in_system(self.arrival_s).max())


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.fill_null(float("nan")).to_numpy(), dtype=np.float64)


def written(folder: Path, arrival_s: Floats, service_s: Floats, step_s: float = STEP_S) -> dict[str, Any]:
    """A trace of requests with one-token prompts that need `service_s` at `step_s` per token, as a workload."""
    tokens = np.maximum(np.rint(service_s / step_s), 1).astype(np.int64)
    path = folder / "trace.parquet"
    columns = {"arrival_s": arrival_s, "prompt_tokens": np.ones(len(tokens), np.int64), "output_tokens": tokens}
    pq.write_table(pa.table(columns), path)
    return {"kind": "trace", "format": "parquet", "path": str(path)}


def poisson(rng: Generator, rate: float, count: int) -> Floats:
    """Arrival times of a Poisson process."""
    return np.cumsum(rng.standard_exponential(count)) / rate


def hyperexponential(rng: Generator, count: int, cv2: float = 4.0) -> Floats:
    """Service times of mean 1 with squared coefficient of variation `cv2`: two exponentials with balanced means."""
    share = 0.5 * (1.0 + ((cv2 - 1.0) / (cv2 + 1.0)) ** 0.5)
    first = rng.random(count) < share
    return rng.standard_exponential(count) * np.where(first, 0.5 / share, 0.5 / (1.0 - share))


def settled(values: Floats) -> Floats:
    """Values in order of arrival without the first tenth, the warm-up."""
    return values[len(values) // 10 :]
