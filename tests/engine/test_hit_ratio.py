"""Hit ratios on public traces against a published-style table of flat caches, and what the leaf rule changes in them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from fleetsim.engine.cache_replay import hit_ratio
from fleetsim.engine.evictions.lru import Lru, LruConfig
from fleetsim.plugins import Choice, allowing_imports, names
from fleetsim.workload.readers.mooncake import read
from fleetsim.workload.readers.rows import BadRows, Row

DATA = (
    Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "traces" / "open" / "prefix"
)
measured = pytest.mark.skipif(not DATA.is_dir(), reason=f"no traces at {DATA}: set FLEETSIM_DATA")
FILES = {
    "conversation": "mooncake_conversation_first40min.jsonl.gz",
    "synthetic": "mooncake_synthetic_trace.jsonl.gz",
}
CAPACITIES = (1e6, 3e6, 10e6, 25e6)
FLAT = {
    ("conversation", "lru"): (5.4, 13.7, 28.4, 35.2),
    ("conversation", "fifo"): (5.3, 12.7, 25.6, 33.3),
    ("synthetic", "lru"): (14.5, 31.5, 57.7, 65.1),
    ("synthetic", "fifo"): (14.4, 30.7, 53.5, 65.1),
    ("synthetic", "lfu"): (9.5, 24.7, 59.9, 65.1),
    ("synthetic", "slru"): (14.0, 30.5, 57.8, 65.1),
    ("synthetic", "s3-fifo"): (14.6, 31.4, 56.7, 65.1),
    ("synthetic", "arc"): (14.7, 33.0, 59.9, 65.1),
}
"""Token hits [%] of caches of single blocks that know nothing of followers. Of the conversation trace the first 40 minutes are
public here, for which there are two rows; all rows of the synthetic trace are."""
LEAF_RULE = {
    # fifo: a session's first blocks are older than its later turns and would go first; the leaf rule keeps them until those went
    ("conversation", "fifo"): (5.4, 13.7, 28.4, 35.2),
    ("synthetic", "fifo"): (14.5, 31.3, 57.7, 65.1),
    # lfu: where all else has hits, a flat cache drops the very blocks that a request is adding; here blocks in use stay
    ("synthetic", "lfu"): (11.3, 25.6, 59.9, 65.1),
    # s3-fifo: blocks whose start went stay in a flat cache's queues and are of no use
    ("synthetic", "s3-fifo"): (14.6, 31.7, 59.3, 65.1),
}
"""What it is here where only blocks without followers may go, if that is more than 1.5 points away (0.5 for lru and fifo)."""


@cache
def rows(name: str) -> Sequence[Row]:
    return sorted(read(DATA / FILES[name], BadRows()), key=lambda row: row.time_s)


def percent(name: str, policy: str) -> tuple[float, ...]:
    return tuple(100 * hit_ratio(rows(name), policy, tokens) for tokens in CAPACITIES)


@measured
@pytest.mark.parametrize(("name", "policy"), FLAT)
def test_hits_on_public_traces(name: str, policy: str) -> None:
    found = percent(name, policy)
    if (name, policy) in LEAF_RULE:
        assert found == pytest.approx(LEAF_RULE[name, policy], abs=0.1)
        # no orphans: never worse than the flat cache
        assert all(ours > flat - 0.1 for ours, flat in zip(found, FLAT[name, policy], strict=True))
    else:
        assert found == pytest.approx(FLAT[name, policy], abs=0.1 if policy == "lru" else 1.5)


@measured
def test_an_endless_cache_finds_all_there_is() -> None:
    assert 100 * hit_ratio(rows("conversation")) == pytest.approx(35.8, abs=0.05)
    assert 100 * hit_ratio(rows("synthetic")) == pytest.approx(65.1, abs=0.05)
    for policy in names("evictions"):
        if policy != "ttl":
            assert hit_ratio(rows("synthetic"), policy, 1e9) == hit_ratio(rows("synthetic"))


class Another(Lru):
    """The same under another name, so that the object decides."""


@measured
def test_the_default_and_the_object_of_the_same_name_agree() -> None:
    """The order that the cache keeps by itself is that of `Lru`."""
    with allowing_imports(True):
        other = Choice("evictions", f"{__name__}:Another", LruConfig())
        assert hit_ratio(rows("conversation"), other, 3e6) == hit_ratio(rows("conversation"), "lru", 3e6)


# --- the table itself: flat caches ------------------------------------------------------------------------------------


def flat_fifo(blocks: int) -> Callable[[Row], int]:
    held: OrderedDict[int, None] = OrderedDict()

    def serve(row: Row) -> int:
        hits = next((i for i, key in enumerate(row.hashes) if key not in held), len(row.hashes))
        for key in reversed(row.hashes):
            if key not in held:
                if len(held) >= blocks:
                    held.popitem(last=False)
                held[key] = None
        return hits

    return serve


def flat_s3_fifo(blocks: int) -> Callable[[Row], int]:
    small: OrderedDict[int, int] = OrderedDict()
    main: OrderedDict[int, int] = OrderedDict()
    ghost: OrderedDict[int, None] = OrderedDict()
    main_size, ghost_size = blocks - blocks // 10, int(0.9 * blocks)

    def make_room() -> None:
        while len(small) + len(main) >= blocks:
            if len(main) > main_size or not small:
                key, hits = main.popitem(last=False)
                if hits:
                    main[key] = min(hits, 3) - 1
                continue
            key, hits = small.popitem(last=False)
            if hits >= 2:
                main[key] = 0
                continue
            ghost[key] = None
            if len(ghost) > ghost_size:
                ghost.popitem(last=False)

    def serve(row: Row) -> int:
        hits = next((i for i, key in enumerate(row.hashes) if key not in small and key not in main), len(row.hashes))
        for key in reversed(row.hashes):
            queue = small if key in small else main
            if key in queue:
                queue[key] += 1
                continue
            known = key in ghost
            ghost.pop(key, None)
            make_room()
            (main if known else small)[key] = 0
        return hits

    return serve


@measured
@pytest.mark.parametrize("policy", ["fifo", "s3-fifo"])
@pytest.mark.parametrize("name", ["conversation", "synthetic"])
def test_flat_caches_give_the_table(name: str, policy: str) -> None:
    """So the differences above come from the leaf rule and not from the traces or the counting."""
    if (name, policy) not in FLAT:
        pytest.skip("the table has no row for the part of the trace that is public here")
    for tokens, expected in zip(CAPACITIES, FLAT[name, policy], strict=True):
        serve = {"fifo": flat_fifo, "s3-fifo": flat_s3_fifo}[policy](int(tokens) // 512)
        found = sum(min(serve(row) * 512, row.prompt_tokens) for row in rows(name))
        assert 100 * found / sum(row.prompt_tokens for row in rows(name)) == pytest.approx(expected, abs=0.5)


# --- without data -----------------------------------------------------------------------------------------------------


def row(number: int, *hashes: int) -> Row:
    return Row(number, float(number), 10 * len(hashes), 1, hashes, 10)


def test_a_scene_by_hand() -> None:
    """Two blocks fit: the second request finds one of two, the third nothing, the fourth all."""
    trace = [row(0, 1, 2), row(1, 1, 3), row(2, 4, 5), row(3, 4, 5)]
    assert hit_ratio(trace, capacity_tokens=20) == pytest.approx((0 + 10 + 0 + 20) / 80)
    assert hit_ratio([row(0, 1, 2, 3), row(1, 1)], capacity_tokens=20) == 0.0  # longer than the cache: leaves nothing


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="row 3 has no block hashes"):
        hit_ratio([Row(3, 0.0, 5, 5)])
    with pytest.raises(ValueError, match="no requests"):
        hit_ratio([])
