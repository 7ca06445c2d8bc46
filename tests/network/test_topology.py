"""The network of a scenario: which way data goes, and that published bandwidths come out."""

from itertools import pairwise

import networkx as nx
import pytest

from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.network.topology import build_graph, host_of, ssd_of
from fleetsim.scenario.schema import Scenario

TOKENS = {"distribution": "fixed", "value": 1}
WORKLOAD = {
    "kind": "synthetic",
    "requests": 1,
    "arrivals": {"process": "poisson", "rate": "1 req/s"},
    "prompt_tokens": TOKENS,
    "output_tokens": TOKENS,
}


def pool(accelerator: str = "h100-sxm", replicas: int = 2, tp: int = 1, **server: object) -> dict:
    return {
        "name": f"{accelerator} {tp}",
        "llm": "llama-3.1-8b",
        "accelerator": accelerator,
        "replicas": replicas,
        "parallelism": {"tp": tp},
        "server": server,
    }


def graph(*pools: dict, **network: object) -> nx.DiGraph:
    content = {"schema": 1, "name": "n", "workload": WORKLOAD, "pools": pools, "network": network}
    return build_graph(Scenario.model_validate(content))


def nodes(graph: nx.DiGraph, source: str, target: str) -> list[str]:
    path = Network(Clock(), graph).path(source, target)
    return [link.source for link in path] + [path[-1].target]


def bytes_per_s(graph: nx.DiGraph, *pairs: tuple[str, str]) -> float:
    """Total of one large transfer per pair, at the same time."""
    network = Network(Clock(), graph)
    flows = [network.transfer(source, target, 1e15, lambda: None) for source, target in pairs]
    network.verify()
    return sum(flow.rate for flow in flows)


# --- published figures ------------------------------------------------------------------------------------------------


def test_four_adapters_of_200_gb_per_s_reach_87_gb_per_s() -> None:
    """Mooncake: 40 GB of keys and values between two machines."""
    two = graph(pool("a100-80", replicas=2, tp=8, nics=4, nic="roce-200"))
    assert bytes_per_s(two, ("host:0", "host:1")) == pytest.approx(87e9, rel=0.1)
    assert bytes_per_s(two, ("gpu:0", "gpu:1")) == pytest.approx(87e9, rel=0.1)


def test_eight_adapters_of_400_gb_per_s_on_pcie_4_reach_190_gb_per_s() -> None:
    two = graph(pool("a100-80", replicas=2, tp=8, nics=8, nic="roce-400"))
    assert bytes_per_s(two, ("host:0", "host:1")) == pytest.approx(190e9, rel=0.1)


@pytest.mark.parametrize(("nics", "nic", "published"), [(4, "roce-200", 87e9 / 2.4), (8, "roce-400", 190e9 / 4.6)])
def test_tcp_is_a_limit_of_the_server(nics: int, nic: str, published: float) -> None:
    two = graph(pool("a100-80", replicas=2, tp=8, nics=nics, nic=nic, network_limit="38 GB/s"))
    assert bytes_per_s(two, ("host:0", "host:1")) == pytest.approx(published, rel=0.1)


def test_eight_accelerators_on_pcie_4_reach_their_host_with_128_gb_per_s() -> None:
    """Mooncake plans with 128 GB/s for a server: pairs of accelerators share an uplink."""
    server = graph(pool("a100-80", replicas=8))
    assert bytes_per_s(server, *((f"gpu:{i}", "host:0") for i in range(8))) == pytest.approx(128e9, rel=0.1)
    assert bytes_per_s(graph(pool("a100-80", replicas=1, tp=8)), ("host:0", "gpu:0")) == pytest.approx(128e9, rel=0.1)


@pytest.mark.parametrize(("accelerator", "published"), [("a100-80", 25e9), ("h100-sxm", 50e9)])
def test_one_accelerator_reaches_its_host(accelerator: str, published: float) -> None:
    assert bytes_per_s(graph(pool(accelerator)), ("host:0", "gpu:0")) == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize(("nic", "published"), [("infiniband-100", 12.5e9), ("infiniband-400", 50e9)])
def test_one_adapter_each_lies_within_what_rdma_reaches(nic: str, published: float) -> None:
    two = graph(pool("h100-sxm", replicas=16, nic=nic))
    pairs = [(f"gpu:{i}", f"gpu:{8 + i}") for i in range(8)]
    assert 0.8 * published < bytes_per_s(two, *pairs) / 8 <= published
    assert bytes_per_s(two, pairs[0]) <= min(2 * published, 50e9)  # both adapters of its switch are a lone one's


# --- which way --------------------------------------------------------------------------------------------------------


