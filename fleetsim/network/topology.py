"""The network of a fleet as a directed graph: replicas, host memories, drives, adapters, switches, a remote store.

```
gpu:0 ─ switch:0.0 ─ nic:0 ─ leaf:0 ─ spine ─ store        gpu:i     memory of replica i, all its accelerators
gpu:1 ─┤     │         │       └─ nic:1 …   └─ gateway      host:s    memory of server s, ssd:s its drives
       peer:0.0   host:0 ─┘                                 switch    PCIe switch with some accelerators and their adapters
             host:0 ─ ssd:0                                 peer      links between accelerators (NVLink, …)
```

Each edge has `capacity` [B/s], `latency` [s] and `weight` (hops); each node `gates`, nearest first, which everything passes on its
way out.
Each site has leaves and a spine of its own (``leaf:SITE:0``, ``spine:SITE``), joined to ``wan:SITE``, which has a link to every
other site's; store and gateway stand at the gateway's site, else at the first one.
What moves to or from a replica moves over all its accelerators at once, so an edge bundles their links. A replica that is larger
than a server has whole servers of its own, which are one server here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.link import Link, load_link
from fleetsim.scenario import schema

if TYPE_CHECKING:
    import networkx as nx

_PEER = 0.5
"""Hops that a link between accelerators counts: those that have one use it."""
_THROUGH_ADAPTER = 1.5
"""Hops that the way from a switch to its adapters counts, so that replicas of one server meet in its host, not in its adapters."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the replicas of a pool stand in servers, and how fast these are; bandwidths are those that bulk copies reach [B/s]."""

    accelerators: int
    """Of one replica."""
    server_accelerators: int
    """Of one server, or of all the servers that one large replica takes."""
    machines: int
    """Servers that stand for one here: more than one where a replica needs them."""
    per_uplink: int
    """Accelerators behind one uplink to the host."""
    uplink: Link
    """Between an accelerator and its host."""
    peer: Link | None
    """Between accelerators of a server, where that is another one."""
    peers: int
    """Accelerators that it joins."""
    adapter: Link
    adapter_bytes_per_s: float
    """Of one adapter, its own PCIe link counted."""
    network_bytes_per_s: float
    """Of all adapters of the server."""
    adapters: int
    ssd: schema.Ssd

    @property
    def replicas(self) -> int:
        """Replicas in one server."""
        return self.server_accelerators // self.accelerators

    @property
    def switch_accelerators(self) -> int:
        """Accelerators behind one switch: those of one uplink, or all of one replica."""
        return min(max(self.per_uplink, self.accelerators), self.server_accelerators)


def layout_of(pool: schema.Pool) -> Layout:
    """Servers of a pool, as its `server` block and the catalogue say.

    Raises
    ------
    DataError
        If an accelerator or a link is not in the catalogue.
    """
    accelerator: Accelerator = load_accelerator(pool.accelerator)
    server, own = pool.server, pool.parallelism.accelerators
    size = server.accelerators or accelerator.per_node
    machines = ceil(own / size)
    uplink, peer = load_link(accelerator.host_link), pool.link or accelerator.link
    adapter = load_link(server.nic or accelerator.network)
    adapters = (server.nics or size) * machines
    rate = min(adapter.copy_bytes_per_s, uplink.copy_bytes_per_s)
    total = adapters * rate
    return Layout(
        accelerators=own,
        server_accelerators=size * machines,
        machines=machines,
        per_uplink=server.accelerators_per_uplink or (2 if uplink.name.startswith("pcie") else 1),
        uplink=uplink,
        peer=None if peer == uplink.name else load_link(peer),
        peers=min(accelerator.per_node, size),
        adapter=adapter,
        adapter_bytes_per_s=rate,
        network_bytes_per_s=min(total, server.network_limit * machines) if server.network_limit else total,
        adapters=adapters,
        ssd=server.ssd,
    )


