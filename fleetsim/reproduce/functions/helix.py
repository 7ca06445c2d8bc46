"""Layers on mixed clusters: Helix's placement beside simple ones, and the weights by which requests take their ways."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fleetsim.fleet.pool import describe_pool
from fleetsim.planning.helix import SINK, SOURCE, Layers, StatedHelix, max_flow
from fleetsim.planning.solve import Effort
from fleetsim.planning.throughput import steady_rate
from fleetsim.reproduce.functions import check
from fleetsim.scenario.schema import Pool, SloLimits

_GAP = Effort(time_limit_s=600.0, gap_ratio=0.05)


@check
def two_nodes_exact(seed: int, cases: int) -> float:
    """Share of drawn clusters of two nodes and four layers on which the program finds what enumeration finds."""
    rng = np.random.default_rng(seed)
    good = 0
    for _ in range(cases):
        nodes = {}
        for name in ("a", "b"):
            one, fit = float(rng.integers(20, 100)), int(rng.integers(2, 5))
            nodes[name] = {"tokens_per_s": [one / (k + 1) for k in range(fit)]}
        problem = StatedHelix.model_validate(
            {"kind": "helix", "layers": 4, "nodes": nodes, "link_tokens_per_s": float(rng.integers(5, 60))}
        )
        spans = [
            [(s, s + k) for k in range(1, len(node["tokens_per_s"]) + 1) for s in range(5 - k)]
            for node in nodes.values()
        ]
        best = max(max_flow(problem, {"a": a, "b": b})[0] for a in spans[0] for b in spans[1])
        found = problem.solve(Effort(gap_ratio=0.0)).objective
        good += abs(found - best) <= 1e-6 * best
    return good / cases


@check
def share_off_the_flow(seed: int, requests: int, **cluster: Any) -> float:
    """Largest distance between a connection's share of the requests and that of the maximum flow.

    Each node sends every request on to the node that is furthest behind its share: interleaved weighted round-robin, with the flow
    as weights.
    """
    problem, layers = _placed(json.dumps(cluster, sort_keys=True))
    most, flows = max_flow(problem, layers)
    credits = {node: dict.fromkeys(targets, 0.0) for node, targets in flows.items()}
    took: Counter[tuple[str, str]] = Counter()
    for _ in range(requests):
        node = SOURCE
        while node != SINK:
            weights = flows[node]
            total = sum(weights.values())
            for target, weight in weights.items():
                credits[node][target] += weight / total
            chosen = max(weights, key=lambda target: (credits[node][target], target))
            credits[node][chosen] -= 1.0
            took[node, chosen] += 1
            node = chosen
    return max(
        abs(took[node, target] / requests - flow / most)
        for node, targets in flows.items()
        for target, flow in targets.items()
    )


@check
def throughput_over(seed: int, baseline: str, **cluster: Any) -> float:
    """Tokens per second of Helix's placement over those of a simple one on the same cluster.

    Parameters
    ----------
    baseline : str
        ``swarm``: as many equal stages as the smallest node needs, nodes to the stage that has least so far, the fastest first;
        ``separate``: a pipeline of equal parts for each kind of node that can hold the model.
    """
    problem, layers = _placed(json.dumps(cluster, sort_keys=True))
    simple = swarm(problem) if baseline == "swarm" else separate(problem)
    return max_flow(problem, layers)[0] / max_flow(problem, simple)[0]


def swarm(problem: StatedHelix) -> Layers:
    """Equal stages; nodes join the slowest stage, the fastest nodes first."""
    size = min(len(node.tokens_per_s) for node in problem.nodes.values())
    count = -(-problem.layers // size)
    bounds = [round(problem.layers * k / count) for k in range(count + 1)]
    speed = [0.0] * count
    layers: dict[str, tuple[int, int]] = {}
    names = sorted(problem.nodes, key=lambda name: -problem.nodes[name].tokens_per_s[0])
    for name in names:
        stage = min(range(count), key=lambda k: (speed[k], k))
        held = bounds[stage + 1] - bounds[stage]
        speed[stage] += problem.nodes[name].tokens_per_s[held - 1]
        layers[name] = (bounds[stage], bounds[stage + 1])
    return layers


def separate(problem: StatedHelix) -> Layers:
    """One pipeline of each kind of node, whose names begin with the kind; kinds that cannot hold the model have none."""
    kinds: dict[str, list[str]] = {}
    for name in problem.nodes:
        kinds.setdefault(name.rpartition("/")[0], []).append(name)
    layers: dict[str, tuple[int, int]] = {}
    for names in kinds.values():
        bounds = [round(problem.layers * k / len(names)) for k in range(len(names) + 1)]
        if max(np.diff(bounds)) <= len(problem.nodes[names[0]].tokens_per_s):
            layers |= {name: (bounds[k], bounds[k + 1]) for k, name in enumerate(names)}
    return layers


@lru_cache(maxsize=4)
def _placed(cluster: str) -> tuple[StatedHelix, dict[str, tuple[int, int]]]:
    """A cluster, and where Helix's program puts the layers."""
    problem = _problem(**json.loads(cluster))
    plan = problem.solve(_GAP)
    layers: dict[str, tuple[int, int]] = {}
    for row in plan.table:
        first, last = str(row["layers"]).split(" to ")
        layers[str(row["node"])] = int(first), int(last) + 1
    return problem, layers


