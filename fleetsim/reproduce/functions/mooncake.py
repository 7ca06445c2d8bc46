"""Mooncake's conversations, and a stand-in for its trace of tools and agents, which is not among the public files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from fleetsim.reproduce.functions import makes_trace
from fleetsim.workload.describe import opened

BLOCK_TOKENS = 512
_NEW = 1 << 40
"""First id of blocks that no conversation has."""


@makes_trace
def conversations(
    rng: Generator, path: str, requests: int = 1 << 30, dither_s: float = 3.0, max_prompt_tokens: int = 1 << 30
) -> pa.Table:
    """The first conversations at one request per second on average, so that a workload's `rate_scale` is its rate.

    Recorded times are multiples of 3 s: with `dither_s` = 3 each moves on by a random part of that, with 0 they stay.
    Prompts are cut to `max_prompt_tokens`.
    """
    rows = list(islice(opened(path, "mooncake").rows(), requests))
    times = np.array([row.time_s for row in rows]) + rng.random(len(rows)) * dither_s
    lengths = [min(row.prompt_tokens, max_prompt_tokens) for row in rows]
    blocks = [row.hashes[: -(-length // BLOCK_TOKENS)] for row, length in zip(rows, lengths, strict=True)]
    return _table(times, list(zip(lengths, (row.output_tokens for row in rows), blocks, strict=True)))


@makes_trace
def tools_and_agents(rng: Generator, path: str) -> pa.Table:
    """A stand-in for Mooncake's trace of tools and agents, at one request per second on average.

    47 % of the requests are the conversations, 38 % share 12 blocks and 15 % share 5 blocks (the shares and lengths seen in a
    fragment of that trace), at times drawn uniformly.
    """
    chats = [(row.prompt_tokens, row.output_tokens, row.hashes) for row in opened(path, "mooncake").rows()]
    total = round(len(chats) / 0.47)
    deep = round(0.38 * total)
    tails = 20 + np.minimum(4000, rng.lognormal(np.log(250), 1.3, deep)).astype(int)
    answers = np.where(rng.random(deep) < 4 / 7, 3, rng.integers(25, 41, deep))
    requests = chats + [
        _shared(12, i, tail, answer) for i, (tail, answer) in enumerate(zip(tails, answers, strict=True))
    ]
    flat = total - len(requests)
    tails = np.maximum(1, rng.normal(600, 60, flat)).astype(int)
    answers = np.maximum(1, np.rint(rng.normal(21, 3, flat))).astype(int)
    requests += [
        _shared(5, deep + i, tail, answer) for i, (tail, answer) in enumerate(zip(tails, answers, strict=True))
    ]
    order = rng.permutation(len(requests))
    return _table(np.sort(rng.random(len(requests))) * len(requests), [requests[i] for i in order])


def _shared(blocks: int, number: int, tail_tokens: int, answer_tokens: int) -> tuple[int, int, Sequence[int]]:
    """A request that begins with the `blocks` blocks of its group and goes on with its own."""
    own = -(-int(tail_tokens) // BLOCK_TOKENS)
    start = _NEW + (number + 1) * 64
    hashes = [*range(_NEW + blocks * 1024 * 1024, _NEW + blocks * 1024 * 1024 + blocks), *range(start, start + own)]
    return blocks * BLOCK_TOKENS + int(tail_tokens), int(answer_tokens), hashes


def _table(times_s: np.ndarray, requests: Sequence[tuple[int, int, Sequence[int]]]) -> pa.Table:
    order = np.argsort(times_s, kind="stable")
    times = times_s[order] - times_s.min()
    times *= len(times) / times[-1]
    rows = [requests[i] for i in order]
    return pa.table(
        {
            "arrival_s": times,
            "prompt_tokens": [row[0] for row in rows],
            "output_tokens": [row[1] for row in rows],
            "block_hashes": pa.array([list(row[2]) for row in rows], pa.list_(pa.int64())),
            "block_size": [BLOCK_TOKENS] * len(rows),
        }
    )
