"""A budget of keys and values that holds while a prompt is computed, block by block."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.units import Bytes


class EpicacheConfig(PolicyConfig):
    """Parameters of EpiCache."""

    budget_tokens: Annotated[int, Field(ge=2, le=2**31 - 1, strict=True)] = 8192
    """Tokens that a request keeps after each block of its prompt, per layer on average."""
    block_tokens: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)] = 2048
    """Tokens of a prompt that are computed before it is cut back to the budget."""
    medoid_tokens: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 256
    """Tokens of the episode's typical utterances, computed after each block to score it; an assumption."""
    charged_episodes: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    """Episodes whose caches are computed with a prompt, a pass over all of it for each. 1 is that of its own question: the others
    are built in the background for nothing. The paper's conversations have 4 episodes."""
    kept_episodes: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    """Caches of each conversation that stay in host memory between its turns, one per episode (the paper's have 4). 0: none."""
    accuracy: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Chance that the episode found nearest to a turn is the right one: an assumption, since no text is embedded here."""
    host_capacity: Bytes = 64.0 * 2**30
    """Room in host memory for kept caches, per replica; conversations used longest ago go first."""


class Epicache:
    """EpiCache: a long prompt is cut back to a budget block by block while it is computed, by what its episode attends to.

    Rule: after each `block_tokens` of a prompt the request keeps `budget_tokens` of all before; the next block attends to these
    and to itself. The typical utterances of the episode that is asked about follow each block and score it. While the request
    decodes each new token takes the place of one that it holds.

    Charged: room for the budget and one block; attention within that bound; `medoid_tokens` computed after each block that is cut
    back; all of it times `charged_episodes`, whose passes follow each other in the same room. Prompt tokens behind a cut count as
    `approximate_tokens`, as decoded ones do. An engine's chunk that spans several blocks computes them one after another.

    With `kept_episodes`, caches outlive their turn: when it ends, its cache is copied to the host (the first time those of all
    episodes); the next turn of the same conversation on the same replica loads one cache, of the episode that is found nearest,
    when it is admitted, and computes only what is new. Copies take their bytes over the host link, and share it; room on the host
    is counted. With another chance than `accuracy` the episode is a wrong one, and all that its cache stands for counts as
    approximate too. Nobody else ever finds these caches: they are no prefix of other requests. Without it each turn computes its
    prompt again.

    Left out: embedding and clustering the conversation; budgets that differ by layer (their sum is the same); keys and values of
    the typical utterances, which are dropped at once; bringing the caches of other episodes up to date at later turns. A request
    longer than the KV cache is refused, although its budget might fit. The step-time model `silicon` takes what a step computes
    of a prompt for one whole text, so that chunks longer than a block, and several episodes, cost more there.

    References
    ----------
    M. Kim et al., "EpiCache: Episodic KV Cache Management for Long Conversational Question Answering", 2025, arXiv:2509.17396.
    """

    Config: ClassVar = EpicacheConfig

    def __init__(self, config: EpicacheConfig, layers: int) -> None:  # noqa: ARG002
        self.kept_tokens = config.budget_tokens
        self.block_tokens = config.block_tokens
        self.medoid_tokens = config.medoid_tokens
        self.passes = config.charged_episodes

    def prompt_room(self, tokens: int) -> int:
        """The budget and a block."""
        return min(tokens, self.kept_tokens + self.block_tokens)

    def chunk_room(self, tokens: int) -> int:
        """The budget and a block: what was dropped is not attended to any more."""
        return min(tokens, self.kept_tokens + self.block_tokens)

    def chunk_work(self, computed: int, tokens: int, target: int) -> tuple[int, int, int]:
        """Each block's attention to what is kept and to itself, and the typical utterances' to both where some of it is dropped."""
        block, kept, medoid = self.block_tokens, self.kept_tokens, self.medoid_tokens
        end = computed + tokens
        scoring = pairs = keys = 0
        while computed < end:
            first = computed - computed % block
            upto = min(end, first + block)
            before = min(first, kept)
            new, held = upto - computed, before + upto - first
            pairs += new * (before + computed - first) + new * (new + 1) // 2
            keys += held
            if held > kept and (upto == first + block or upto == target):
                scoring += medoid
                pairs += medoid * held + medoid * (medoid + 1) // 2
            computed = upto
        return scoring + (self.passes - 1) * (tokens + scoring), self.passes * pairs, self.passes * keys

    def approximate(self, tokens: int) -> int:
        """Those behind the first block that did not fit."""
        return max(0, tokens - (self.kept_tokens // self.block_tokens + 1) * self.block_tokens)