def _problem(
    nodes: Mapping[str, int],
    layers: int,
    slice_layers: int,
    architecture: Mapping[str, Any],
    prompt_tokens: float,
    output_tokens: float,
    link_bytes_per_s: float,
    wide_bytes_per_s: float | None = None,
) -> StatedHelix:
    """Nodes of some kinds with the throughputs of our step-time model; kinds stand apart where a wide link is given.

    A node with k slices is a replica of a model of so many layers and hardly any vocabulary: tokens of prompts and answers per
    second with the batch that its memory allows. Links carry one hidden vector of 16 bits per token.
    """
    slices = layers // slice_layers
    speeds = {kind: _speeds(kind, slices, slice_layers, architecture, prompt_tokens, output_tokens) for kind in nodes}
    names = {f"{kind}/{k}": kind for kind, count in nodes.items() for k in range(count)}
    token_bytes = 2.0 * float(architecture["hidden_size"])
    links = []
    if wide_bytes_per_s is not None:
        for a, kind in names.items():
            links += [
                {"source": a, "target": b, "tokens_per_s": wide_bytes_per_s / token_bytes}
                for b, other in names.items()
                if kind != other
            ]
    return StatedHelix.model_validate(
        {
            "kind": "helix",
            "layers": slices,
            "nodes": {name: {"tokens_per_s": speeds[kind]} for name, kind in names.items()},
            "link_tokens_per_s": link_bytes_per_s / token_bytes,
            "links": links,
        }
    )


def _speeds(
    kind: str,
    slices: int,
    slice_layers: int,
    architecture: Mapping[str, Any],
    prompt_tokens: float,
    output_tokens: float,
) -> list[float]:
    """Tokens per second of one accelerator with 1, 2, … slices, as many as fit."""
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(1, slices + 1):
            path = Path(folder) / f"{k}.json"
            path.write_text(json.dumps({**architecture, "num_hidden_layers": k * slice_layers}), encoding="utf-8")
            pool = describe_pool(
                Pool.model_validate({"name": kind, "llm": str(path), "accelerator": kind}), 0, Path(folder)
            )
            if pool.capacity_tokens < 2 * (prompt_tokens + output_tokens):
                break
            rate = steady_rate(pool, prompt_tokens, output_tokens, SloLimits()).requests_per_s
            speeds.append(rate * (prompt_tokens + output_tokens))
    return speeds
