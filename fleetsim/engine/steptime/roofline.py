"""Step time and energy from a roofline per operator: arithmetic, bytes, launch overheads, collectives and host.

Everything that depends on the number of tokens in a step is computed once per number and kept in a list, so that a call
in the simulation's inner loop is a few look-ups and multiplications.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import combinations
from math import ceil
from typing import Annotated, ClassVar, Optional, TypeVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.architecture import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.catalog.link import Link
from fleetsim.catalog.own import calibration_for, engine_profile
from fleetsim.engine.api import OPERATORS, Line, Operators
from fleetsim.engine.steptime.operators import Chip, Layers, Work
from fleetsim.engine.steptime.reach import beyond_calibration
from fleetsim.plugins import PolicyConfig
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.units import SecondsOrZero

T = TypeVar("T")

INFINITY = float("inf")
VALUE = BYTES_PER_VALUE[ACTIVATIONS]
GRAPH_STEP = 8
"""Batch sizes above 4 that engines capture graphs for are multiples of this."""


class RooflineConfig(PolicyConfig):
    """Options of the roofline."""

    scale: "Annotated[float, Field(gt=0, le=100)]" = 1.0
    """Factor on the accelerators' time, beside the engine's own."""
    prompt_scale: "Annotated[float, Field(gt=0, le=100)]" = 1.0
    """Factor on the accelerators' time in steps that have a prompt, such as for an engine older than its measured kernels."""
    expert_spread: "Annotated[float, Field(ge=0, le=3)]" = 0.0
    """Spread of how often the router picks each expert: standard deviation of the logarithm of their popularities. A measured
    run over conversations is met best at 0, measured runs over random tokens (four models of 117B to 1T) near 1."""
    fuse_all_reduce: "Annotated[bool, Field(strict=True)]" = False
    """Whether each norm is part of the all-reduce before it (tensor parallelism only): no launch and no bytes of its own."""
    marlin: "Annotated[bool, Field(strict=True)]" = False
    """Whether experts in mxfp4 run on Marlin kernels (vLLM: VLLM_MXFP4_USE_MARLIN), where the chip has no 4-bit units."""
    graph_padding: "Annotated[bool, Field(strict=True)]" = False
    """Whether decode steps compute the next larger batch that a graph was captured for: 1, 2, 4 and multiples of 8."""
    async_scheduling: "Annotated[bool, Field(strict=True)]" = False
    """Whether the host prepares the next step while the accelerators work, so that little of its time shows."""
    host: "Optional[SecondsOrZero]" = None
    """Time per step in which the accelerators wait for the host; default: the engine's."""
    host_per_sequence: "Optional[SecondsOrZero]" = None
    """Added to it per sequence that gets a token, such as when one process streams all answers; default: the engine's."""
    overlap: "Annotated[Optional[float], Field(ge=0, le=1)]" = None
    """Share of what can run side by side (arithmetic, memory, network) that does, as in NanoFlow; 0 one by one, 1 until the
    longest of them ends. Default: the engine's."""
    nano_batches: "Annotated[Optional[int], Field(ge=1, le=16, strict=True)]" = None
    """Parts into which the tokens of a step are cut so that their kernels can overlap: weights are read, and kernels and
    collectives started, that many times. Default: the engine's."""
    draft_tokens: "Annotated[int, Field(ge=0, le=16, strict=True)]" = 0
    """Speculative decoding: tokens that are proposed per step and verified together."""
    acceptance: "Annotated[float, Field(ge=0, le=1)]" = 0.7
    """Speculative decoding: chance that a proposed token is accepted where those before it were."""
    draft_cost: "Annotated[float, Field(ge=0, le=1)]" = 0.05
    """Speculative decoding: time to propose one token, as a share of a step without proposals."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Roofline:
    """Roofline per operator group, with calibrated efficiencies and the engine's host overheads.

    Notes
    -----
    Each kernel lasts ``overhead + passes + (c^p + m^p)^(1/p)``: c its arithmetic, m its bytes, at the efficiencies of
    ``models/calibration``. Experts read are those expected of independent routing by their popularities; expert-parallel
    steps wait for the busiest rank. Decode attention is linear in the context sum; layers with a sliding window of W
    tokens read ``min(context sum, batch x W)`` (exact unless contexts lie on both sides of W), so that a line ends where
    the mean context reaches W. In a step that also has a prompt, a decode's one query fills a whole tile of the prompt
    kernel, so that it takes more arithmetic. Pipeline stages work on as many micro-batches as there are sequences, at
    most one per stage. With overlap, a step lasts ``sum - overlap x (sum - longest)``: the sum is that of all kernels and
    collectives, the longest that of the products, of attention, of the collectives, of all arithmetic and of all bytes, since
    two kernels that wait for the same thing gain nothing side by side. Speculative decoding is a mean: a step's time is
    shared by the tokens that it is expected to yield. Errors against measured kernels and served runs: docs/accuracy.md.

    References
    ----------
    S. Williams et al., "Roofline: an insightful visual performance model for multicore architectures", CACM 2009; overlap of
    nano-batches: K. Zhu et al., "NanoFlow: Towards Optimal Large Language Model Serving Throughput", arXiv:2408.12757;
    speculative decoding: Y. Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023.
    """

    Config: ClassVar = RooflineConfig

    def __init__(
        self,
        config: RooflineConfig,
        llm: Llm,
        accelerator: Accelerator,
        link: Link,
        parallelism: Parallelism,
        engine: Engine,
    ) -> None:
        self.llm, self.parallelism, self.config = llm, parallelism, config
        profile = engine_profile(engine)
        chips = parallelism.accelerators
        self.idle_w = accelerator.power.idle_w * chips
        self.static_w = accelerator.power.static_w * chips
        self.limit_w = accelerator.power.limit_w * chips
        power, rank = accelerator.power, parallelism.tp * parallelism.pp
        self._active_w, self._occupancy_w = power.active_w * rank, power.occupancy_w * rank
        self._half_occupied = power.half_occupied_tokens
        self.frontend_s = profile.frontend_s
        host_s, host_sequence_s = config.host, config.host_per_sequence
        if host_s is None:
            host_s = profile.host_async_s if config.async_scheduling else profile.host_s
        self._host_s = host_s
        if parallelism.dp > 1:
            self._host_s += profile.host_data_parallel_s
        self._host_sequence_s = profile.host_per_sequence_s if host_sequence_s is None else host_sequence_s
        self._prompt_scale = config.prompt_scale
        self._overlap = profile.overlap if config.overlap is None else config.overlap
        self._parts = profile.nano_batches if config.nano_batches is None else config.nano_batches
        self._eager_s = profile.eager_layer_s * llm.layers
        self._launch_s = profile.eager_layer_s / len(OPERATORS)
        self._graph_tokens = profile.graph_tokens
        calibration = calibration_for(accelerator, engine)
        scale = profile.scale * config.scale
        if self._parts > 1:
            scale *= profile.nano_scale
        self._chip = Chip(accelerator, calibration, scale, profile.fuses_quantisation)
        self._layers = Layers(llm, self._chip, link, parallelism, engine, profile, config)
        self._coupled = llm.is_moe and parallelism.dp > 1
        self._stages = parallelism.pp
        self._base: list[Work | None] = []
        self._head: list[Work | None] = []
        self._experts: list[Work | None] = []
        self._staged: dict[tuple[int, int], Work] = {}
        self._lines: list[Line | None] = []
        self._bent_lines: dict[tuple[int, int], list[Line]] = {}
        self._queries = 1 + config.draft_tokens
        self._yield = _expected_tokens(config.draft_tokens, config.acceptance)
        self._draft = config.draft_tokens * config.draft_cost
        self._window = llm.sliding_window if llm.window_layers else 0
        self._top_k = llm.sparse_top_k
        self._straight = not (self._window or self._top_k or self._overlap or self._coupled)
        self._plain = self._straight and self._stages == 1 and not config.draft_tokens and not config.graph_padding
        self._alike = not (self._window or self._top_k) and self._stages == 1
        self._padding = config.graph_padding
        self._kv_dtype = llm.kv_dtype(engine.kv.dtype)
        self._prepare_attention(self._kv_dtype)

    # --- what the engine asks ---------------------------------------------------------------------------------------

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        if self._straight:
            try:
                line = self._lines[batch]
            except IndexError:
                line = None
            if line is None:
                line = self._line(batch, batch, 0, INFINITY)
                _keep(self._lines, batch, line)
            return line
        key = (batch, group_tokens)
        lines = self._bent_lines.get(key)
        if lines is None:
            lines = self._bent_lines[key] = self._bends(batch, group_tokens)
        for line in lines:
            if ctx_tokens < line.ctx_end:
                return line
        return lines[-1]

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
        if self._plain:
            return self._step(
                tokens,
                sampled,
                prefill_pairs,
                prefill_ctx_tokens,
                prefill_sequences,
                decode_batch,
                decode_ctx_tokens,
                0,
            )
        if self._queries == 1 or not decode_batch:
            return self._step(
                tokens,
                sampled,
                prefill_pairs,
                prefill_ctx_tokens,
                prefill_sequences,
                decode_batch,
                decode_ctx_tokens,
                group_tokens,
            )
        return self._speculative(
            tokens,
            sampled,
            prefill_pairs,
            prefill_ctx_tokens,
            prefill_sequences,
            decode_batch,
            decode_ctx_tokens,
            group_tokens,
        )

    def prefill_operators(
        self, tokens: int, sampled: int, prefill_pairs: int, prefill_ctx_tokens: int, prefill_sequences: int
    ) -> Operators:
        """What a step of prompt chunks only is made of; see `fleetsim.engine.api.StepTimeModel`.

        Attention is that of all prompts and their earlier chunks: on a long prompt it is most of a layer. Where kernels overlap or
        the host's launches take longer than they do, all operators last shorter or longer alike. Pipeline stages stop together.
        """
        whole_s, _ = self.mixed(tokens, sampled, prefill_pairs, prefill_ctx_tokens, prefill_sequences, 0, 0, tokens)
        experts_s = 0.0
        if self._coupled:
            coupled = self._experts[tokens] or self._fill_experts(tokens)
            experts_s = coupled[0] + coupled[1]
        elif self.llm.is_moe:
            experts_s = self._layers.experts(tokens).time_s
        (qkv, attn, out, up, down), embedding_s = self._layers.operators(tokens, experts_s)
        attention_s, _ = self._attention(tokens, prefill_pairs, prefill_ctx_tokens, prefill_sequences, 0, 0)
        layers_s = qkv + attn + attention_s + out + up + down
        head = self._head[sampled] or self._fill_head(sampled)
        before_s = self._host_s + sampled * self._host_sequence_s + self._prompt_scale * embedding_s
        after_s = self._prompt_scale * head[0] + head[1]
        beside = min(before_s + after_s, whole_s)
        scale = (whole_s - beside) / (layers_s * whole_s)
        before = before_s / (before_s + after_s) * beside / whole_s if beside else 0.0
        return Operators(
            before,
            (qkv * scale, (attn + attention_s) * scale, out * scale, up * scale, down * scale),
            beside / whole_s - before,
            self.llm.layers,
            max(self._launch_s, self._chip.calibration.efficiency("gemm", ACTIVATIONS).overhead_s * self._chip.scale),
        )

    def remarks(self) -> Sequence[str]:
        """What of the steps asked for so far is beyond the measurements that the constants were fitted to."""
        used = [*self._layers.formats(), *((group, ACTIVATIONS) for group in ("gemm", "elementwise", "sampler"))]
        if self.llm.attention_layers:
            used += [(group, self._kv_dtype) for group in ("prefill_attention", "decode_attention")]
        tokens = max([len(self._base) - 1, *(count // stages for count, stages in self._staged)])
        asked = {
            "gemm": tokens,
            "moe": max(tokens, len(self._experts) - 1),
            "prefill_attention": tokens,
            "decode_attention": max([len(self._lines) - 1, *(batch for batch, _ in self._bent_lines)]),
        }
        return beyond_calibration(self._chip.calibration, used, asked, self.llm)

    # --- a step -----------------------------------------------------------------------------------------------------

    def _step(
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
        """Duration and dynamic energy of a step without speculation."""
        compute, network, energy = self._beside(
            tokens, sampled, prefill_sequences, decode_batch + prefill_sequences, group_tokens
        )
        if self._alike:
            attention, attention_j = self._attention_over(
                self._full_layers,
                1.0,
                tokens - decode_batch,
                prefill_pairs,
                prefill_ctx_tokens,
                prefill_sequences,
                decode_batch,
                decode_ctx_tokens,
            )
        else:
            attention, attention_j = self._attention(
                tokens, prefill_pairs, prefill_ctx_tokens, prefill_sequences, decode_batch, decode_ctx_tokens
            )
        if prefill_sequences:
            compute *= self._prompt_scale
            attention *= self._prompt_scale
        time = compute + network + self._host_s + sampled * self._host_sequence_s
        if self._overlap:
            arithmetic_s, bytes_s = self._roofs(
                tokens,
                sampled,
                prefill_pairs,
                prefill_ctx_tokens,
                prefill_sequences,
                decode_batch,
                decode_ctx_tokens,
                group_tokens,
            )
            longest = max(compute, network, attention, arithmetic_s, bytes_s)
            attention -= self._overlap * (compute + network + attention - longest)
        energy += self._active_w * (compute + network + attention)
        time += attention
        if prefill_sequences and time < self._eager_s and tokens > self._graph_tokens:
            time = self._eager_s
        energy += self._occupancy_w * time * tokens / (tokens + self._half_occupied)
        return time, energy + attention_j

    def _beside(
        self, tokens: int, sampled: int, prefill_sequences: int, sequences: int, group_tokens: int
    ) -> tuple[float, float, float]:
        """Time of computing, time of collectives and dynamic energy of a step beside attention."""
        if self._stages > 1:
            base = self._staged_base(tokens, sequences)
        else:
            computed = tokens
            if self._padding and not prefill_sequences:
                computed = _captured(tokens)
            try:
                base = self._base[computed] or self._fill_base(computed)
            except IndexError:
                base = self._fill_base(computed)
        try:
            head = self._head[sampled] or self._fill_head(sampled)
        except IndexError:
            head = self._fill_head(sampled)
        if not self._coupled:
            return base[0] + head[0], base[1] + head[1], base[2] + head[2]
        try:
            experts = self._experts[group_tokens] or self._fill_experts(group_tokens)
        except IndexError:
            experts = self._fill_experts(group_tokens)
        return base[0] + head[0] + experts[0], base[1] + head[1] + experts[1], base[2] + head[2] + experts[2]

    def _roofs(
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
        """Time of all arithmetic and of all bytes of a step, each alone: what no overlap can hide."""
        sequences = decode_batch + prefill_sequences
        works = [self._head[sampled] or self._fill_head(sampled)]
        if self._stages > 1:
            works.append(self._staged_base(tokens, sequences))
        else:
            computed = _captured(tokens) if self._padding and not prefill_sequences else tokens
            works.append(self._base[computed] or self._fill_base(computed))
        if self._coupled:
            works.append(self._experts[group_tokens] or self._fill_experts(group_tokens))
        arithmetic_s = sum([work.arithmetic_s for work in works])
        bytes_s = sum([work.bytes_s for work in works])
        share = 1.0
        if self._stages > 1:
            share = self._stages / min(self._stages, max(sequences, 1))
        fresh = tokens - decode_batch
        for layers, reach in ((self._full_layers, self._top_k), (self._window_layers, self._window)):
            pairs, prefill_ctx, decode_ctx = prefill_pairs, prefill_ctx_tokens, decode_ctx_tokens
            if reach:
                pairs, decode_ctx = min(pairs, fresh * reach), min(decode_ctx, decode_batch * reach)
                if reach == self._window:
                    prefill_ctx = min(prefill_ctx, fresh + prefill_sequences * reach)
            if prefill_sequences:
                arithmetic_s += layers * share * (pairs * self._pair_s + decode_ctx * self._padded_ctx_s)
                moved = prefill_ctx * self._prefill_ctx_s + fresh * self._prefill_token_s
                bytes_s += layers * share * (moved + decode_ctx * self._mixed_ctx_s)
            else:
                bytes_s += layers * share * decode_ctx * self._ctx_s
        arithmetic_s += share * (prefill_pairs + decode_ctx_tokens) * self._index_s
        if prefill_sequences:
            return arithmetic_s * self._prompt_scale, bytes_s * self._prompt_scale
        return arithmetic_s, bytes_s

    def _attention(
        self,
        tokens: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
    ) -> tuple[float, float]:
        """Duration and dynamic energy of attention over all layers."""
        share = 1.0
        if self._stages > 1:
            share = self._stages / min(self._stages, max(decode_batch + prefill_sequences, 1))
        fresh = tokens - decode_batch
        time, energy = self._attention_over(
            self._full_layers,
            share,
            fresh,
            prefill_pairs,
            prefill_ctx_tokens,
            prefill_sequences,
            decode_batch,
            decode_ctx_tokens,
        )
        window = self._window
        if window:
            more, more_j = self._attention_over(
                self._window_layers,
                share,
                fresh,
                min(prefill_pairs, fresh * window),
                min(prefill_ctx_tokens, fresh + prefill_sequences * window),
                prefill_sequences,
                decode_batch,
                min(decode_ctx_tokens, decode_batch * window),
            )
            time += more
            energy += more_j
        if self._top_k:
            time += share * (prefill_pairs + decode_ctx_tokens) * self._index_s
            energy += (prefill_pairs + decode_ctx_tokens) * self._index_j
        return time, energy

    def _attention_over(
        self,
        layers: float,
        share: float,
        fresh: int,
        pairs: int,
        prefill_ctx: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx: int,
    ) -> tuple[float, float]:
        """Duration and dynamic energy of attention in `layers` layers of the same reach.

        A pipeline with room for `share` times as many micro-batches works that much longer on each; its kernels start as often.
        """
        if self._top_k:
            pairs = min(pairs, fresh * self._top_k)
            decode_ctx = min(decode_ctx, decode_batch * self._top_k)
        energy = decode_ctx * self._ctx_j
        if not prefill_sequences:
            if not decode_batch:
                return 0.0, 0.0
            starts = min(self._parts, decode_batch) * self._decode_start_s
            time = starts + share * (decode_batch * self._decode_sequence_s + decode_ctx * self._ctx_s)
            return layers * time, layers * energy
        arithmetic = share * (pairs * self._pair_s + decode_ctx * self._padded_ctx_s)
        memory = prefill_ctx * self._prefill_ctx_s + fresh * self._prefill_token_s + decode_ctx * self._mixed_ctx_s
        memory *= share
        serial = prefill_ctx / prefill_sequences
        if decode_batch and decode_ctx > serial * decode_batch:
            serial = decode_ctx / decode_batch
        serial *= self._serial_s
        p = self._sharpness
        time = min(self._parts, prefill_sequences + decode_batch) * self._prefill_start_s
        time += share * decode_batch * self._mixed_sequence_s
        time += (arithmetic**p + memory**p + serial**p) ** self._inverse_sharpness
        energy += pairs * self._pair_j + prefill_ctx * self._prefill_ctx_j
        return layers * time, layers * energy

    def _speculative(
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
        """Prompts at the price that they add, decodes at that of a verifying step over the tokens that it yields.

        The verifying step computes all proposed tokens of the batch while it reads each cached token once. Over many steps
        the sum is that of the real ones; a single step with a prompt can last less with one more decode beside it.
        """
        more = decode_batch * self.config.draft_tokens
        decodes = decode_batch * self._queries
        fresh = tokens - decode_batch
        group = self._verified(decode_batch, fresh, group_tokens)
        verify = self._step(decodes, decodes, 0, 0, 0, decode_batch, decode_ctx_tokens, group - fresh)
        plain = self._step(decode_batch, decode_batch, 0, 0, 0, decode_batch, decode_ctx_tokens, group_tokens - fresh)
        time = (verify[0] + self._draft * plain[0]) / self._yield
        energy = (verify[1] + self._draft * plain[1]) / self._yield
        if prefill_sequences:
            added_s = added_j = 0.0
            # decodes can hide behind prompts, but no more of them than at no context: more context never shortens a step
            for ctx in (decode_ctx_tokens, 0):
                whole = self._step(
                    tokens + more,
                    sampled + more,
                    prefill_pairs,
                    prefill_ctx_tokens,
                    prefill_sequences,
                    decode_batch,
                    ctx,
                    group,
                )
                alone = self._step(decodes, decodes, 0, 0, 0, decode_batch, ctx, group - fresh)
                added_s, added_j = max(added_s, whole[0] - alone[0]), max(added_j, whole[1] - alone[1])
            time += added_s
            energy += added_j
        return time, energy

    def _verified(self, decode_batch: int, fresh: int, group_tokens: int) -> int:
        """Tokens of all ranks where each verifies its proposals: the others are taken to decode as many sequences."""
        return group_tokens + self.config.draft_tokens * min(group_tokens - fresh, decode_batch * self.parallelism.dp)

    # --- lines ------------------------------------------------------------------------------------------------------

    def _bends(self, batch: int, group_tokens: int) -> list[Line]:
        """The lines of a decode step between the context sums at which its slope changes."""
        bends = {batch * reach for reach in (self._window, self._top_k) if reach > 1}
        starts = [0, *sorted(bends)]
        if self._overlap:
            for start, end in zip(list(starts), [*starts[1:], INFINITY], strict=True):
                starts += self._overlap_bends(batch, group_tokens, start, end)
            starts = sorted(set(starts))
        ends = [*(float(start) for start in starts[1:]), INFINITY]
        return [self._line(batch, group_tokens, start, end) for start, end in zip(starts, ends, strict=True)]

    def _overlap_bends(self, batch: int, group_tokens: int, start: int, end: float) -> list[int]:
        """First context sums at which something else becomes the longest, between `start` and `end`, where all are linear."""
        steps = [(batch, group_tokens)]
        if self._queries > 1:
            steps.append((batch * self._queries, self._verified(batch, 0, group_tokens)))
        far = start + 1024 * batch if end == INFINITY else int(end) - 1
        if far <= start:
            return []
        found = []
        for tokens, group in steps:
            first, last = self._sides(tokens, batch, start, group), self._sides(tokens, batch, far, group)
            slopes = [(late - early) / (far - start) for early, late in zip(first, last, strict=True)]
            for i, j in combinations(range(len(first)), 2):
                gap, closing = first[i] - first[j], slopes[j] - slopes[i]
                if closing and gap / closing > 0 and gap / closing < end - start:
                    found.append(start + ceil(gap / closing))
        return [bend for bend in found if bend < end]

    def _sides(
        self, tokens: int, batch: int, ctx_tokens: int, group_tokens: int
    ) -> tuple[float, float, float, float, float]:
        """What a decode step's overlap cannot hide, by what it is: products, collectives, attention, arithmetic, bytes [s]."""
        compute, network, _ = self._beside(tokens, tokens, 0, batch, group_tokens)
        attention, _ = self._attention(tokens, 0, 0, 0, batch, ctx_tokens)
        arithmetic_s, bytes_s = self._roofs(tokens, tokens, 0, 0, 0, batch, ctx_tokens, group_tokens)
        return compute, network, attention, arithmetic_s, bytes_s

    def _line(self, batch: int, group_tokens: int, start: int, end: float) -> Line:
        """The line through the steps at `start` and at a context sum below `end`."""
        far = max(int(end) - 1, start + 1) if end < INFINITY else 2 * start + 1024 * batch
        time, energy = self.mixed(batch, batch, 0, 0, 0, batch, start, group_tokens)
        far_time, far_energy = self.mixed(batch, batch, 0, 0, 0, batch, far, group_tokens)
        slope_s = max((far_time - time) / (far - start), 0.0)  # below zero by rounding, where attention is hidden
        slope_j = max((far_energy - energy) / (far - start), 0.0)
        return Line(time - slope_s * start, slope_s, energy - slope_j * start, slope_j, end)

    # --- parts, each computed once per count ------------------------------------------------------------------------

    def _fill_base(self, tokens: int) -> Work:
        return _keep(self._base, tokens, self._cut_work(max(tokens, 1)))

    def _cut_work(self, tokens: float) -> Work:
        """Products, norms and collectives of `tokens` tokens, done in as many parts as nano-batches are asked for."""
        parts = int(min(max(tokens, 1.0), self._parts))
        return self._layers.work(tokens / parts, not self._coupled).times(parts)

    def _staged_base(self, tokens: int, sequences: int) -> Work:
        """A step in as many micro-batches as there are sequences, at most one per pipeline stage."""
        key = (tokens, min(self._stages, max(sequences, 1)))
        found = self._staged.get(key)
        if found is None:
            found = self._staged[key] = self._cut_work(max(tokens, 1) / key[1])
        return found

    def _fill_head(self, sampled: int) -> Work:
        return _keep(self._head, sampled, self._layers.head(sampled) if sampled else Work(0.0, 0.0, 0.0))

    def _fill_experts(self, group_tokens: int) -> Work:
        share = max(group_tokens, 1) / self._stages
        parts = int(min(max(share, 1.0), self._parts))
        return _keep(self._experts, group_tokens, self._layers.coupled_experts(share / parts).times(parts))

    def _prepare_attention(self, dtype: str) -> None:
        """Coefficients of attention per layer, per unit of what a step is described by."""
        llm, parallel, chip = self.llm, self.parallelism, self._chip
        tp, per_stage = parallel.tp, 1 / parallel.pp
        width = BYTES_PER_VALUE[dtype]
        heads = 1 / tp
        values = llm.kv_values_per_token
        if llm.attention != "mla":
            values = 2 * llm.head_dim * -(-llm.kv_heads // tp)
        cached = values * width
        decode = chip.calibration.efficiency("decode_attention", dtype)
        prefill = chip.calibration.efficiency("prefill_attention", dtype)
        flops = llm.decode_flops_per_context_token * heads
        operation_j = chip.joule_per_flop(ACTIVATIONS)
        self._full_layers, self._window_layers = float(llm.full_layers), float(llm.window_layers)
        self._ctx_s = per_stage * max(cached * chip.byte_s(decode), flops * chip.flop_s(prefill, ACTIVATIONS))
        self._decode_start_s = decode.overhead_s * chip.scale
        self._decode_sequence_s = per_stage * decode.head_s * chip.scale * llm.heads * heads
        self._ctx_j = tp * (flops * operation_j + cached * chip.joule_per_byte)
        pair = llm.attention_flops_per_pair * heads
        self._pair_s = per_stage * pair * chip.flop_s(prefill, ACTIVATIONS)
        self._pair_j = tp * pair * operation_j
        self._padded_ctx_s = per_stage * flops * prefill.decode_rows * chip.flop_s(prefill, ACTIVATIONS)
        self._mixed_ctx_s = (
            per_stage * cached * chip.byte_s(prefill) * prefill.memory_ratio / prefill.mixed_memory_ratio
        )
        self._mixed_sequence_s = per_stage * prefill.head_s * chip.scale * llm.heads * heads
        expansion = self._expansion_flops()
        self._prefill_ctx_s = per_stage * (
            cached * chip.byte_s(prefill) + expansion * chip.flop_s(prefill, ACTIVATIONS)
        )
        self._prefill_ctx_j = tp * (cached * chip.joule_per_byte + expansion * operation_j)
        self._prefill_token_s = per_stage * (llm.query_dim + llm.value_dim) * heads * VALUE * chip.byte_s(prefill)
        self._prefill_start_s = prefill.overhead_s * chip.scale
        self._serial_s = prefill.serial_s * chip.scale
        self._sharpness = prefill.sharpness
        self._inverse_sharpness = 1 / prefill.sharpness
        # the indexer scores every pair in 8 bits where the chip can
        arithmetic = chip.accelerator.arithmetic("fp8")
        index = llm.index_flops_per_pair * llm.full_layers
        self._index_s = per_stage * index * chip.flop_s(prefill, arithmetic)
        self._index_j = index * chip.joule_per_flop(arithmetic)

    def _expansion_flops(self) -> float:
        """Latent attention: arithmetic that turns one cached token back into keys and values for prompts."""
        llm = self.llm
        if llm.attention != "mla":
            return 0.0
        return 2.0 * llm.kv_lora_rank * llm.heads * (llm.nope_head_dim + llm.v_head_dim) / self.parallelism.tp


CAPTURED = (1, 2, 4)


def _captured(batch: int) -> int:
    """The smallest batch of at least `batch` sequences that a graph was captured for."""
    if batch > CAPTURED[-1]:
        return -(-batch // GRAPH_STEP) * GRAPH_STEP
    return CAPTURED[bisect_right(CAPTURED, batch - 1)]


def _expected_tokens(proposed: int, acceptance: float) -> float:
    """Mean number of tokens that a verifying step yields (Leviathan et al., 2023, equation 1)."""
    return sum(acceptance**k for k in range(proposed + 1))


def _keep(values: list[T | None], index: int, value: T) -> T:
    values.extend([None] * (index + 1 - len(values)))
    values[index] = value
    return value
