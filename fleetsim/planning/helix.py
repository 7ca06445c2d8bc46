"""Helix: which layers lie on which node of a mixed cluster so that most tokens per second flow through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.program import Formulation, LinearProgram
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort, require_solution
from fleetsim.scenario.schema import Block, Count, Number

Text = Annotated[str, Field(min_length=1)]
Above = Annotated[Number, Field(gt=0)]
Layers = Mapping[str, tuple[int, int]]
"""First layer and the one behind the last of each node."""
SOURCE, SINK = " source", " sink"
_FLOWS = 1e-6


class Node(Block):
    """A machine that holds consecutive layers."""

    tokens_per_s: Annotated[tuple[Above, ...], Field(min_length=1)]
    """What it computes with 1, 2, … layers; as many values as fit into its memory."""


class Link(Block):
    """A connection that is not like the others."""

    source: Text
    """Node from which, or `coordinator`."""
    target: Text
    """Node to which, or `coordinator`."""
    tokens_per_s: Annotated[Number, Field(ge=0)]
    """Activations of so many tokens; 0: no connection."""


class StatedHelix(Block):
    """Layers on nodes, for the largest flow of tokens from the coordinator through all layers and back."""

    kind: Literal["helix"]
    layers: Count
    """Of the model."""
    nodes: Annotated[dict[Text, Node], Field(min_length=1)]
    """Machines by name."""
    link_tokens_per_s: Above
    """Of a connection, where `links` says nothing else."""
    links: tuple[Link, ...] = ()
    """Connections that are slower, faster or not there."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for link in self.links:
            for name in (link.source, link.target):
                if name not in self.nodes and name != "coordinator":
                    raise ValueError(f"a link names {name}, which is no node")
        return self

    def capacity(self, source: str, target: str) -> float:
        """Of a connection [tokens/s]."""
        named = {SOURCE: "coordinator", SINK: "coordinator"}
        ends = named.get(source, source), named.get(target, target)
        for link in self.links:
            if (link.source, link.target) == ends:
                return link.tokens_per_s
        return self.link_tokens_per_s

    def formulate(self) -> LinearProgram:
        """The integer program of the paper, as a minimum.

        A node computes layers s to e = s + k; one binary for each k. A link i -> j may carry tokens if s_j <= e_i < e_j: the next
        node goes on where the last one ended, also in the middle of its layers. From the coordinator if s = 0, to it if e = all.
        """
        form = Formulation("tokens/s")
        names, most = list(self.nodes), float(self.layers)
        start = form.variables([f"start {n}" for n in names], upper=most - 1, integer=True)
        holds = {
            n: form.variables([f"{n} holds {k}" for k in range(1, self._fit(n) + 1)], upper=1.0, integer=True)
            for n in names
        }
        sizes = {n: np.arange(1.0, self._fit(n) + 1) for n in names}
        pairs = [(SOURCE, n) for n in names] + [(n, SINK) for n in names]
        pairs = [*pairs, *((a, b) for a in names for b in names if a != b)]
        pairs = [pair for pair in pairs if self.capacity(*pair) > 0]
        gain = np.array([-1.0 if a == SOURCE else 0.0 for a, _ in pairs])
        flow = form.variables([f"flow {a} -> {b}" for a, b in pairs], cost=gain)
        valid = form.variables([f"valid {a} -> {b}" for a, b in pairs], upper=1.0, integer=True)
        place = {n: k for k, n in enumerate(names)}
        for n in names:
            form.require(f"{n} holds some layers", holds[n], 1.0, "==", 1.0, elastic=False)
            ends = [start[place[n]], *holds[n]]
            form.require(f"{n} ends with the model", ends, [1.0, *sizes[n]], "<=", most, elastic=False)
            into = [flow[p] for p, (_, b) in enumerate(pairs) if b == n]
            out = [flow[p] for p, (a, _) in enumerate(pairs) if a == n]
            speeds = np.array(self.nodes[n].tokens_per_s[: self._fit(n)])
            form.require(f"{n} computes", [*into, *holds[n]], [*np.ones(len(into)), *-speeds], "<=", 0.0, elastic=False)
            form.require(
                f"{n} keeps nothing",
                [*into, *out],
                [*np.ones(len(into)), *-np.ones(len(out))],
                "==",
                0.0,
                elastic=False,
            )
        for p, (a, b) in enumerate(pairs):
            capacity = self.capacity(a, b)
            form.require(f"{a} -> {b} carries", [flow[p], valid[p]], [1.0, -capacity], "<=", 0.0, elastic=False)
            if a == SOURCE:
                form.require(f"{b} begins", [start[place[b]], valid[p]], [1.0, most], "<=", most, elastic=False)
                continue
            end = [start[place[a]], *holds[a]]
            ones = [1.0, *sizes[a]]
            if b == SINK:
                form.require(f"{a} ends", [*end, valid[p]], [*ones, -most], ">=", 0.0, elastic=False)
                continue
            columns = [start[place[b]], *end, valid[p]]
            form.require(f"{b} goes on from {a}", columns, [1.0, *(-f for f in ones), most], "<=", most, elastic=False)
            further = [*end, start[place[b]], *holds[b], valid[p]]
            factors = [*ones, -1.0, *(-size for size in sizes[b]), most + 1.0]
            form.require(f"{b} ends behind {a}", further, factors, "<=", most, elastic=False)
        return form.program()

    def _fit(self, name: str) -> int:
        return min(len(self.nodes[name].tokens_per_s), self.layers)

    def solve(self, effort: Effort | None = None) -> Plan:
        """Place the layers; flows by networkx on the placement, which must carry as much as the program says."""
        if sum(self._fit(name) for name in self.nodes) < self.layers:
            held = sum(self._fit(name) for name in self.nodes)
            hint = "add nodes or memory"
            raise InputError(Finding(f"the nodes hold {held} of {self.layers} layers", "nodes", hint=hint))
        program = self.formulate()
        solution = require_solution(program, effort)
        values = dict(zip(program.names, solution.values.tolist(), strict=True))
        layers = {}
        for name in self.nodes:
            first = round(values[f"start {name}"])
            count = next(k for k in range(1, self._fit(name) + 1) if values[f"{name} holds {k}"] > 0.5)
            layers[name] = (first, first + count)
        most, flows = max_flow(self, layers)
        if not self.nodes or most <= _FLOWS:
            raise InputError(Finding("no tokens can flow through all layers", "links", hint="connect the nodes"))
        assert abs(most + solution.objective) <= 1e-4 * most, "the flow and the program differ"
        rows = []
        for name, (first, end) in layers.items():
            targets = flows.get(name, {})
            total = sum(targets.values())
            weights = ", ".join(
                f"{'coordinator' if target == SINK else target} {share / total:.0%}"
                for target, share in targets.items()
                if share > _FLOWS * most
            )
            rows.append({"node": name, "layers": f"{first} to {end - 1}", "tokens/s": total, "then to": weights or "–"})
        figures = {"tokens_per_s": most, "bound_tokens_per_s": -solution.bound}
        return Plan(
            "helix",
            solution.status,
            most,
            "tokens/s",
            -solution.bound,
            {},
            figures,
            tuple(rows),
            notes=("requests go from node to node by weighted round-robin, in proportion to the flows",),
            build_s=solution.build_s,
            solve_s=solution.solve_s,
        )


def max_flow(problem: StatedHelix, layers: Layers) -> tuple[float, dict[str, dict[str, float]]]:
    """Most tokens per second through placed layers, and the flow of each connection [tokens/s]."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from([SOURCE, SINK])
    for name, (first, end) in layers.items():
        speed = problem.nodes[name].tokens_per_s[end - first - 1]
        graph.add_edge(f"{name} in", f"{name} out", capacity=speed)
        if first == 0:
            graph.add_edge(SOURCE, f"{name} in", capacity=problem.capacity(SOURCE, name))
        if end == problem.layers:
            graph.add_edge(f"{name} out", SINK, capacity=problem.capacity(name, SINK))
        for other, (begins, ends) in layers.items():
            if other != name and begins <= end < ends:
                graph.add_edge(f"{name} out", f"{other} in", capacity=problem.capacity(name, other))
    most, flows = networkx.maximum_flow(graph, SOURCE, SINK)
    named = {
        source.removesuffix(" out"): {target.removesuffix(" in"): float(flow) for target, flow in targets.items()}
        for source, targets in flows.items()
        if not source.endswith(" in")
    }
    return float(most), named
