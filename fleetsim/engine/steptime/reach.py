"""How far the knowledge of a step-time model reaches, and how far a run went beyond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleetsim.catalog.architecture import Llm
from fleetsim.catalog.calibration import Calibration
from fleetsim.units import show

INFINITY = float("inf")


class Reach:
    """Largest steps that a model knows from measurements, and the largest that it was asked for.

    Parameters
    ----------
    what : str
        What bounds the knowledge, for the text: ``the fit``, ``the table``.
    tokens_max : float
        Most new tokens in a step; infinite if it does not matter or nobody said.
    batch_max : float
        Most decoding sequences.
    context_max : float
        Most tokens of context per decoding sequence, in the mean over the batch.
    """

    def __init__(
        self, what: str, tokens_max: float = INFINITY, batch_max: float = INFINITY, context_max: float = INFINITY
    ) -> None:
        self.what = what
        self.tokens_max, self.batch_max, self.context_max = tokens_max, batch_max, context_max
        self.tokens = self.batch = 0
        self.context = 0.0

    def note(self, tokens: int, batch: int, ctx_tokens: int) -> None:
        """A step was asked for."""
        if tokens > self.tokens:
            self.tokens = tokens
        if batch:
            if batch > self.batch:
                self.batch = batch
            context = ctx_tokens / batch
            if context > self.context:
                self.context = context

    def remarks(self) -> Sequence[str]:
        """One line for each bound that was passed."""
        asked = (
            (self.tokens, self.tokens_max, "tokens per step"),
            (self.batch, self.batch_max, "decoding sequences"),
            (self.context, self.context_max, "tokens of context per decoding sequence"),
        )
        return [
            f"step times are extrapolated: up to {show(value)} {name}, {self.what} ends at {show(most)}"
            for value, most, name in asked
            if value > most
        ]


def beyond_calibration(
    calibration: Calibration, used: Sequence[tuple[str, str]], asked: Mapping[str, int], llm: Llm
) -> Sequence[str]:
    """What a simulation took from constants that were fitted to something else, in a few lines.

    Parameters
    ----------
    used : sequence of (str, str)
        Operator groups in use, with their number formats.
    asked : mapping
        Most tokens (or sequences) per step that an operator group was asked for.
    """
    generic, other, longer = [], [], []
    for group, form in sorted(set(used)):
        name, known, efficiency = calibration.found(group, form)
        if name.startswith("generic"):
            generic.append(f"{group} {form}".removesuffix(" bf16"))
        if known != form:
            other.append(f"{group} {form} (of {known})")
        if asked.get(group, 0) > efficiency.tokens_max > 0:
            longer.append(f"{group} to {show(asked[group])} tokens (fitted to {show(efficiency.tokens_max)})")
    parts = {
        "latent attention": llm.attention == "mla",
        "sparse attention": llm.sparse_top_k > 0,
        "windows": llm.window_layers > 0,
        "recurrence": llm.linear_layers > 0,
    }
    told = {
        "constants of other chips": generic,
        "constants of another number format": other,
        "larger than any measured": longer,
        "priced as plain attention and bytes, no kernels measured": [k for k, v in parts.items() if v],
    }
    return [f"{why}: {', '.join(what)}" for why, what in told.items() if what]
