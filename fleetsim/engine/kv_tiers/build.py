"""Tiers of a replica from the scenario."""

from __future__ import annotations

from fleetsim.engine.kv_tiers.replica_tiers import Place, ReplicaTiers
from fleetsim.engine.kv_tiers.tier import Tier
from fleetsim.engine.replica import Replica
from fleetsim.network.flows import Network
from fleetsim.scenario.schema import KvTiers

_ENDLESS = 1 << 60
"""Blocks of a store without a limit."""


def attach_tiers(
    replica: Replica, config: KvTiers, network: Network, host: str, block_bytes: float, layers: int, store: Tier | None
) -> ReplicaTiers:
    """Give a replica the tiers of its pool.

    Parameters
    ----------
    replica : Replica
        Its prefix cache must be on.
    host : str
        Memory of its server in the network; the drives are found from it.
    block_bytes : float
        Keys and values of a block, over all layers and accelerators [bytes].
    store : Tier or None
        The store that the replicas of one LLM share.
    """
    places = []
    blocks = sum(batch.cache.capacity for batch in replica.batches)
    if config.host is not None:
        room = config.host.capacity / block_bytes if config.host.capacity else config.host.ratio * blocks
        places.append(Place(Tier("host", max(int(room), 1), block_bytes), host))
    if config.ssd is not None:
        room = config.ssd.capacity / block_bytes
        places.append(Place(Tier("ssd", max(int(room), 1), block_bytes), host.replace("host", "ssd")))
    if config.store is not None:
        assert store is not None
        places.append(Place(store, "store", config.store.limit))
    tiers = ReplicaTiers(
        config,
        network,
        replica,
        f"gpu:{replica.index}",
        places,
        replica.batches[0].block_tokens,
        layers,
    )
    replica.tiers = tiers
    for batch in replica.batches:
        batch.tiers = tiers
        if tiers.writes_back:
            batch.cache.on_evict = lambda node: tiers.evicted(tiers.writers[0], node)
    return tiers


def shared_store(capacity_bytes: float | None, block_bytes: float) -> Tier:
    """The store of one LLM's replicas."""
    return Tier("store", int(capacity_bytes / block_bytes) if capacity_bytes else _ENDLESS, block_bytes)