def test_replicas_of_one_server_use_their_own_links() -> None:
    server = graph(pool("h100-sxm", replicas=8))
    assert nodes(server, "gpu:0", "gpu:7") == ["gpu:0", "peer:0.0", "gpu:7"]
    assert bytes_per_s(server, ("gpu:0", "gpu:7")) == pytest.approx(450e9 * 0.821)
    both = graph(pool("h100-sxm", replicas=2, tp=4))
    assert bytes_per_s(both, ("gpu:0", "gpu:1")) == pytest.approx(4 * 450e9 * 0.821)


def test_without_such_links_they_go_over_pcie() -> None:
    server = graph(pool("l40s", replicas=4))
    assert nodes(server, "gpu:0", "gpu:1") == ["gpu:0", "switch:0.0", "gpu:1"]
    assert nodes(server, "gpu:0", "gpu:2") == ["gpu:0", "switch:0.0", "host:0", "switch:0.1", "gpu:2"]


def test_bridges_join_pairs_only() -> None:
    server = graph(pool("h100-nvl", replicas=4, accelerators=4))
    assert nodes(server, "gpu:2", "gpu:3") == ["gpu:2", "peer:0.1", "gpu:3"]
    assert "host:0" in nodes(server, "gpu:1", "gpu:2")


def test_servers_meet_in_their_leaf_and_leaves_in_the_spine() -> None:
    fleet = graph(pool("h100-sxm", replicas=32), servers_per_leaf=2)
    assert nodes(fleet, "gpu:0", "gpu:15") == [
        "gpu:0",
        "switch:0.0",
        "nic:0",
        "leaf:0",
        "nic:1",
        "switch:1.3",
        "gpu:15",
    ]
    far = nodes(fleet, "gpu:0", "gpu:31")
    assert far[2:-2] == ["nic:0", "leaf:0", "spine", "leaf:1", "nic:3"]


def test_an_oversubscribed_spine_is_shared() -> None:
    pairs = [(f"host:{i}", f"host:{i + 2}") for i in range(2)]
    free, narrow = (
        graph(pool("a100-80", replicas=4, tp=8), servers_per_leaf=2, oversubscription=ratio) for ratio in (1, 4)
    )
    assert bytes_per_s(narrow, *pairs) == pytest.approx(bytes_per_s(free, *pairs) / 4)


def test_a_replica_larger_than_a_server_has_the_adapters_of_all_its_servers() -> None:
    fleet = graph(pool("h100-sxm", replicas=2, tp=16), pool("h100-sxm", replicas=1, tp=8), servers_per_leaf=4)
    assert host_of(fleet, 1) == "host:1"
    assert "spine" in nodes(fleet, "gpu:0", "gpu:2")  # the fifth server stands under another leaf
    assert bytes_per_s(fleet, ("gpu:0", "gpu:1")) == pytest.approx(16 * 50e9 * 0.87)
    assert bytes_per_s(fleet, ("gpu:0", "gpu:2")) == pytest.approx(8 * 50e9 * 0.87)


def test_drives_are_read_faster_than_written_and_lie_behind_the_host() -> None:
    server = graph(pool(ssd={"drives": 2, "read": "6 GB/s", "write": "1 GB/s"}))
    assert ssd_of(server, 0) == "ssd:0"
    assert nodes(server, "ssd:0", "gpu:0") == ["ssd:0", "host:0", "switch:0.0", "gpu:0"]
    assert bytes_per_s(server, ("ssd:0", "host:0")) == 12e9
    assert bytes_per_s(server, ("host:0", "ssd:0")) == 2e9


def test_the_store_has_a_bandwidth_of_its_own() -> None:
    fleet = graph(pool("h100-sxm", replicas=24), store={"bandwidth": "60 GB/s", "latency": "1 ms"})
    assert bytes_per_s(fleet, *(("store", f"host:{i}") for i in range(3))) == pytest.approx(60e9)
    assert bytes_per_s(fleet, *((f"host:{i}", "store") for i in range(3))) == pytest.approx(60e9)
    network = Network(Clock(), fleet)
    assert network.estimate_s("store", "gpu:3", 0.0) == pytest.approx(1e-3)
    assert network.estimate_s("store", "host:1", 6e9) == pytest.approx(0.101)
    assert "store" not in graph(pool())


def test_every_endpoint_reaches_every_other() -> None:
    fleet = graph(
        pool("h100-sxm", replicas=3, tp=4), pool("a10g", replicas=9), store={"bandwidth": "1 GB/s"}, servers_per_leaf=1
    )
    ends = [n for n in fleet if n.split(":")[0] in ("gpu", "host", "ssd", "store", "gateway")]
    network = Network(Clock(), fleet)
    for a in ends:
        for b in ends:
            links = network.path(a, b)
            assert a == b or (links[0].source, links[-1].target) == (a, b)
            assert all(x.target == y.source for x, y in pairwise(links))
            expected = nx.dijkstra_path_length(fleet, a, b, "weight")
            assert sum(fleet.edges[x.source, x.target]["weight"] for x in links) == expected
