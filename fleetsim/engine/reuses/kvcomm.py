"""Messages between agents are computed once: other agents correct their keys and values by what was seen before."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, ClassVar

from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds
from fleetsim.workload.request import Request

_MASK = (1 << 64) - 1


class KvcommConfig(PolicyConfig):
    """Parameters of KVCOMM."""

    first_ratio: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.876
    """Chance that the second agent reuses a message."""
    last_ratio: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.70
    """The same for the last agent and later ones; linear between."""
    agents: Annotated[int, Field(ge=2, le=1000, strict=True)] = 5
    """Agents of a session."""
    match: Seconds = 0.003
    """Time to compare a prompt's messages with the anchors, before it joins the queue; an assumption (a few milliseconds)."""
    anchors: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 20
    """Messages kept for comparison, for each agent."""
    sessions: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 16
    """Sessions whose messages are kept on each rank; of the one that ended a turn the longest ago they go first."""
    segment_tokens: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)] = 512
    """Length of a message for which room is kept."""

    @property
    def reserved_tokens(self) -> int:
        """Room that the kept messages take of the cache of a rank [tokens]."""
        return (self.anchors + self.sessions) * self.agents * self.segment_tokens


class Kvcomm:
    """KVCOMM: keys and values of a message that another agent has computed or written are moved and corrected, not computed again.

    Rule: each message of an agent's prompt that an earlier agent of its session had here is reused by a chance that falls from
    `first_ratio` for the second agent to `last_ratio` for the last. Embeddings are not modelled: the chance stands for the test
    whether the anchors near a message agree. The draw is fixed by the seed, the request and the message, whatever else happens.

    Charged: room for `anchors` messages of each agent and for those of `sessions` sessions, taken off every rank's cache whether
    it is full or not; `match` before a prompt with messages joins the queue. Reused tokens take blocks of the request that nobody
    else can find, and count as `approximate_tokens`; the others of its prompt are computed after them. Moving and correcting is
    not charged beyond `match`, and what an earlier agent reused can be reused again.

    References
    ----------
    H. Ye et al., "KVCOMM: Online Cross-context KV-cache Communication for Efficient LLM-based Multi-agent Systems", NeurIPS 2025,
    arXiv:2510.12872.
    """

    Config: ClassVar = KvcommConfig

    def __init__(self, config: KvcommConfig, seed: int) -> None:
        self.match_s = float(config.match)
        self.first_ratio = config.first_ratio
        self.fall = (config.first_ratio - config.last_ratio) / max(config.agents - 2, 1)
        self.last_ratio = config.last_ratio
        self.agents = config.agents
        self.sessions = config.sessions
        self._seed = _mixed(seed & _MASK)
        self._known: OrderedDict[int, int] = OrderedDict()
        """Tokens of messages that are here, by session."""

    def chance(self, turn: int) -> float:
        """Chance that the agent of a turn (≥ 1) reuses a message."""
        return self.last_ratio if turn >= self.agents - 1 else self.first_ratio - self.fall * (turn - 1)

    def reused(self, request: Request, computed: int) -> int:
        """Tokens of drawn messages behind the first `computed` ones, as far as earlier agents had them here."""
        content = request.content
        known = self._known.get(request.session, 0)
        if not known or content is None:
            return 0
        start = content.runs[0][1]
        known += start
        chance, base = self.chance(request.turn), _mixed(self._seed ^ request.id)
        tokens = 0
        for number, length in enumerate(content.segments):
            end = min(start + length, known)
            if end > computed and _mixed(base + number) < chance * 2.0**64:
                tokens += max(end - max(start, computed), 0)
            start += length
        return tokens

    def ended(self, request: Request) -> None:
        """Its session's messages are here now, its answer too."""
        content = request.content
        if content is None or not content.segments:
            return
        tokens = request.computed - content.runs[0][1]
        known = self._known
        tokens = max(tokens, known.pop(request.session, 0))
        if tokens > 0:
            known[request.session] = tokens
            if len(known) > self.sessions:
                known.popitem(last=False)


def _mixed(value: int) -> int:
    """64 bits in which every bit of `value` counts (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