def build_graph(scenario: schema.Scenario) -> nx.DiGraph:
    """The network between all replicas of a scenario, numbered over the pools in their order, and servers likewise.

    Raises
    ------
    DataError
        If an accelerator or a link is not in the catalogue.
    """
    import networkx as nx  # fleets without a network need not load it

    layouts = [layout_of(pool) for pool in scenario.pools]
    graph = nx.DiGraph()
    campuses = {name: Campus(graph, scenario, name) for name in scenario.sites or ("",)}
    for layout, pool in _zip(layouts, scenario):
        campuses[pool.site or ""].machines += layout.machines * ceil(pool.most_replicas / layout.replicas)
    for campus in campuses.values():
        campus.begin()
    server = replica = 0
    for layout, pool in _zip(layouts, scenario):
        campus = campuses[pool.site or ""]
        for first in range(0, pool.most_replicas, layout.replicas):
            count = min(layout.replicas, pool.most_replicas - first)
            gates = campus.place(layout)
            _add_server(graph, layout, server, range(replica, replica + count), gates)
            server += 1
            replica += count
    for campus in campuses.values():
        campus.join_leaves()
    _join_sites(graph, scenario)
    home = campuses[scenario.gateway.site or next(iter(campuses))]
    network = scenario.network
    if network.store is not None:
        graph.add_node("store", gates=home.outside)
        latency_s = network.store.latency
        _join(graph, "store", home.core, network.store.bandwidth, latency_s, latency_s)
    graph.add_node("gateway", gates=home.outside)
    _join(graph, "gateway", home.core, network.gateway)
    return graph


class Campus:
    """Leaves and spine of one site; of the whole fleet, where there are none."""

    def __init__(self, graph: nx.DiGraph, scenario: schema.Scenario, site: str) -> None:
        self._graph = graph
        self._network = scenario.network
        self._site = site
        self._placed = 0
        self._leaves: dict[str, float] = {}
        self.machines = 0
        """Servers that will stand there."""

    def begin(self) -> None:
        """Set up its core, once it is known how many servers there are."""
        suffix = f":{self._site}" if self._site else ""
        self._leaf = f"leaf{suffix}"
        self.core = f"spine{suffix}" if self.machines > self._network.servers_per_leaf else f"{self._leaf}:0"
        """Where its leaves meet."""
        beyond = (f"wan:{self._site}",) if self._site else ()
        self.outside = (self.core, *beyond)
        """What everything passes on its way out of the site."""
        self._graph.add_node(self.core, gates=beyond)

    def place(self, layout: Layout) -> tuple[str, ...]:
        """Gates of the next server."""
        leaf = f"{self._leaf}:{self._placed // self._network.servers_per_leaf}"
        self._leaves[leaf] = self._leaves.get(leaf, 0.0) + layout.network_bytes_per_s
        self._placed += layout.machines
        return self.outside if leaf == self.core else (leaf, *self.outside)

    def join_leaves(self) -> None:
        """Join its leaves to its core."""
        for leaf, bytes_per_s in self._leaves.items():
            if leaf != self.core:
                self._graph.add_node(leaf, gates=self.outside)
                _join(self._graph, leaf, self.core, bytes_per_s / self._network.oversubscription)


def _join_sites(graph: nx.DiGraph, scenario: schema.Scenario) -> None:
    """Links from each site to all others, over one adapter each way; half of a round trip lies between two."""
    sites = scenario.sites
    for name, site in sites.items():
        graph.add_node(f"wan:{name}", gates=())
        core = next(node for node in (f"spine:{name}", f"leaf:{name}:0") if node in graph)
        _join(graph, core, f"wan:{name}", site.wan)
    names = list(sites)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            rtt_s = sites[name].rtt.get(other, sites[other].rtt.get(name, 0.0))
            bytes_per_s = min(sites[name].wan, sites[other].wan)
            _join(graph, f"wan:{name}", f"wan:{other}", bytes_per_s, 0.5 * rtt_s, 0.5 * rtt_s)


