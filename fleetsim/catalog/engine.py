"""Inference engines: host overheads and memory habits, by `engine.kind` of the scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.sourced import Record, Sourced


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What an engine adds to the work of the accelerators."""

    name: str
    title: str
    kernels: str
    """Engine whose kernels it runs, as calibrations name them: itself, or the one that it is a version of."""
    host_s: float
    """Time per step in which the accelerators wait for the host [s]."""
    host_async_s: float
    """The same where it prepares the next step while the accelerators work (asynchronous scheduling) [s]."""
    host_per_sequence_s: float
    """Added host time per sequence that gets a token [s]."""
    eager_layer_s: float
    """Time per layer in which the host launches a step that has a prompt and of which no graph was captured [s]."""
    graph_tokens: int
    """Steps with prompts of up to so many tokens run from captured graphs; 0 if none do."""
    host_data_parallel_s: float
    """Added host time per step where data-parallel ranks agree on the next one [s]."""
    frontend_s: float
    """Time between a request's arrival and its queue: tokeniser, messages between processes [s]."""
    scale: float
    """Factor on the accelerator time of a step: gaps between kernels and what no operator covers."""
    fuses_quantisation: bool
    """Whether activations are quantised by the kernel before a product instead of by one of their own."""
    nano_batches: int
    """Parts into which it cuts the sequences of a step so that their kernels can overlap; 1 if it does not."""
    nano_scale: float
    """Factor on the accelerator time of a step that is cut, beside the weights that are read and the kernels started again."""
    overlap: float
    """Share of what such parts could hide behind each other that they do."""
    runtime_bytes: float
    """Memory per accelerator for driver context, libraries and captured graphs [B]."""
    runtime_parallel_bytes: float
    """More of it per accelerator when there are several: communication buffers [B]."""
    sampler_bytes_per_logit: float
    """Peak memory of the sampler per sequence and vocabulary entry [B]."""
    max_batched_tokens: int
    """Tokens per step that memory is reserved for, where the scheduler does not say."""
    max_seqs: int
    """Sequences per step that memory is reserved for, where the scheduler does not say."""
    sourced: Mapping[str, Sourced]
    """Every number with its unit and source."""


@cache
def load_engine(kind: str) -> EngineProfile:
    """Engine of the catalogue.

    Raises
    ------
    DataError
        If the name is unknown or its file is not valid.
    """
    path = locate("engine", kind)
    record = Record(read_yaml(path), path)
    profile = EngineProfile(
        name=kind,
        title=record.text("title"),
        kernels=record.text("kernels", default=kind),
        host_s=record.quantity("host", "time"),
        host_async_s=record.quantity("host_async", "time"),
        host_per_sequence_s=record.quantity("host_per_sequence", "time"),
        graph_tokens=int(record.quantity("graph_tokens", "count")),
        eager_layer_s=record.quantity("eager_per_layer", "time"),
        host_data_parallel_s=record.quantity("host_data_parallel", "time"),
        frontend_s=record.quantity("frontend", "time"),
        scale=record.quantity("scale", "ratio"),
        fuses_quantisation=record.quantity("fuses_quantisation", "count") > 0,
        nano_batches=int(_optional(record, "nano_batches", "count", 1)),
        nano_scale=_optional(record, "nano_scale", "ratio", 1),
        overlap=_optional(record, "overlap", "ratio", 0),
        runtime_bytes=record.quantity("runtime", "bytes"),
        runtime_parallel_bytes=record.quantity("runtime_parallel", "bytes"),
        sampler_bytes_per_logit=record.quantity("sampler_per_logit", "bytes"),
        max_batched_tokens=int(record.quantity("max_batched_tokens", "count")),
        max_seqs=int(record.quantity("max_seqs", "count")),
        sourced=record.sourced,
    )
    record.finish()
    return profile


def _optional(record: Record, key: str, dimension: str, default: float) -> float:
    return record.quantity(key, dimension) if key in record.content else default
