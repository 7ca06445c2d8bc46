"""Transfers over a network whose links share their bandwidth max-min fairly.

Every flow gets as much as it can without taking from one that has no more than it: the rate at which one of its links is full and
no flow there has more per weight, or its own limit. Rates change only where a flow starts or ends, and only in the part of the
network that is coupled to it: a link that cannot fill up even if each of its flows went as fast as its path allows couples nothing,
so that a transfer over idle links costs its hops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

from fleetsim.errors import LawError
from fleetsim.kernel.clock import Clock, Timer

_ROOM = 1.0 + 1e-9
"""Links are taken for full beyond their capacity times this, so that rounding couples nothing."""


class Link:
    """One directed edge of the graph."""

    __slots__ = ("capacity", "couples", "demand", "flows", "latency_s", "moved_bytes", "nominal", "source", "target")

    def __init__(self, source: str, target: str, capacity: float, latency_s: float) -> None:
        self.source = source
        self.target = target
        self.capacity = capacity
        """What it carries now; 0 where it is cut [B/s]."""
        self.nominal = capacity
        """What it carries when nothing is wrong with it [B/s]."""
        self.latency_s = latency_s
        self.flows: dict[Flow, None] = {}
        """In order of their start."""
        self.demand = 0.0
        """What its flows would take if nothing else slowed them down [B/s]."""
        self.couples = False
        """Whether its flows can slow each other down."""
        self.moved_bytes = 0.0
        """By flows that ended."""

    def add(self, flow: Flow) -> None:
        """Put a flow on it."""
        self.flows[flow] = None
        self.demand += flow.bound
        self.couples = len(self.flows) > 1 and self.demand > self.capacity * _ROOM

    def remove(self, flow: Flow) -> None:
        """Take a flow off."""
        del self.flows[flow]
        self.demand = self.demand - flow.bound if self.flows else 0.0
        self.couples = len(self.flows) > 1 and self.demand > self.capacity * _ROOM


class Flow:
    """A transfer under way. Read it; only the network changes it."""

    __slots__ = (
        "active",
        "before_bytes",
        "bound",
        "done",
        "drain_s",
        "latency_s",
        "limit",
        "links",
        "number",
        "rate",
        "remaining",
        "size_bytes",
        "source",
        "started_s",
        "target",
        "timer",
        "updated_s",
        "weight",
    )

    def __init__(
        self,
        number: int,
        source: str,
        target: str,
        links: tuple[Link, ...],
        size_bytes: float,
        done: Callable[[], None],
        weight: float,
        limit: float,
    ) -> None:
        self.number = number
        self.source = source
        self.target = target
        self.links = links
        self.size_bytes = size_bytes
        self.done = done
        self.weight = weight
        self.limit = limit
        """Fastest that whoever sends or takes it can [B/s]."""
        self.before_bytes = 0.0
        """Sent over other links before these."""
        self.bound = inf
        """Fastest that its path and its limit allow [B/s]."""
        self.rate = 0.0
        """[B/s]"""
        self.remaining = size_bytes
        """Bytes to go at `updated_s`."""
        self.started_s = 0.0
        self.updated_s = 0.0
        self.drain_s = inf
        """When its last byte is sent, if no rate changes."""
        self.latency_s = 0.0
        """Between its last byte's start and arrival [s]."""
        self.active = False
        """Whether it has bytes to send."""
        self.timer: Timer | None = None
        """Runs while its last bytes are on the way."""


class Use(NamedTuple):
    """What a link has carried."""

    source: str
    target: str
    moved_bytes: float
    utilisation: float
    """Of its capacity, over the time so far."""


