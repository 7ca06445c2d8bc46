"""Step time from kernels that NVIDIA measured, read from the installed package aiconfigurator-core (extra `silicon`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.engine import load_engine
from fleetsim.catalog.link import Link
from fleetsim.catalog.llm import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.catalog.own import calibration_for, engine_profile
from fleetsim.engine.api import Line
from fleetsim.engine.steptime.curves import Curve, Grid, Pieces
from fleetsim.engine.steptime.kernel_tables import DTYPES, FRAMEWORKS, Library, library
from fleetsim.engine.steptime.power import PowerConfig, Supply
from fleetsim.engine.steptime.reach import Reach
from fleetsim.errors import DataError, Finding
from fleetsim.scenario.schema import Engine, Parallelism

VALUE = BYTES_PER_VALUE[ACTIVATIONS]
Work = Callable[[float], float]


class SiliconConfig(PowerConfig):
    """Which measurements to read."""

    framework: Literal["vllm", "sglang", "trtllm"] | None = None
    """Whose kernels; default: those of `engine.kind` (of vllm if it is generic)."""
    version: Annotated[str, Field(max_length=50)] = ""
    """Newest version of the framework to take measurements of; default: the newest there is. Kernels that this version lacks come
    from the newest before it."""
    scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor on the time of kernels, beside the engine's own."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Silicon:
    """Measured kernels of aiconfigurator-core (install `fleetsim[silicon]`), interpolated and added up.

    Notes
    -----
    Matrix products are interpolated log-log over their shape and linearly over tokens; those in fp8 leave out the
    quantising that was timed with them and that engines fuse into the kernel before. Attention is linear over
    sequences and context (prompts: over the square of their length); experts and all-reduces linearly. All are made to
    rise with the work. A step of prompts and decodes takes both attentions' times. Several prompts count as equally
    long; what (query, key) pairs they have beyond that, and those with cached tokens, are added at the rate of the
    longest measured prompt, or the time to read the cached tokens as decodes do if that is more. Norms, rotary
    embedding, activation functions, sampler, collectives other than all-reduce, the engine's host and whatever was not
    measured cost what the roofline's calibration says; energy is the roofline's. Latent attention and recurrent layers
    are refused. Errors against served runs: tests/engine/test_steptime_silicon.py.
    """

    Config: ClassVar = SiliconConfig

    def __init__(
        self,
        config: SiliconConfig,
        llm: Llm,
        accelerator: Accelerator,
        link: Link,
        parallelism: Parallelism,
        engine: Engine,
    ) -> None:
        if llm.attention != "gqa" or llm.linear_layers:
            message = f"step-time model silicon does not know the attention of {llm.name} (latent or recurrent layers)"
            raise DataError(Finding(message, hint="take engine.step_time: roofline"))
        kernels = load_engine(engine.kind).kernels
        framework = config.framework or (kernels if kernels in FRAMEWORKS else "vllm")
        self._tables: Library = library(accelerator, framework, config.version)
        supply = Supply(config, llm, accelerator, link, parallelism, engine)
        self.idle_w, self.static_w, self.limit_w = supply.idle_w, supply.static_w, supply.limit_w
        self.frontend_s = supply.frontend_s
        self._supply = supply
        self._llm, self._accelerator, self._link, self._parallelism = llm, accelerator, link, parallelism
        self._profile = engine_profile(engine)
        self._scale = self._profile.scale * config.scale
        self._calibration = calibration_for(accelerator, engine, "vllm")
        self._coupled = llm.is_moe and parallelism.dp > 1
        self._remarks = [
            f"step times: kernels measured under {self._tables.title}; norms, rotary embedding, activation functions, "
            "sampler and host as the roofline has them"
        ]
        self._products = self._matrix_products(llm.plain_dtype(engine.weights))
        self._head_product = self._product(llm.hidden, llm.vocab / parallelism.tp, ACTIVATIONS)
        self._reduce = self._all_reduce()
        self._experts = self._expert_curve(llm.weights_dtype(engine.weights)) if llm.is_moe else None
        kv_dtype = llm.kv_dtype(engine.kv.dtype)
        self._generation, self._context = self._attention("generation", kv_dtype), self._attention("context", kv_dtype)
        self._prepare_pairs()
        self._base_s: dict[int, float] = {}
        self._head_s: dict[int, float] = {}
        self._expert_s: dict[int, float] = {}
        self._pieces: dict[int, Pieces] = {}
        self._prompt_s: dict[tuple[int, int], float] = {}
        tokens_max = min(curve.points[-1] for curve, _ in self._products)
        # the last point of a grid is no measurement
        batch_max, context_max = self._generation.rows[-2], self._generation.columns[-2]
        self._reach = Reach("what was measured", tokens_max, batch_max, context_max)

    # --- what the engine asks ---------------------------------------------------------------------------------------

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        self._reach.note(batch, batch, ctx_tokens)
        start_s = self._without_attention(batch, batch, group_tokens)
        time_s, slope_s, _, _, ends = self._decode_attention(batch, ctx_tokens)
        supply = self._supply
        time_s += start_s
        if supply.dynamic_w is not None:
            return Line(time_s, slope_s, supply.dynamic_w * time_s, supply.dynamic_w * slope_s, ends)
        _, _, energy_j, slope_j, energy_ends = supply.operators.decode(batch, ctx_tokens, group_tokens)
        return Line(time_s, slope_s, energy_j, slope_j, min(ends, energy_ends))

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
        self._reach.note(tokens, decode_batch, decode_ctx_tokens)
        time_s = self._without_attention(tokens, sampled, group_tokens)
        if decode_batch:
            line = self._decode_attention(decode_batch, decode_ctx_tokens)
            time_s += line[0] + line[1] * decode_ctx_tokens
        if prefill_sequences:
            prompt = tokens - decode_batch
            time_s += self._prompt_attention(prompt, prefill_sequences)
            more = prefill_pairs - prompt * (prompt / prefill_sequences + 1) / 2
            if more > 0:
                cached = prefill_ctx_tokens - prompt
                time_s += self._more_attention(more, cached, prefill_ctx_tokens / prefill_sequences)
        supply = self._supply
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
        """What a reader of the results should know: what was not measured, and steps beyond the measurements."""
        return [*self._remarks, *self._reach.remarks()]

    # --- attention --------------------------------------------------------------------------------------------------

    def _attention(self, phase: str, kv_dtype: str) -> Grid:
        llm, tp = self._llm, self._parallelism.tp
        heads, kv_heads = llm.heads // tp, max(llm.kv_heads // tp, 1)
        if kv_dtype not in DTYPES:
            raise DataError(Finding(f"silicon has no measurements of a cache in {kv_dtype}"))
        found = self._tables.attention(phase, heads, kv_heads, llm.head_dim, kv_dtype)
        if found is None:
            shape = f"{heads}/{kv_heads}/{llm.head_dim}"
            known = [text for text in self._tables.shapes(phase) if text.endswith(f"/{llm.head_dim}")]
            message = f"silicon has no measurements of {phase} attention {shape} (query heads/key-value heads/width)"
            message += f" with a cache in {kv_dtype} under {self._tables.framework}"
            hint = f"take engine.step_time: roofline. Measured: {', '.join(known[:20]) or 'none of that width'}"
            raise DataError(Finding(message, hint=hint))
        return found

    def _decode_attention(self, batch: int, ctx_tokens: int) -> Line:
        """Attention of decodes over all layers; energies are zero."""
        pieces = self._pieces.get(batch)
        if pieces is None:
            pieces = self._pieces[batch] = self._decodes(batch)
        return pieces.at(ctx_tokens)

    def _decodes(self, batch: int) -> Pieces:
        llm, window = self._llm, float(self._llm.sliding_window)
        row = Curve(self._generation.columns, self._generation.row(batch / self._parallelism.pp))
        contexts = sorted({*row.points, *([window] if llm.window_layers else [])})
        times = [
            self._scale * (llm.full_layers * row.at(x) + llm.window_layers * row.at(min(x, window))) for x in contexts
        ]
        return Pieces(batch, contexts, times, [0.0] * len(times))

    def _prompt_attention(self, prompt: int, chunks: int) -> float:
        """Attention of fresh prompts, all equally long, over all layers [s]."""
        time_s = self._prompt_s.get((prompt, chunks))
        if time_s is None:
            llm, length = self._llm, prompt / chunks
            one = self._context.at(chunks, length**2 / self._parallelism.pp)
            seen = min(length, llm.sliding_window) / length
            layers = llm.full_layers + llm.window_layers * seen * (2 - seen)
            time_s = self._prompt_s[prompt, chunks] = one * layers * self._scale
        return time_s

    def _prepare_pairs(self) -> None:
        """Rates of prompts' attention to more than themselves, per pair or per cached token read, of one layer."""
        points, row = self._context.columns, self._context.row(1.0)
        self._pair_s = 2 * (row[-2] - row[-3]) / (points[-2] - points[-3])
        points, row = self._generation.columns, self._generation.row(8.0)
        self._read_s = (row[-2] - row[-3]) / (points[-2] - points[-3]) / 8

    def _more_attention(self, pairs: float, cached: int, length: float) -> float:
        """Attention, over all layers, beyond that of equally long fresh prompts: to cached tokens, or of uneven prompts [s]."""
        llm = self._llm
        layers = float(llm.full_layers)
        if llm.window_layers:
            layers += llm.window_layers * min(1.0, llm.sliding_window / length)
        one = max(pairs * self._pair_s, cached * self._read_s)
        return one * layers * self._scale / self._parallelism.pp

    # --- everything else, once per count ----------------------------------------------------------------------------

    def _without_attention(self, tokens: int, sampled: int, group_tokens: int) -> float:
        base_s = self._base_s.get(tokens)
        if base_s is None:
            base_s = self._base_s[tokens] = self._layers_s(max(tokens, 1))
        head_s = self._head_s.get(sampled)
        if head_s is None:
            head_s = self._head_s[sampled] = self._sampling_s(sampled)
        if not self._coupled:
            return base_s + head_s
        expert_s = self._expert_s.get(group_tokens)
        if expert_s is None:
            expert_s = self._expert_s[group_tokens] = self._coupled_s(max(group_tokens, 1))
        return base_s + head_s + expert_s

    def _layers_s(self, tokens: int) -> float:
        """Matrix products, experts of one rank, what lies between them, all-reduces and host: a step without attention."""
        llm, spread, profile = self._llm, self._parallelism, self._profile
        share = tokens / spread.pp
        kernels_s = sum(layers * curve.at(share) for curve, layers in self._products) + self._elementwise_s(share)
        if llm.is_moe and not self._coupled:
            kernels_s += self._routed_s(share)
        residual = share * llm.hidden * VALUE
        blocks = llm.attention_layers + llm.mlp_layers + llm.moe_layers
        time_s = kernels_s * self._scale
        if spread.tp > 1:
            one = self._reduce.at(residual) if self._reduce else self._link.all_reduce_s(residual, spread.tp)
            time_s += blocks * one
        if spread.pp > 1:
            time_s += spread.pp * self._link.send_s(residual / spread.tp)
        return time_s + profile.host_s + (profile.host_data_parallel_s if spread.dp > 1 else 0.0)

    def _sampling_s(self, sampled: int) -> float:
        """LM head, sampler and their host time."""
        if not sampled:
            return 0.0
        llm, tp = self._llm, self._parallelism.tp
        logits = sampled * llm.vocab * BYTES_PER_VALUE["fp32"]
        kernels_s = self._head_product.at(sampled) + self._priced("sampler", ACTIVATIONS, 0.0, logits)
        gathered_s = self._link.all_gather_s(sampled * llm.vocab * VALUE, tp)
        return kernels_s * self._scale + gathered_s + sampled * self._profile.host_per_sequence_s

    def _coupled_s(self, group_tokens: int) -> float:
        """Experts shared by data-parallel ranks: all tokens are gathered, computed, and their sums scattered back."""
        spread, llm = self._parallelism, self._llm
        share = group_tokens / spread.pp
        moved_s = self._link.all_gather_s(share * llm.hidden * VALUE, spread.dp)
        return self._routed_s(share) * self._scale + 2 * llm.moe_layers * moved_s

    def _matrix_products(self, dtype: str) -> list[tuple[Curve, int]]:
        """Products of one rank over tokens, and in how many layers they are."""
        llm, tp = self._llm, self._parallelism.tp
        queries = llm.query_dim * (2 if llm.attention_gate else 1) / tp
        keys = 2 * llm.head_dim * -(-llm.kv_heads // tp)
        products = [
            (self._product(llm.hidden, queries + keys, dtype), llm.attention_layers),
            (self._product(llm.value_dim / tp, llm.hidden, dtype), llm.attention_layers),
        ]
        for width, layers in ((llm.intermediate, llm.mlp_layers), (llm.shared_intermediate, llm.moe_layers)):
            if width and layers:
                products.append((self._product(llm.hidden, (llm.projections - 1) * width / tp, dtype), layers))
                products.append((self._product(width / tp, llm.hidden, dtype), layers))
        if llm.is_moe:
            products.append((self._product(llm.hidden, llm.experts, ACTIVATIONS), llm.moe_layers))
        return products

    def _product(self, inner: float, outer: float, dtype: str) -> Curve:
        measured = self._tables.product(dtype)
        if measured is not None:
            return measured.curve(outer, inner)
        self._not_measured(f"matrix products in {dtype}")
        size = inner * outer * BYTES_PER_VALUE[dtype]
        return self._roofline_curve(
            "gemm", dtype, lambda m: 2.0 * m * inner * outer, lambda m: size + m * (inner + outer) * VALUE
        )

    def _expert_curve(self, dtype: str) -> Curve:
        """Routed experts of one rank in one layer, over the tokens of all ranks that share them."""
        llm, spread = self._llm, self._parallelism
        chips = spread.tp * spread.dp
        ranks = min(spread.ep, chips)
        found = self._tables.experts(
            dtype, llm.hidden, llm.moe_intermediate, llm.experts_per_token, llm.experts, chips // ranks, ranks
        )
        if found is not None:
            return found
        self._not_measured(f"the experts of {llm.name} in {dtype} (tp {chips // ranks}, ep {ranks})")
        weights = llm.projections * llm.hidden * llm.moe_intermediate / (chips // ranks)
        hit = llm.experts_per_token / llm.experts
        width = BYTES_PER_VALUE[dtype]
        return self._roofline_curve(
            "moe",
            dtype,
            lambda m: 2.0 * m * llm.experts_per_token / ranks * weights,
            lambda m: llm.experts / ranks * (1 - (1 - hit) ** m) * weights * width,
        )

    def _routed_s(self, group_tokens: float) -> float:
        return self._llm.moe_layers * self._experts.at(group_tokens) if self._experts else 0.0

    def _all_reduce(self) -> Curve | None:
        tp = self._parallelism.tp
        own = self._link.name == self._accelerator.link
        found = self._tables.all_reduce(tp) if own and tp > 1 else None
        if tp > 1 and found is None:
            self._not_measured(f"all-reduces of {tp} over {self._link.name}")
        return found

    def _elementwise_s(self, tokens: float) -> float:
        """Norms, rotary embedding with the write to the cache, activation functions and embedding."""
        llm, tp = self._llm, self._parallelism.tp
        heads = (llm.query_dim + llm.kv_values_per_token) / tp
        time_s = 0.0
        for values, layers in (
            (4.0 * llm.hidden, llm.attention_layers),
            (4.0 * llm.hidden, llm.mlp_layers + llm.moe_layers),
            (2.0 * heads, llm.attention_layers * (2 if llm.head_norm else 1)),
            (llm.projections * llm.intermediate / tp, llm.mlp_layers),
            (2.0 * llm.hidden, 1),
        ):
            time_s += layers * self._priced("elementwise", ACTIVATIONS, 0.0, tokens * values * VALUE)
        return time_s

    # --- what was not measured --------------------------------------------------------------------------------------

    def _not_measured(self, what: str) -> None:
        text = f"step times: {what} are not measured, the roofline prices them"
        if text not in self._remarks:
            self._remarks.append(text)

    def _priced(self, group: str, dtype: str, flops: float, size_bytes: float) -> float:
        """Time of one kernel by the roofline's calibration [s]."""
        chip = self._accelerator
        arithmetic = chip.arithmetic(dtype)
        reached = self._calibration.efficiency(group, arithmetic)
        compute = flops / (chip.peak_flop_per_s[arithmetic] * reached.compute_ratio)
        memory = size_bytes / (chip.bandwidth_bytes_per_s * reached.memory_ratio)
        return float(reached.overhead_s + np.linalg.norm([compute, memory], ord=reached.sharpness))

    def _roofline_curve(self, group: str, dtype: str, flops: Work, size_bytes: Work) -> Curve:
        tokens = [float(2**i) for i in range(18)]
        return Curve(tokens, [self._priced(group, dtype, flops(m), size_bytes(m)) for m in tokens])
