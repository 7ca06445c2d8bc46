"""What the tokens of a sequence are, as far as the prefix cache needs to know: keys of its blocks.

Two blocks hold the same tokens after the same tokens if and only if their keys, and all keys before them, are equal. A path of
keys is a tuple of *segments*; a segment is a ``range`` (a run of consecutive tokens of one content stream: no key is ever stored)
or a tuple of explicit hashes from a trace.
"""

from __future__ import annotations

from collections.abc import Sequence

Segment = Sequence[int]
"""Keys of consecutive blocks: a ``range`` or a tuple of int."""
Path = tuple[Segment, ...]
"""Keys of a sequence's first blocks."""

_STREAM = 1 << 36
"""Room for token offsets in one content stream."""
_STREAM_SPACE = 1 << 64
"""Where keys of streams begin: above every 64-bit hash of a trace."""
_PRIVATE_SPACE = 1 << 110
"""Where keys that belong to one request alone begin."""
_HASH_SPACE = 1 << 150
"""Where keys of parts of a trace's blocks begin."""
OPEN_END = _STREAM - 1
"""Length of a run that goes on for as long as the sequence does."""


class Content:
    """Known identity of a sequence's first tokens, shared by requests that have the same.

    Either runs of content streams, ``((stream, tokens), ...)``: the next `tokens` tokens are the first ones of `stream`; the last
    may be `OPEN_END` where the stream also covers the output. Or block hashes of a trace, each naming `hash_tokens` tokens and all
    before them (the last may name a partial block).
    """

    __slots__ = ("_paths", "hash_tokens", "hashes", "open_ended", "runs", "segments")

    def __init__(
        self,
        runs: tuple[tuple[int, int], ...] = (),
        hashes: tuple[int, ...] = (),
        hash_tokens: int = 0,
        segments: tuple[int, ...] = (),
    ) -> None:
        self.runs = runs
        self.hashes = hashes
        self.hash_tokens = hash_tokens
        self.open_ended = bool(runs) and runs[-1][1] == OPEN_END
        """Whether the output's tokens are known too."""
        self.segments = segments
        """Lengths of the messages after the first run, in prompts of agents: others have the same behind other first runs."""
        self._paths: dict[int, Path] | None = None

    def path(self, block_tokens: int) -> Path:
        """Keys of the blocks of `block_tokens` tokens whose content is known.

        Raises
        ------
        ValueError
            If neither of `block_tokens` and the trace's block divides the other.
        """
        paths = self._paths
        if paths is None:
            paths = self._paths = {}
        path = paths.get(block_tokens)
        if path is None:
            path = (
                _hash_path(self.hashes, self.hash_tokens, block_tokens)
                if self.hashes
                else _run_path(self.runs, block_tokens)
            )
            paths[block_tokens] = path
        return path


def blocks_compatible(hash_tokens: int, block_tokens: int) -> bool:
    """Whether a trace's blocks can be expressed in an engine's blocks."""
    return hash_tokens % block_tokens == 0 or block_tokens % hash_tokens == 0


def private_path(request_id: int, first_block: int, blocks: int) -> range:
    """Keys of blocks that no other request can have."""
    start = _PRIVATE_SPACE + request_id * _STREAM + first_block
    return range(start, start + blocks)


def _hash_path(hashes: tuple[int, ...], hash_tokens: int, block_tokens: int) -> Path:
    if hash_tokens == block_tokens:
        return (hashes,)
    if block_tokens % hash_tokens == 0:
        return (hashes[block_tokens // hash_tokens - 1 :: block_tokens // hash_tokens],)
    if hash_tokens % block_tokens:
        raise ValueError(f"the trace's blocks of {hash_tokens} tokens do not fit engine blocks of {block_tokens}")
    per = hash_tokens // block_tokens
    return (tuple(_HASH_SPACE + (h % _STREAM_SPACE) * per + i for h in hashes for i in range(per)),)


def _run_path(runs: tuple[tuple[int, int], ...], block_tokens: int) -> Path:
    """Keys of runs: ranges inside a run, one mixed key for each block that crosses from one run into the next."""
    segments: list[Segment] = []
    mixed: tuple[tuple[int, int], ...] = ()  # parts (stream, tokens) of a block that began in an earlier run
    missing = 0  # tokens that this block still lacks
    for stream, tokens in runs:
        base, offset = _STREAM_SPACE + (stream + 1) * _STREAM, 0
        if missing:
            offset = min(missing, tokens)
            mixed += ((stream, offset),)
            missing -= offset
            if missing:
                continue
            key = -(1 << 64) - (hash(mixed) & 0xFFFFFFFFFFFFFFFF)
            if segments and isinstance(segments[-1], tuple):
                segments[-1] = (*segments[-1], key)  # the cache joins tuples in a row, so a path must have none
            else:
                segments.append((key,))
            mixed = ()
        whole = (tokens - offset) // block_tokens
        if whole:
            segments.append(range(base + offset, base + offset + whole * block_tokens, block_tokens))
        rest = tokens - offset - whole * block_tokens
        if rest:
            mixed, missing = ((stream, rest),), block_tokens - rest
    return tuple(segments)