class Network:
    """Moves bytes between the nodes of a graph.

    Parameters
    ----------
    clock : Clock
        The event queue.
    graph : networkx.DiGraph
        Edges with `capacity` [B/s, above 0], `latency` [s] and `weight` [hops]; nodes may have `gates`: nodes, nearest first, that
        every path out of the node's surroundings passes. Paths are shortest by weight.
    """

    def __init__(self, clock: Clock, graph: Any) -> None:
        self.clock = clock
        self.graph = graph
        self.transfers = 0
        """Transfers started."""
        self.started_bytes = 0.0
        self.arrived_bytes = 0.0
        """Bytes of transfers that have arrived whole."""
        self.cancelled_bytes = 0.0
        """Bytes of cancelled transfers, sent or not."""
        self._links: dict[tuple[str, str], Link] = {}
        self._paths: dict[tuple[str, str], tuple[Link, ...]] = {}
        self._legs: dict[tuple[str, str], tuple[Link, ...]] = {}
        self._flows: dict[Flow, None] = {}
        """Those with bytes to send."""
        self._arriving: dict[Flow, None] = {}
        """Those whose last bytes are on the way."""
        self._heap: list[tuple[float, int, Flow]] = []
        """By drain time; stale where that has changed."""
        self._timer: Timer | None = None
        self._timer_s = inf
        self._shares: dict[tuple[str, str], float] = {}
        """Edges that carry less than usual, and which share of it."""
        self.cuts: set[tuple[str, str]] = set()
        """Edges that carry nothing."""

    # --- transfers ---------------------------------------------------------------------------------------------------

    def transfer(
        self,
        source: str,
        target: str,
        size_bytes: float,
        done: Callable[[], None],
        weight: float = 1.0,
        limit: float = inf,
    ) -> Flow:
        """Send `size_bytes` from one node to another and call `done` when the last byte has arrived.

        Parameters
        ----------
        source, target : str
            Nodes of the graph.
        size_bytes : float
            ≥ 0; nothing takes as long as the path's latency.
        done : callable
            Called without arguments, never before this returns.
        weight : float
            Share relative to other flows on a full link. > 0.
        limit : float
            Fastest rate [B/s]. > 0.

        Raises
        ------
        ValueError
            If there is no path, or a number is out of its range.
        """
        if not (0 <= size_bytes < inf and 0 < weight < inf and limit > 0):
            raise ValueError(f"a transfer of {size_bytes} bytes with weight {weight} and limit {limit} B/s")
        links = self.path(source, target)
        flow = Flow(self.transfers, source, target, links, size_bytes, done, weight, limit)
        self.transfers += 1
        self.started_bytes += size_bytes
        now_s = self.clock.now_s
        flow.started_s = flow.updated_s = now_s
        bound = limit
        coupled = False
        for link in links:
            flow.latency_s += link.latency_s
            if link.capacity < bound:
                bound = link.capacity
        flow.bound = bound
        if (size_bytes == 0 and bound > 0.0) or bound == inf:
            flow.remaining = 0.0
            self._send_last(flow)
            return flow
        flow.active = True
        self._flows[flow] = None
        for link in links:
            link.add(flow)
            if link.couples:
                coupled = True
        if coupled:
            self._share(self._coupled_to((flow,)))
        else:
            self._set_rate(flow, bound)
        self._arm()
        return flow

    def scale(self, edges: Iterable[tuple[str, str]], share: float) -> None:
        """Let edges carry a share of their bandwidth from now on; with 0 they are cut.

        Transfers that come to a cut go another way if there is one, and else wait until it is mended. One that was led around a cut
        is not led back; last bytes that are on the way already arrive.

        Raises
        ------
        ValueError
            If there is no such edge, or the share is below 0.
        """
        if not 0.0 <= share < inf:
            raise ValueError(f"a link cannot carry {share} of its bandwidth")
        for edge in edges:
            if edge not in self.graph.edges:
                raise ValueError(f"the network has no link from {edge[0]} to {edge[1]}")
            self._shares[edge] = share
            link = self._links.get(edge)
            if link is not None:
                link.capacity = link.nominal * share
        cuts = {edge for edge, left in self._shares.items() if not left}
        if cuts != self.cuts:
            self.cuts = cuts
            self._paths.clear()
            self._legs.clear()
        self._plan_again()

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets from one node to another now."""
        if not self.cuts:
            return False
        return any(not link.capacity for link in self.path(source, target))

    def is_stalled(self, flow: Flow) -> bool:
        """Whether a transfer waits for a cut to be mended."""
        return flow.active and not flow.bound

    def _plan_again(self) -> None:
        """Lead transfers around cuts, and share all links anew: what they carry has changed."""
        flows = list(self._flows)
        for flow in flows:
            self._settle(flow)
            for link in flow.links:
                link.remove(flow)
            if any(not link.capacity for link in flow.links):
                self._lead_around(flow)
        for flow in flows:
            flow.bound = min([flow.limit, *[link.capacity for link in flow.links]])
            for link in flow.links:
                link.add(flow)
        self._share(dict.fromkeys(flows))
        self._arm()

    def _lead_around(self, flow: Flow) -> None:
        """Send what is left of a transfer over the path that there is now."""
        links = self.path(flow.source, flow.target)
        if links == flow.links:
            return
        sent = flow.size_bytes - flow.remaining
        for link in flow.links:
            link.moved_bytes += sent - flow.before_bytes
        flow.before_bytes = sent
        flow.links = links
        flow.latency_s = sum([link.latency_s for link in links])

    def cancel(self, flow: Flow) -> None:
        """Stop a transfer; `done` is not called. Nothing happens if it has arrived or was cancelled before."""
        if flow.active:
            group = self._coupled_to((flow,))
            self._settle(flow)
            self._take_off(flow)
            self._share(group)
            self._arm()
        elif flow in self._arriving:
            del self._arriving[flow]
            assert flow.timer is not None
            flow.timer.cancel()
        else:
            return
        self.cancelled_bytes += flow.size_bytes

    def remaining_bytes(self, flow: Flow) -> float:
        """Bytes that a transfer has not sent yet."""
        if not flow.active or not flow.rate:
            return flow.remaining
        return max(flow.remaining - flow.rate * (self.clock.now_s - flow.updated_s), 0.0)

    def estimate_s(self, source: str, target: str, size_bytes: float, weight: float = 1.0, limit: float = inf) -> float:
        """Time that a transfer would take at the fair share that it would get now [s].

        The share is what each link of the path would leave it if the flows there asked for no more than they have: exact while
        those that must slow down do so on one link only.
        """
        rate, latency_s = limit, 0.0
        links = self.path(source, target)
        for link in links:
            latency_s += link.latency_s
            if link.capacity < rate:
                rate = link.capacity
        bound = rate
        for link in links:
            if link.flows and link.demand + bound > link.capacity * _ROOM:
                rate = min(rate, _level(link, weight))
        if not rate:
            return inf  # a cut is in the way
        return latency_s if rate == inf else latency_s + size_bytes / rate

    def idle_s(self, source: str, target: str, size_bytes: float) -> float:
        """Time that a transfer takes when nothing else moves [s]."""
        links = self.path(source, target)
        rate = min([link.nominal for link in links], default=inf)
        return sum([link.latency_s for link in links]) + size_bytes / rate

    # --- what links have done --------------------------------------------------------------------------------------------

    def link_rate(self, source: str, target: str) -> float:
        """Bytes per second that flow over one edge now."""
        link = self._links.get((source, target))
        return sum(flow.rate for flow in link.flows) if link else 0.0

    @property
    def busy(self) -> bool:
        """Whether any transfer is under way, and not waiting for a cut to be mended."""
        if self.cuts:
            return bool(self._arriving) or any(flow.rate for flow in self._flows)
        return bool(self._flows or self._arriving)

    def uses(self) -> list[Use]:
        """Every link that anything was sent over, in the order of first use."""
        now_s = self.clock.now_s
        rows = []
        for link in self._links.values():
            moved = link.moved_bytes + sum(
                flow.size_bytes - self.remaining_bytes(flow) - flow.before_bytes for flow in link.flows
            )
            rows.append(Use(link.source, link.target, moved, moved / (link.nominal * now_s) if now_s else 0.0))
        return rows

    # --- paths -------------------------------------------------------------------------------------------------------

    def path(self, source: str, target: str) -> tuple[Link, ...]:
        """Links of the shortest path around cuts, or through them where there is no other, found once.

        Raises
        ------
        ValueError
            If there is none.
        """
        key = (source, target)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = self._find(source, target)
        return path

    def _find(self, source: str, target: str) -> tuple[Link, ...]:
        """Climb from gate to gate up to the first common one; search in between, and where there are none."""
        nodes = self.graph.nodes
        if source not in nodes or target not in nodes:
            raise ValueError(f"the network has no {source if source not in nodes else target}")
        up = (source, *nodes[source].get("gates", ()))
        down = (target, *nodes[target].get("gates", ()))
        common = next((gate for gate in up if gate in down), None)
        if common is None and min(len(up), len(down)) > 1:  # from one site to another
            return (*self.path(source, up[-1]), *self._leg(up[-1], down[-1]), *self.path(down[-1], target))
        # two nodes below the same nearest gate may have a way that does not pass it
        if common is None or (common == up[min(1, len(up) - 1)] and common == down[min(1, len(down) - 1)]):
            return self._leg(source, target)
        rising, falling = up[: up.index(common) + 1], down[: down.index(common) + 1]
        legs = [self._leg(a, b) for a, b in pairwise(rising)]
        legs += [self._leg(a, b) for a, b in pairwise(reversed(falling))]
        return tuple(link for leg in legs for link in leg)

    def _leg(self, source: str, target: str) -> tuple[Link, ...]:
        leg = self._legs.get((source, target))
        if leg is not None:
            return leg
        from networkx import NetworkXNoPath, bidirectional_dijkstra  # costs start-up time where nothing is ever sent

        nodes: list[str] = []
        with suppress(NetworkXNoPath):  # the way may be blocked
            if self.cuts:
                _, nodes = bidirectional_dijkstra(self.graph, source, target, self._weight_if_whole)
        try:
            if not nodes:
                _, nodes = bidirectional_dijkstra(self.graph, source, target, "weight")
        except NetworkXNoPath:
            raise ValueError(f"the network has no path from {source} to {target}") from None
        leg = tuple(self._link(a, b) for a, b in pairwise(nodes))
        self._legs[source, target] = leg
        return leg

    def _weight_if_whole(self, source: str, target: str, edge: Any) -> Any:
        """Hops of an edge; None, which hides it, where it is cut."""
        return None if (source, target) in self.cuts else edge["weight"]

    def _link(self, source: str, target: str) -> Link:
        link = self._links.get((source, target))
        if link is None:
            edge = self.graph.edges[source, target]
            link = self._links[source, target] = Link(source, target, edge["capacity"], edge["latency"])
            link.capacity *= self._shares.get((source, target), 1.0)
        return link

    # --- sharing -----------------------------------------------------------------------------------------------------

    def _coupled_to(self, flows: Iterable[Flow]) -> dict[Flow, None]:
        """The flows given and all that their rates may depend on."""
        found = dict.fromkeys(flows)
        stack = list(found)
        seen: set[Link] = set()
        while stack:
            for link in stack.pop().links:
                if link.couples and link not in seen:
                    seen.add(link)
                    for other in link.flows:
                        if other not in found:
                            found[other] = None
                            stack.append(other)
        return found

    def _share(self, flows: dict[Flow, None]) -> None:
        """Give new rates to flows that share links with each other alone."""
        filling = _Filling(flow for flow in flows if flow.active)
        for flow, rate in filling.rates().items():
            if rate != flow.rate:
                self._set_rate(flow, rate)

    def _set_rate(self, flow: Flow, rate: float) -> None:
        self._settle(flow)
        flow.rate = rate
        flow.drain_s = flow.updated_s + flow.remaining / rate if rate else inf
        heappush(self._heap, (flow.drain_s, flow.number, flow))

    def _settle(self, flow: Flow) -> None:
        """Bring a flow's remaining bytes up to now."""
        now_s = self.clock.now_s
        if now_s > flow.updated_s:
            flow.remaining = max(flow.remaining - flow.rate * (now_s - flow.updated_s), 0.0)
            flow.updated_s = now_s

    # --- ends --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have one timer at the earliest end; a timer that turns out too early does no harm."""
        heap = self._heap
        while heap and (not heap[0][2].active or heap[0][0] != heap[0][2].drain_s):
            heappop(heap)
        if len(heap) > 64 and len(heap) > 4 * len(self._flows):
            heap = self._heap = [(flow.drain_s, flow.number, flow) for flow in self._flows]
            heapify(heap)
        if heap and heap[0][0] < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = heap[0][0]
            self._timer = self.clock.at(self._timer_s, self._drained)

    def _drained(self) -> None:
        """Take off all flows whose last byte is sent, and share what they had."""
        self._timer, self._timer_s = None, inf
        now_s, heap = self.clock.now_s, self._heap
        over: dict[Flow, None] = {}
        while heap and heap[0][0] <= now_s:
            drain_s, _, flow = heappop(heap)
            if flow.active and drain_s == flow.drain_s:
                over[flow] = None
        group: dict[Flow, None] = {}
        for flow in over:
            if flow not in group:
                group.update(self._coupled_to((flow,)))
        for flow in over:
            flow.remaining = 0.0
            flow.updated_s = now_s
            self._take_off(flow)
        if len(group) > len(over):
            self._share(group)
        self._arm()
        for flow in over:
            self._send_last(flow)

    def _take_off(self, flow: Flow) -> None:
        """Remove a flow from its links, and count what it has sent."""
        sent = flow.size_bytes - flow.remaining - flow.before_bytes
        for link in flow.links:
            link.remove(flow)
            link.moved_bytes += sent
        flow.active = False
        flow.rate = 0.0
        flow.drain_s = inf
        del self._flows[flow]

    def _send_last(self, flow: Flow) -> None:
        """Let the last byte travel."""
        self._arriving[flow] = None
        flow.timer = self.clock.at(self.clock.now_s + flow.latency_s, _Arrival(self, flow))

    def _arrive(self, flow: Flow) -> None:
        del self._arriving[flow]
        flow.timer = None  # no cycle of references is left behind
        self.arrived_bytes += flow.size_bytes
        flow.done()

    # --- laws --------------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Check that no byte is lost, no link above its capacity, and every flow held back by a full link or its limit.

        Raises
        ------
        LawError
            If one of these does not hold.
        """
        under_way = sum(flow.size_bytes for flow in (*self._flows, *self._arriving))
        ended = self.arrived_bytes + self.cancelled_bytes
        if abs(self.started_bytes - ended - under_way) > 1e-9 * self.started_bytes:
            raise LawError(f"law 3 (network): {self.started_bytes} bytes started, {ended} ended, {under_way} under way")
        for link in self._links.values():
            rate = sum(flow.rate for flow in link.flows)
            if rate > link.capacity * (1 + 1e-6):
                raise LawError(
                    f"law 3 (network): {rate} B/s from {link.source} to {link.target}, which carries {link.capacity} B/s"
                )
        for flow in self._flows:
            if flow.rate < flow.bound * (1 - 1e-6) and not any(_holds_back(link, flow) for link in flow.links):
                raise LawError(f"law 3 (network): a flow has {flow.rate} B/s and nothing holds it back")


class _Filling:
    """Progressive filling: all flows grow in step, by weight, and stop where a link is full or their limit is reached."""

    __slots__ = ("by_bound", "filled", "heap", "open_flows", "room", "weights")

    def __init__(self, flows: Iterable[Flow]) -> None:
        self.open_flows = dict.fromkeys(flows)
        """Flows that still grow."""
        self.filled: dict[Flow, float] = {}
        """Rates of the others [B/s]."""
        self.room: dict[Link, float] = {}
        """What the flows that have stopped leave of a link [B/s]."""
        self.weights: dict[Link, float] = {}
        """Sum over the flows of a link that still grow."""
        room, weights = self.room, self.weights
        for flow in self.open_flows:
            weight = flow.weight
            for link in flow.links:
                if not link.couples:
                    continue
                if link in weights:
                    weights[link] += weight
                else:
                    room[link] = link.capacity
                    weights[link] = weight
        self.by_bound = sorted(self.open_flows, key=lambda flow: flow.bound / flow.weight, reverse=True)
        self.heap = [(self.room[link] / weight, i, link) for i, (link, weight) in enumerate(self.weights.items())]
        """Level (rate per weight) at which each link would fill up if no more of its flows stopped before."""
        heapify(self.heap)

    def rates(self) -> dict[Flow, float]:
        """Rate of every flow [B/s]."""
        by_bound, open_flows = self.by_bound, self.open_flows
        while open_flows:
            limited = by_bound[-1]
            if limited not in open_flows:
                by_bound.pop()
            elif not self.heap or limited.bound / limited.weight <= self.heap[0][0]:
                self._stop(limited, limited.bound)
            else:
                self._fill_next_link()
        return self.filled

    def _fill_next_link(self) -> None:
        """Stop the flows of the link that fills up first; as flows stop, the levels of links only rise, so the lowest is final."""
        level, number, link = heappop(self.heap)
        weight = self.weights[link]
        if weight <= 0.0:
            return
        risen = max(self.room[link], 0.0) / weight
        if risen > level * _ROOM:
            heappush(self.heap, (risen, number, link))
            return
        for flow in link.flows:
            if flow in self.open_flows:
                self._stop(flow, level * flow.weight)

    def _stop(self, flow: Flow, rate: float) -> None:
        del self.open_flows[flow]
        self.filled[flow] = rate
        room, weights, weight = self.room, self.weights, flow.weight
        for link in flow.links:
            if link.couples:
                room[link] -= rate
                weights[link] -= weight


class _Arrival:
    """Call-back of a flow's last byte."""

    __slots__ = ("flow", "network")

    def __init__(self, network: Network, flow: Flow) -> None:
        self.network = network
        self.flow = flow

    def __call__(self) -> None:
        self.network._arrive(self.flow)


def _holds_back(link: Link, flow: Flow) -> bool:
    """Whether a link is full and no flow there has more per weight than `flow`."""
    level = flow.rate / flow.weight
    full = sum(other.rate for other in link.flows) >= link.capacity * (1 - 1e-6)
    return full and all(other.rate / other.weight <= level * (1 + 1e-6) for other in link.flows)


def _level(link: Link, weight: float) -> float:
    """Rate that one more flow of `weight` would get on a link whose flows ask for what they have [B/s]."""
    room, weights = link.capacity, weight + sum(flow.weight for flow in link.flows)
    for flow in sorted(link.flows, key=lambda flow: flow.rate / flow.weight):
        level = room / weights
        if flow.rate / flow.weight >= level:
            break
        room -= flow.rate
        weights -= flow.weight
    return room / weights * weight