def host_of(graph: nx.DiGraph, replica: int) -> str:
    """Endpoint of the host memory of a replica's server."""
    return str(graph.nodes[f"gpu:{replica}"]["host"])


def ssd_of(graph: nx.DiGraph, replica: int) -> str:
    """Endpoint of the drives of a replica's server."""
    return host_of(graph, replica).replace("host", "ssd")


def links_between(graph: nx.DiGraph, node: str, others: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Edges between a node and some others, both ways."""
    pairs = [pair for other in others for pair in ((node, other), (other, node))]
    return tuple(pair for pair in pairs if graph.has_edge(*pair))


def links_at(graph: nx.DiGraph, node: str) -> tuple[tuple[str, str], ...]:
    """All edges of a node, both ways."""
    return links_between(graph, node, graph.successors(node))


def _zip(layouts: list[Layout], scenario: schema.Scenario) -> list[tuple[Layout, schema.Pool]]:
    return list(zip(layouts, scenario.pools, strict=True))


def _add_server(graph: nx.DiGraph, layout: Layout, server: int, replicas: range, outside: tuple[str, ...]) -> None:
    host, adapters, ssd = f"host:{server}", f"nic:{server}", f"ssd:{server}"
    gates = (adapters, *outside)
    graph.add_node(adapters, gates=outside)
    graph.add_nodes_from((host, ssd), gates=gates)
    _join(graph, adapters, outside[0], layout.network_bytes_per_s, layout.adapter.copy_latency_s)
    _join(graph, host, adapters, layout.network_bytes_per_s)
    drives = layout.ssd.drives * layout.machines
    _connect(graph, ssd, host, drives * layout.ssd.read, layout.ssd.latency)
    _connect(graph, host, ssd, drives * layout.ssd.write, layout.ssd.latency)
    for position, replica in enumerate(replicas):
        own = layout.accelerators
        slot = position * own
        gpu, switch = f"gpu:{replica}", f"switch:{server}.{slot // layout.switch_accelerators}"
        if switch not in graph:
            graph.add_node(switch, gates=gates)
            _add_switch(graph, layout, switch, host, adapters)
        graph.add_node(gpu, gates=gates, host=host)
        _join(graph, gpu, switch, own * layout.uplink.copy_bytes_per_s)
        if layout.peer is not None and layout.replicas > 1 and slot % layout.peers + own <= layout.peers:
            peer = f"peer:{server}.{slot // layout.peers}"
            graph.add_node(peer, gates=gates)
            _join(graph, gpu, peer, own * layout.peer.send_bytes_per_s, layout.peer.send.latency_s, weight=_PEER)


def _add_switch(graph: nx.DiGraph, layout: Layout, switch: str, host: str, adapters: str) -> None:
    """A PCIe switch: the published bandwidth of its uplinks, which several copies fill, and its share of the adapters."""
    accelerators, latency_s = layout.switch_accelerators, layout.uplink.copy_latency_s
    _join(
        graph,
        switch,
        host,
        accelerators / layout.per_uplink * layout.uplink.bandwidth_bytes_per_s,
        latency_s,
        latency_s,
    )
    share = accelerators / layout.server_accelerators * layout.adapters * layout.adapter_bytes_per_s
    _join(graph, switch, adapters, min(share, layout.network_bytes_per_s), weight=_THROUGH_ADAPTER)


def _join(
    graph: nx.DiGraph,
    source: str,
    target: str,
    bytes_per_s: float,
    latency_s: float = 0.0,
    latency_back_s: float = 0.0,
    weight: float = 1.0,
) -> None:
    """Two edges, one a way, each with the whole bandwidth."""
    _connect(graph, source, target, bytes_per_s, latency_s, weight)
    _connect(graph, target, source, bytes_per_s, latency_back_s, weight)


def _connect(
    graph: nx.DiGraph, source: str, target: str, bytes_per_s: float, latency_s: float = 0.0, weight: float = 1.0
) -> None:
    graph.add_edge(source, target, capacity=bytes_per_s, latency=latency_s, weight=weight)
