"""A budget of keys and values per request, shared out over the layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from fleetsim.plugins import PolicyConfig


class CakeConfig(PolicyConfig):
    """Parameters of CAKE."""

    budget_tokens: Annotated[int, Field(ge=2, le=2**31 - 1, strict=True)] = 1024
    """Tokens that a request keeps per layer, on average over the layers, those of the window included."""
    window_tokens: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)] = 32
    """Newest tokens of a prompt: they are always kept, and their attention scores the others."""

    @model_validator(mode="after")
    def _more_than_the_window(self) -> Self:
        if self.window_tokens >= self.budget_tokens:
            raise ValueError(f"window_tokens {self.window_tokens} leaves nothing of budget_tokens {self.budget_tokens}")
        return self


class Cake:
    """CAKE: a request keeps a fixed budget of keys and values, chosen by what the end of its prompt attends to.

    Rule: once its prompt is computed a request keeps `budget_tokens` per layer on average, and while it decodes each new token
    takes the place of one of them. How the budget is shared out over the layers does not matter here: their sum is the same.

    Charged: keys and values of the whole prompt until it is computed, since later chunks attend to all of it; a prompt that is
    computed in one step is compressed layer by layer, and takes the budget and one whole layer. Attention of the window over the
    whole prompt a second time, with the last chunk. Sorting the scores is not charged, nor that some fused kernels do not give any.
    A budget that differs by layer needs blocks per layer: their rounding is that of one layer of average budget.

    References
    ----------
    Z. Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", ICLR 2025, arXiv:2503.12491.
    """

    Config: ClassVar = CakeConfig

    def __init__(self, config: CakeConfig, layers: int) -> None:
        self.kept_tokens = config.budget_tokens
        self.window_tokens = config.window_tokens
        self.layers = layers

    def prompt_room(self, tokens: int) -> int:
        """The budget in all layers but the one at work, which holds everything."""
        if tokens <= self.kept_tokens:
            return tokens
        return -(-(self.kept_tokens * (self.layers - 1) + tokens) // self.layers)

    def chunk_room(self, tokens: int) -> int:
        """All of it: later chunks attend to it."""
        return tokens

    def chunk_work(self, computed: int, tokens: int, target: int) -> tuple[int, int, int]:
        """Attention to all before; with the last chunk the window's over the whole prompt once more, if it is compressed."""
        upto, window = computed + tokens, self.window_tokens
        pairs = tokens * computed + tokens * (tokens + 1) // 2
        if upto < target or target <= self.kept_tokens:
            return 0, pairs, upto
        return 0, pairs + window * (target - window) + window * (window + 1) // 2, upto + target

    def approximate(self, tokens: int) -> int:  # noqa: ARG002
        """None: a prompt is computed before anything of it is dropped."""
        return 0
