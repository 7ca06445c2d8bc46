"""Step time and energy from a roofline per operator: arithmetic, bytes, launch overheads, collectives and host.

Everything that depends on the number of tokens in a step is computed once per number and kept in a list, so that a call
in the simulation's inner loop is a few look-ups and multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple, TypeVar

from mypy_extensions import mypyc_attr
from pydantic import Field

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.calibration import Efficiency, calibration_of
from fleetsim.catalog.engine import load_engine
from fleetsim.catalog.link import Link
from fleetsim.catalog.llm import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.engine.api import Line
from fleetsim.plugins import PolicyConfig
from fleetsim.scenario.schema import Engine, Parallelism

T = TypeVar("T")

INFINITY = float("inf")
VALUE = BYTES_PER_VALUE[ACTIVATIONS]


class Cost(NamedTuple):
    """Time on one accelerator and its dynamic energy."""

    time_s: float
    energy_j: float


class Product(NamedTuple):
    """A matrix product of one accelerator: tokens x `inner` times `inner` x `outer`, in `layers` layers."""

    inner: float
    outer: float
    layers: int
    dtype: str


class Chip:
    """Prices arithmetic and bytes on one accelerator."""

    def __init__(self, accelerator: Accelerator, scale: float) -> None:
        self.accelerator = accelerator
        self.calibration = calibration_of(accelerator)
        self.scale = scale
        self.joule_per_byte = accelerator.power.memory_w / accelerator.bandwidth_bytes_per_s

    def joule_per_flop(self, arithmetic: str) -> float:
        """Dynamic energy of one operation [J]."""
        return self.accelerator.power.compute_w / self.accelerator.peak_flop_per_s[arithmetic]

    def flop_s(self, efficiency: Efficiency, arithmetic: str) -> float:
        """Time of one operation at the efficiency reached [s]."""
        return self.scale / (self.accelerator.peak_flop_per_s[arithmetic] * efficiency.compute_ratio)

    def byte_s(self, efficiency: Efficiency) -> float:
        """Time of one byte at the efficiency reached [s]."""
        return self.scale / (self.accelerator.bandwidth_bytes_per_s * efficiency.memory_ratio)

    def cost(self, group: str, arithmetic: str, flops: float, size_bytes: float, load: float = 1.0) -> Cost:
        """Time and energy of one kernel; `load` is the busiest rank's work over this one's."""
        efficiency = self.calibration.efficiency(group, arithmetic)
        time = smooth_max(
            efficiency.sharpness,
            load * flops * self.flop_s(efficiency, arithmetic),
            size_bytes * self.byte_s(efficiency),
        )
        energy = flops * self.joule_per_flop(arithmetic) + size_bytes * self.joule_per_byte
        return Cost(time + efficiency.overhead_s * self.scale, energy)


def smooth_max(sharpness: float, a: float, b: float) -> float:
    """The p-norm of two times: their sum at p = 1, the larger one at large p."""
    if a <= 0 or b <= 0:
        return max(a, b)
    high, low = max(a, b), min(a, b)
    return float(high * (1 + (low / high) ** sharpness) ** (1 / sharpness))


class RooflineConfig(PolicyConfig):
    """Options of the roofline."""

    scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor on the accelerators' time, beside the engine's own."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Roofline:
    """Roofline per operator group, with calibrated efficiencies and the engine's host overheads.

    Notes
    -----
    Each kernel lasts ``(c^p + m^p)^(1/p) + overhead``: c its arithmetic, m its bytes, at the efficiencies of
    ``models/calibration``. Experts read are those expected of independent even routing, E (1 - (1 - k/E)^tokens).
    Decode attention is linear in the context sum; in a step that also has a prompt, its one query per sequence fills a
    whole tile of the prompt kernel, so that it takes more arithmetic. Sliding windows are left out: all layers read the
    whole context. Errors against measured kernels and served runs: tests/reference/test_roofline_vs_measured.py.
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
        self.llm, self.link, self.parallelism = llm, link, parallelism
        profile = load_engine(engine.kind)
        chips = parallelism.accelerators
        self.idle_w = accelerator.power.idle_w * chips
        self.static_w = accelerator.power.static_w * chips
        self.limit_w = accelerator.power.limit_w * chips
        self.frontend_s = profile.frontend_s
        self._profile = profile
        self._chip = Chip(accelerator, profile.scale * config.scale)
        self._weights = llm.weights_dtype(engine.weights)
        self._arithmetic = accelerator.arithmetic(self._weights)
        self._kv_width = BYTES_PER_VALUE[llm.kv_dtype(engine.kv.dtype)]
        tp, weights = parallelism.tp, self._weights
        self._products = [*_attention_products(llm, tp, weights), *_dense_products(llm, tp, weights)]
        self._base: list[Cost | None] = []
        self._head: list[Cost | None] = []
        self._experts: list[Cost | None] = []
        self._lines: list[Line | None] = []
        self._group_lines: dict[tuple[int, int], Line] = {}
        self._coupled = llm.is_moe and parallelism.dp > 1
        self._prepare_attention()

    # --- what the engine asks ---------------------------------------------------------------------------------------

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:  # noqa: ARG002
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        if group_tokens == batch or not self._coupled:
            try:
                line = self._lines[batch]
            except IndexError:
                line = None
            if line is None:
                line = self._line(batch, batch)
                _keep(self._lines, batch, line)
            return line
        key = (batch, group_tokens)
        line = self._group_lines.get(key)
        if line is None:
            line = self._group_lines[key] = self._line(batch, group_tokens)
        return line

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
        try:
            base = self._base[tokens] or self._fill_base(tokens)
        except IndexError:
            base = self._fill_base(tokens)
        try:
            head = self._head[sampled] or self._fill_head(sampled)
        except IndexError:
            head = self._fill_head(sampled)
        time = base[0] + head[0]
        energy = base[1] + head[1]
        if self._coupled:
            try:
                experts = self._experts[group_tokens] or self._fill_experts(group_tokens)
            except IndexError:
                experts = self._fill_experts(group_tokens)
            time += experts[0]
            energy += experts[1]
        energy += decode_ctx_tokens * self._ctx_j
        if not prefill_sequences:
            if decode_batch:
                time += self._decode_start_s + decode_batch * self._decode_sequence_s + decode_ctx_tokens * self._ctx_s
            return time, energy
        arithmetic = prefill_pairs * self._pair_s + decode_ctx_tokens * self._padded_ctx_s
        memory = (
            prefill_ctx_tokens * self._prefill_ctx_s
            + (tokens - decode_batch) * self._prefill_token_s
            + decode_ctx_tokens * self._mixed_ctx_s
        )
        serial = prefill_ctx_tokens / prefill_sequences
        if decode_batch and decode_ctx_tokens > serial * decode_batch:
            serial = decode_ctx_tokens / decode_batch
        serial *= self._serial_s
        p = self._sharpness
        time += self._prefill_start_s + decode_batch * self._mixed_sequence_s
        time += (arithmetic**p + memory**p + serial**p) ** self._inverse_sharpness
        energy += prefill_pairs * self._pair_j + prefill_ctx_tokens * self._prefill_ctx_j
        return time, energy

    # --- parts, each computed once per count ------------------------------------------------------------------------

    def _line(self, batch: int, group_tokens: int) -> Line:
        time, energy = self.mixed(batch, batch, 0, 0, 0, batch, 0, group_tokens)
        return Line(time, self._ctx_s, energy, self._ctx_j, INFINITY)

    def _fill_base(self, tokens: int) -> Cost:
        return _keep(self._base, tokens, self._base_cost(max(tokens, 1)))

    def _fill_head(self, sampled: int) -> Cost:
        return _keep(self._head, sampled, self._head_cost(sampled))

    def _fill_experts(self, group_tokens: int) -> Cost:
        return _keep(self._experts, group_tokens, self._expert_cost(max(group_tokens, 1)))

    def _base_cost(self, tokens: int) -> Cost:
        """Everything but attention scores, LM head and coupled experts: one micro-batch per pipeline stage."""
        llm, parallel = self.llm, self.parallelism
        share = tokens / parallel.pp
        parts = [self._product_cost(product, share) for product in self._products]
        parts.append(self._elementwise_cost(share))
        if llm.is_moe and not self._coupled:
            parts.append(self._experts_per_micro_batch(share))
        time = sum(part.time_s for part in parts)
        energy = sum(part.energy_j for part in parts) * parallel.tp * parallel.pp
        residual = share * llm.hidden * VALUE
        time += 2 * llm.layers * self.link.all_reduce_s(residual, parallel.tp)
        if parallel.pp > 1:
            time += parallel.pp * self.link.send_s(residual / parallel.tp)
        host = self._profile.host_s + (self._profile.host_data_parallel_s if parallel.dp > 1 else 0.0)
        return Cost(time + host, energy)

    def _product_cost(self, product: Product, tokens: float) -> Cost:
        arithmetic = self._chip.accelerator.arithmetic(product.dtype)
        weights = product.inner * product.outer * BYTES_PER_VALUE[product.dtype]
        activations = tokens * (product.inner + product.outer) * VALUE
        if arithmetic != ACTIVATIONS:
            activations += tokens * product.inner * (VALUE + BYTES_PER_VALUE[arithmetic])
        flops = 2.0 * tokens * product.inner * product.outer
        one = self._chip.cost("gemm", arithmetic, flops, weights + activations)
        return Cost(one.time_s * product.layers, one.energy_j * product.layers)

    def _elementwise_cost(self, tokens: float) -> Cost:
        """Norms, rotary embedding, cache write, activation function and embedding look-up."""
        llm, tp = self.llm, self.parallelism.tp
        heads = (llm.query_dim + llm.kv_values_per_token) / tp
        widths = [4.0 * llm.hidden, 4.0 * llm.hidden, 2 * heads, *([2 * heads] if llm.head_norm else [])]
        time = energy = 0.0
        for width, layers in (
            *((width, llm.layers) for width in widths),
            (llm.projections * llm.intermediate / tp, llm.layers - llm.moe_layers),
            (llm.hidden * 2.0, 1),
        ):
            one = self._chip.cost("elementwise", ACTIVATIONS, 0.0, tokens * width * VALUE)
            time += one.time_s * layers
            energy += one.energy_j * layers
        return Cost(time, energy)

    def _experts_per_micro_batch(self, group_tokens: float) -> Cost:
        """Routed experts of one accelerator, all MoE layers."""
        llm, parallel = self.llm, self.parallelism
        ranks = min(parallel.ep, parallel.tp * parallel.dp)
        width = llm.moe_intermediate * ranks / (parallel.tp * parallel.dp)
        assigned = group_tokens * llm.experts_per_token / ranks
        hit = llm.experts / ranks * (1 - (1 - llm.experts_per_token / llm.experts) ** group_tokens)
        size = llm.projections * llm.hidden * width
        imbalance = self._chip.calibration.efficiency("moe", self._arithmetic).imbalance if ranks > 1 else 1.0
        activations = assigned * (2 * llm.hidden + llm.projections * width) * VALUE
        size_bytes = hit * size * BYTES_PER_VALUE[self._weights] + activations
        one = self._chip.cost("moe", self._arithmetic, 2.0 * assigned * size, size_bytes, imbalance)
        return Cost(one.time_s * llm.moe_layers, one.energy_j * llm.moe_layers)

    def _expert_cost(self, group_tokens: int) -> Cost:
        """Experts shared by data-parallel ranks: all tokens are gathered, computed, and their sums scattered back."""
        parallel = self.parallelism
        share = group_tokens / parallel.pp
        one = self._experts_per_micro_batch(share)
        moved = self.link.all_gather_s(share * self.llm.hidden * VALUE, parallel.dp)
        return Cost(one.time_s + 2 * self.llm.moe_layers * moved, one.energy_j * parallel.tp * parallel.pp)

    def _head_cost(self, sampled: int) -> Cost:
        """LM head and sampler."""
        if not sampled:
            return Cost(0.0, 0.0)
        llm, parallel = self.llm, self.parallelism
        head = self._product_cost(Product(llm.hidden, llm.vocab / parallel.tp, 1, ACTIVATIONS), sampled)
        logits = sampled * llm.vocab * BYTES_PER_VALUE["fp32"]
        sampler = self._chip.cost("sampler", ACTIVATIONS, 0.0, logits)
        gathered = self.link.all_gather_s(sampled * llm.vocab * VALUE, parallel.tp)
        time = head.time_s + sampler.time_s + gathered + sampled * self._profile.host_per_sequence_s
        return Cost(time, head.energy_j * parallel.tp + sampler.energy_j)

    def _prepare_attention(self) -> None:
        """Coefficients of attention over all layers, per unit of what a step is described by."""
        llm, parallel, chip = self.llm, self.parallelism, self._chip
        layers, tp = llm.layers, parallel.tp
        heads = 1 / tp
        values = llm.kv_values_per_token
        if llm.attention != "mla":
            values = 2 * llm.head_dim * -(-llm.kv_heads // tp)
        cached = values * self._kv_width
        share = layers / parallel.pp
        decode = chip.calibration.efficiency("decode_attention", ACTIVATIONS)
        flops = llm.decode_flops_per_context_token * heads
        self._ctx_s = share * max(cached * chip.byte_s(decode), flops * chip.flop_s(decode, ACTIVATIONS))
        self._decode_start_s = layers * decode.overhead_s * chip.scale
        self._decode_sequence_s = share * decode.sequence_s * chip.scale
        operation_j = chip.joule_per_flop(ACTIVATIONS)
        self._ctx_j = layers * tp * (flops * operation_j + cached * chip.joule_per_byte)
        prefill = chip.calibration.efficiency("prefill_attention", ACTIVATIONS)
        pair = llm.attention_flops_per_pair * heads
        self._pair_s = share * pair * chip.flop_s(prefill, ACTIVATIONS)
        self._pair_j = layers * tp * pair * operation_j
        self._padded_ctx_s = share * flops * prefill.decode_rows * chip.flop_s(prefill, ACTIVATIONS)
        self._mixed_ctx_s = share * cached * chip.byte_s(prefill) * prefill.memory_ratio / prefill.mixed_memory_ratio
        self._mixed_sequence_s = share * prefill.sequence_s * chip.scale
        expansion = self._expansion_flops()
        self._prefill_ctx_s = share * cached * chip.byte_s(prefill) + share * expansion * chip.flop_s(
            prefill, ACTIVATIONS
        )
        self._prefill_ctx_j = layers * tp * (cached * chip.joule_per_byte + expansion * operation_j)
        self._prefill_token_s = share * (llm.query_dim + llm.value_dim) * heads * VALUE * chip.byte_s(prefill)
        self._prefill_start_s = layers * prefill.overhead_s * chip.scale
        self._serial_s = layers * prefill.serial_s * chip.scale
        self._sharpness = prefill.sharpness
        self._inverse_sharpness = 1 / prefill.sharpness

    def _expansion_flops(self) -> float:
        """Latent attention: arithmetic that turns one cached token back into keys and values for prompts."""
        llm = self.llm
        if llm.attention != "mla":
            return 0.0
        return 2.0 * llm.kv_lora_rank * llm.heads * (llm.nope_head_dim + llm.v_head_dim) / self.parallelism.tp


def _keep(values: list[T | None], index: int, value: T) -> T:
    values.extend([None] * (index + 1 - len(values)))
    values[index] = value
    return value


def _attention_products(llm: Llm, tp: int, dtype: str) -> Sequence[Product]:
    """Projections around attention on one accelerator."""
    if llm.attention == "mla":
        *inputs, (rows, columns, _) = llm.mla_projections()
        products = [Product(inner, outer / tp if cut else outer, llm.layers, dtype) for inner, outer, cut in inputs]
        return [*products, Product(rows / tp, columns, llm.layers, dtype)]
    queries, outputs = llm.query_dim / tp, llm.value_dim / tp
    key_values = 2 * llm.head_dim * -(-llm.kv_heads // tp)
    joined = Product(llm.hidden, queries + key_values, llm.layers, dtype)
    return [joined, Product(outputs, llm.hidden, llm.layers, dtype)]


def _dense_products(llm: Llm, tp: int, dtype: str) -> Sequence[Product]:
    """Feed-forward products on one accelerator: dense layers, shared experts and the router."""
    products = []
    for width, layers in ((llm.intermediate, llm.layers - llm.moe_layers), (llm.shared_intermediate, llm.moe_layers)):
        if width and layers:
            up = (llm.projections - 1) * width / tp
            products += [Product(llm.hidden, up, layers, dtype), Product(width / tp, llm.hidden, layers, dtype)]
    if llm.is_moe:
        products.append(Product(llm.hidden, llm.experts, llm.moe_layers, ACTIVATIONS))
    return products
