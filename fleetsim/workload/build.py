"""From the workload block of a scenario to a stream of requests."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from fleetsim.scenario.schema import MixWorkload, SyntheticWorkload, TraceWorkload, TreeSearchWorkload
from fleetsim.workload.formats import TraceFile, locate
from fleetsim.workload.mix import Labelled, Mix, PartStreams, salt_of
from fleetsim.workload.replay import ReleasedReplay, Replay
from fleetsim.workload.synthetic import synthetic_workload
from fleetsim.workload.tree_search import TreeSearch

if TYPE_CHECKING:
    from fleetsim.kernel.streams import Streams
    from fleetsim.workload.request import Workload


def build_workload(
    config: TraceWorkload | SyntheticWorkload | TreeSearchWorkload | MixWorkload,
    base_dir: Path,
    streams: Streams,
    served: Collection[str] | None = None,
) -> Workload:
    """The workload that `config` describes; a trace file is read once here, and checked.

    Parameters
    ----------
    config
        Block ``workload`` of a scenario.
    base_dir
        Folder that a trace's path is relative to.
    streams
        Random streams of the run; those used here are called ``workload.…``.
    served
        LLMs that the fleet has. A trace's requests for any other model (traces name models that nobody else can
        serve, such as ``GPT-4``) then ask for none in particular and are counted in ``unserved``. None keeps all names.

    Raises
    ------
    DataError
        If a trace file cannot be read, or has bad rows and the scenario does not say to skip them.
    """
    if isinstance(config, MixWorkload):
        parts = config.parts
        return Mix(
            {name: build_workload(part, base_dir, PartStreams(streams, name), served) for name, part in parts.items()},
            {name: salt_of(part) for name, part in parts.items()},
        )
    workload = _unlabelled(config, base_dir, streams, served)
    if config.klass is None and config.tenant is None and config.origin is None:
        return workload
    return Labelled(workload, config.klass, config.tenant, config.origin)


def _unlabelled(
    config: TraceWorkload | SyntheticWorkload | TreeSearchWorkload,
    base_dir: Path,
    streams: Streams,
    served: Collection[str] | None,
) -> Workload:
    if isinstance(config, TreeSearchWorkload):
        return TreeSearch(config, streams)
    if isinstance(config, SyntheticWorkload):
        return synthetic_workload(config, streams)
    trace = TraceFile.open(locate(config.path, base_dir), config.format)
    return (ReleasedReplay if config.sessions == "released" else Replay)(config, trace, streams, served)
