"""Step time from five numbers per model and chip, and the fit that finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from mypy_extensions import mypyc_attr
from pydantic import Field, model_validator

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.link import Link
from fleetsim.catalog.llm import Llm
from fleetsim.engine.api import Line
from fleetsim.engine.steptime.power import PowerConfig, Supply
from fleetsim.engine.steptime.reach import INFINITY, Reach
from fleetsim.scenario.schema import Engine, Parallelism, Tokens
from fleetsim.units import SecondsOrZero

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class AffineConfig(PowerConfig):
    """Five numbers of one LLM on one kind of replica; they stand in the scenario, so that its digest covers them."""

    step: SecondsOrZero
    """Once per step: reading the weights, launches, host."""
    prompt_token: SecondsOrZero
    """Per new prompt token."""
    prompt_pair: SecondsOrZero
    """Per (query, key) pair of prompt attention: n*c + n*(n+1)/2 for n new tokens after c. A coefficient of n² is half of this."""
    context_token: SecondsOrZero
    """Per token of context of the decoding sequences."""
    sequence: SecondsOrZero
    """Per decoding sequence."""
    tokens_max: Tokens | None = None
    """Most new tokens in a step that the numbers were fitted to; larger steps are reported as extrapolated."""
    batch_max: Tokens | None = None
    """Most decoding sequences that they were fitted to."""
    context_max: Annotated[float, Field(gt=0)] | None = None
    """Longest mean context per decoding sequence that they were fitted to [tokens]."""

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if not self.step and not (self.prompt_token and self.sequence):
            raise ValueError("some steps would take no time: give step, or both prompt_token and sequence")
        return self


@mypyc_attr(allow_interpreted_subclasses=True)
class Affine:
    """Five numbers: a step costs a constant, and each new prompt token, pair, token of context and sequence its own.

    Notes
    -----
    time = step + prompt_token * tokens + prompt_pair * pairs + context_token * context + sequence * batch, over the
    step's prompt chunks (tokens, pairs) and its decoding sequences (context, batch): prompts and decodes share the
    constant, since they share the step's weights and launches. The numbers hold for one LLM on one kind of replica
    (accelerator, parallelism, precision, engine): nothing else about the pool changes the times. With attention
    data-parallel ranks they describe one rank, whatever the others do. Where they come from: `fit`, over a profile.
    """

    Config: ClassVar = AffineConfig

    def __init__(
        self,
        config: AffineConfig,
        llm: Llm,
        accelerator: Accelerator,
        link: Link,
        parallelism: Parallelism,
        engine: Engine,
    ) -> None:
        supply = Supply(config, llm, accelerator, link, parallelism, engine)
        self.idle_w, self.static_w, self.limit_w = supply.idle_w, supply.static_w, supply.limit_w
        self.frontend_s = supply.frontend_s
        self._config, self._supply = config, supply
        self._reach = Reach(
            "the fit", config.tokens_max or INFINITY, config.batch_max or INFINITY, config.context_max or INFINITY
        )

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        config, supply = self._config, self._supply
        self._reach.note(batch, batch, ctx_tokens)
        time_s = config.step + config.sequence * batch
        slope_s, dynamic_w = config.context_token, supply.dynamic_w
        if dynamic_w is not None:
            return Line(time_s, slope_s, dynamic_w * time_s, dynamic_w * slope_s, INFINITY)
        _, _, energy_j, slope_j, ctx_end = supply.operators.decode(batch, ctx_tokens, group_tokens)
        return Line(time_s, slope_s, energy_j, slope_j, ctx_end)

    def mixed(
        self,
        tokens: int,
        sampled: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
        group_tokens: int,
    ) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of a step; see `fleetsim.engine.api.StepTimeModel`."""
        config, supply = self._config, self._supply
        self._reach.note(tokens, decode_batch, decode_ctx_tokens)
        time_s = (
            config.step
            + config.prompt_token * (tokens - decode_batch)
            + config.prompt_pair * prefill_pairs
            + config.context_token * decode_ctx_tokens
            + config.sequence * decode_batch
        )
        if supply.dynamic_w is not None:
            return time_s, supply.dynamic_w * time_s
        _, energy_j = supply.operators.mixed(
            tokens,
            sampled,
            prefill_pairs,
            prefill_ctx_tokens,
            prefill_sequences,
            decode_batch,
            decode_ctx_tokens,
            group_tokens,
        )
        return time_s, energy_j

    def remarks(self) -> Sequence[str]:
        """What a reader of the results should know: steps beyond those that the numbers were fitted to."""
        return self._reach.remarks()


