"""Physical lower bounds: what no engine can beat on a given chip, with every efficiency at one."""

from __future__ import annotations

from dataclasses import dataclass

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.llm import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.scenario.schema import Engine, Parallelism


@dataclass(frozen=True, slots=True)
class Floors:
    """Shortest possible times of one replica."""

    prefill_s_per_token: float
    """Arithmetic of one prompt token at peak [s], attention left out."""
    decode_s: float
    """Weights that one sequence's decode step reads, at full bandwidth [s]."""

    def ttft_s(self, prompt_tokens: int) -> float:
        """Shortest time to the first token of a prompt that nothing is cached of [s]."""
        return max(prompt_tokens * self.prefill_s_per_token, self.decode_s)

    @property
    def tpot_s(self) -> float:
        """Shortest time per output token [s]."""
        return self.decode_s


def floors(llm: Llm, accelerator: Accelerator, parallelism: Parallelism, engine: Engine) -> Floors:
    """Lower bounds at peak arithmetic and full bandwidth of all accelerators that one request can use.

    A request uses the tp accelerators of its data-parallel rank at a time, and for its experts those of the whole
    replica; pipeline stages work one after the other.
    """
    dtype = llm.weights_dtype(engine.weights)
    chips = parallelism.tp * (parallelism.dp if llm.is_moe else 1)
    peak = accelerator.peak_flop_per_s[accelerator.arithmetic(dtype)] * chips
    head = llm.embedding_parameters * BYTES_PER_VALUE[ACTIVATIONS]
    read = llm.layer_bytes_per_token(engine.weights) + head
    return Floors(
        prefill_s_per_token=llm.flops_per_token / (peak * parallelism.pp),
        decode_s=read / (accelerator.bandwidth_bytes_per_s * chips),
    )
