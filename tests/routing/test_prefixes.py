"""What a gateway knows of a prompt's content."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import PolicyError
from fleetsim.experiment.check import check_workload
from fleetsim.routing.api import RequestView
from fleetsim.scenario.load import load_scenario
from fleetsim.workload.prefixes import OPEN_END, Content
from fleetsim.workload.request import Request


def keys(number: int, prompt_tokens: int, content: Content | None, block_tokens: int = 16) -> list[int]:
    view = RequestView(Request(number, 0.0, prompt_tokens, 1000, content))
    return list(chain.from_iterable(view.prefix(block_tokens)))


@given(
    shared=st.integers(0, 100),
    prompts=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    block_tokens=st.integers(1, 40),
)
def test_prompts_have_equal_keys_as_far_as_their_tokens_are_equal(
    shared: int, prompts: tuple[int, int], block_tokens: int
) -> None:
    """Two prompts behind one shared run: equal whole blocks, and none after the run ends."""
    content = Content(((4, shared),)) if shared else None
    first, second = (keys(i, tokens, content, block_tokens) for i, tokens in enumerate(prompts))
    assert [len(first), len(second)] == [tokens // block_tokens for tokens in prompts]
    equal = min(shared, *prompts) // block_tokens
    assert [a == b for a, b in zip(first, second, strict=False)] == [
        i < equal for i in range(min(len(first), len(second)))
    ]


def test_a_later_turn_begins_with_the_earlier_one() -> None:
    content = Content(((2, 100), (9, OPEN_END)))
    early, late = keys(1, 250, content), keys(2, 900, content)
    assert late[: len(early)] == early
    assert (len(early), len(late)) == (15, 56)


def test_hashes_of_a_trace_are_cut_into_blocks() -> None:
    """Blocks of 512 tokens hold 32 of 16; the partial last one of the longer prompt is its own."""
    first, second = (
        keys(1, 1024, Content(hashes=(7, 8), hash_tokens=512)),
        keys(2, 1040, Content(hashes=(7, 9, 3), hash_tokens=512)),
    )
    assert (len(first), len(second)) == (64, 65)
    assert first[:32] == second[:32]
    assert not set(first[32:]) & set(second[32:])


def test_blocks_that_do_not_fit_a_trace_are_refused_with_both_sizes() -> None:
    with pytest.raises(PolicyError, match=r"blocks of 48 tokens.*blocks of 512 tokens"):
        keys(1, 1024, Content(hashes=(7, 8), hash_tokens=512), 48)


def replay(folder: Path, router: Any) -> Path:
    """A scenario that replays 300 prompts, each on one of 6 documents of 4 blocks that the trace names by hashes."""
    rows = [
        {
            "timestamp": 100 * i,
            "input_length": 5 * 512,
            "output_length": 20,
            "hash_ids": [*range(4 * (i * i % 11), 4 * (i * i % 11) + 4), 1000 + i],
        }
        for i in range(300)
    ]
    (folder / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scenario = {
        "schema": 1,
        "name": "replay",
        "workload": {"kind": "trace", "format": "mooncake", "path": "trace.jsonl"},
        "gateway": {"router": router},
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "replicas": 3}],
    }
    path = folder / "replay.yaml"
    path.write_text(json.dumps(scenario))
    return path


@pytest.mark.parametrize("router", ["cache-aware", "prefix-score", "consistent-hash"])
def test_documents_of_a_trace_stay_on_one_replica(router: str, tmp_path: Path) -> None:
    """6 documents (squares modulo 11) of 4 blocks: all but the first prompt of each hits 4/5 of their tokens."""
    result = fleetsim.run(replay(tmp_path, router), tmp_path / "out", check=True)
    assert result.summary["prefix_hit_ratio"] == pytest.approx(0.8 * 294 / 300, abs=0.02)


def test_block_sizes_of_routers_are_compared_with_the_trace(tmp_path: Path) -> None:
    """Also of a router inside another one, before anything runs."""
    for router, found in (
        ({"policy": "cache-aware", "block_tokens": 64}, []),
        ({"policy": "cache-aware", "block_tokens": 48}, ["gateway.router.block_tokens"]),
        (
            {"policy": "sticky", "inner": {"policy": "prefix-score", "block_tokens": 100}},
            ["gateway.router.inner.block_tokens"],
        ),
    ):
        findings = check_workload(load_scenario(replay(tmp_path, router)))
        assert [finding.path for finding in findings] == found