@dataclass(frozen=True)
class Fit:
    """Five numbers, the range of the steps that they were fitted to, and how far off they are."""

    step_s: float
    prompt_token_s: float
    prompt_pair_s: float
    context_token_s: float
    sequence_s: float
    tokens_max: int
    batch_max: int
    context_max: float
    errors: NDArray[np.float64]
    """Predicted / measured - 1, in the order of the rows."""

    def parameters(self) -> dict[str, str | int | float]:
        """The block `step_time` of a scenario that holds these numbers."""
        return {
            "model": "affine",
            "step": f"{self.step_s!r} s",
            "prompt_token": f"{self.prompt_token_s!r} s",
            "prompt_pair": f"{self.prompt_pair_s!r} s",
            "context_token": f"{self.context_token_s!r} s",
            "sequence": f"{self.sequence_s!r} s",
            "tokens_max": self.tokens_max,
            **({"batch_max": self.batch_max, "context_max": self.context_max} if self.batch_max else {}),
        }


def fit(prompt_tokens: ArrayLike, pairs: ArrayLike, batch: ArrayLike, ctx_tokens: ArrayLike, time_s: ArrayLike) -> Fit:
    """Five numbers, none below zero, with the least squares of the relative errors.

    Parameters
    ----------
    prompt_tokens, pairs : array of shape (n,)
        New prompt tokens of each measured step and their (query, key) pairs; 0 in a decode step.
    batch, ctx_tokens : array of shape (n,)
        Decoding sequences of each step and the sum of their contexts; 0 in a step of prompts alone.
    time_s : array of shape (n,)
        Measured durations [s], all above zero.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If the columns differ in length, there are fewer than five rows, or a value cannot be.
    """
    import numpy as np
    from scipy.optimize import nnls

    columns = [np.asarray(c, dtype=np.float64) for c in (prompt_tokens, pairs, ctx_tokens, batch)]
    time = np.asarray(time_s, dtype=np.float64)
    if time.ndim != 1 or any(column.shape != time.shape for column in columns):
        raise ValueError(f"columns of one length are needed, found shapes {[c.shape for c in (*columns, time)]}")
    if len(time) < 5:
        raise ValueError(f"five numbers need five steps at least, found {len(time)}")
    if not (np.all(np.isfinite(time)) and np.all(time > 0)):
        raise ValueError("durations must be finite and above zero")
    if not all(np.all(np.isfinite(column)) and np.all(column >= 0) for column in columns):
        raise ValueError("tokens, pairs, sequences and contexts must be finite and not below zero")
    work = np.stack([np.ones_like(time), *columns], axis=1) / time[:, None]
    scale = np.where(work.max(axis=0) > 0, work.max(axis=0), 1.0)  # columns of one size, or the solver loses digits
    numbers, _ = nnls(work / scale, np.ones_like(time))
    step, token, pair, context, sequence = (numbers / scale).tolist()
    prompt, _, ctx, sequences = columns
    decoding = sequences > 0
    return Fit(
        step,
        token,
        pair,
        context,
        sequence,
        tokens_max=int((prompt + sequences).max()),
        batch_max=int(sequences.max()),
        context_max=float((ctx[decoding] / sequences[decoding]).max()) if decoding.any() else 0.0,
        errors=work @ (numbers / scale) - 1.0,
    )
