"""What no engine can beat: the throughput at which an accelerator does nothing but the products that its tokens need."""

from __future__ import annotations

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.llm import Llm
from fleetsim.catalog.own import calibration_for
from fleetsim.scenario.schema import Engine


def optimal_tokens_per_s(llm: Llm, accelerator: Accelerator, engine: Engine, measured: bool = False) -> float:
    """Most tokens, of prompts and answers, that one accelerator can compute per second: peak / (2 x active parameters).

    Large batches make serving a matter of arithmetic, and then this is its limit whatever the engine does; attention, memory
    and collectives only take from it. Tokens found in a prefix cache are not computed and do not count.

    Parameters
    ----------
    llm : Llm
        Its active parameters, embeddings included, as publishers count them.
    accelerator : Accelerator
        Gives the dense peak of the arithmetic that the weights' format is computed in [FLOP/s].
    engine : Engine
        Gives the format of the weights, and whose kernels are measured.
    measured : bool
        Take the peak that measured matrix products reach on the accelerator (``gemm.compute_ratio`` of its calibration) in
        place of the data sheet's.

    Returns
    -------
    float
        Tokens per second and accelerator.

    References
    ----------
    Zhu et al., NanoFlow: Towards Optimal Large Language Model Serving Throughput, arXiv 2408.12757. Its 1,857 tokens/s for
    Llama 2 70B on the A100 are 260 TFLOP/s, the most that CUTLASS reached there, over 2 x 70 billion parameters.
    """
    arithmetic = accelerator.arithmetic(llm.weights_dtype(engine.weights))
    peak = accelerator.peak_flop_per_s[arithmetic]
    if measured:
        peak *= calibration_for(accelerator, engine).efficiency("gemm", arithmetic).compute_ratio
    return peak / (2.0 * llm.parameters_active)
