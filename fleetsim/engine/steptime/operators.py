"""Time and energy of everything in a step but attention's walk over the cache: products, experts, norms, head, collectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, sqrt
from statistics import NormalDist
from typing import NamedTuple, Protocol

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.architecture import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.catalog.calibration import Calibration, Efficiency
from fleetsim.catalog.engine import EngineProfile
from fleetsim.catalog.link import Link
from fleetsim.scenario.schema import Engine, Parallelism

VALUE = BYTES_PER_VALUE[ACTIVATIONS]

FUSED = ("fp8", "fp4")
"""Formats whose activations some engines quantise in the kernel before the product, without a launch or a pass for it.

Kernel tables time the product together with a separate quantisation.
"""

RECURRENT_KERNELS = {"gated_delta_net": 6, "mamba2": 4, "lightning": 3}
"""Kernels of a recurrent layer beside its projections, as vLLM and SGLang launch them in decode: a second small projection
(gated delta net), split, convolution, gates, recurrence, norm."""

LARGEST_OF_NORMAL = {1: 0.0, 2: 0.564, 4: 1.029, 8: 1.424, 16: 1.766, 32: 2.070, 64: 2.344}
"""Mean of the largest of n standard normal draws: how far the busiest of n ranks is from the mean (Harter, 1961)."""


class Cost(NamedTuple):
    """Time on one accelerator and dynamic energy."""

    time_s: float
    energy_j: float
    arithmetic_s: float = 0.0
    """Of the time, what the arithmetic alone takes: nothing else that computes can run meanwhile."""
    bytes_s: float = 0.0
    """Of the time, what the bytes alone take: nothing else that reads or writes memory can run meanwhile."""

    def times(self, count: float) -> Cost:
        """The cost of doing this `count` times."""
        return Cost(self.time_s * count, self.energy_j * count, self.arithmetic_s * count, self.bytes_s * count)


class Work(NamedTuple):
    """Parts of a step that depend on the number of tokens only."""

    compute_s: float
    network_s: float
    energy_j: float
    arithmetic_s: float = 0.0
    """As in `Cost`."""
    bytes_s: float = 0.0
    """As in `Cost`."""

    def times(self, count: float) -> Work:
        """The work of doing this `count` times."""
        return Work(
            self.compute_s * count,
            self.network_s * count,
            self.energy_j * count,
            self.arithmetic_s * count,
            self.bytes_s * count,
        )


class Product(NamedTuple):
    """A matrix product of one accelerator: tokens x `inner` times `inner` x `outer`, in `layers` layers."""

    inner: float
    outer: float
    layers: int
    dtype: str
    width: float
    """Bytes per weight."""


class Chip:
    """Prices arithmetic and bytes on one accelerator."""

    def __init__(self, accelerator: Accelerator, calibration: Calibration, scale: float, fused: bool = False) -> None:
        self.accelerator = accelerator
        self.fused = fused
        self.calibration = calibration
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

    def cost(
        self,
        group: str,
        form: str,
        arithmetic: str,
        flops: float,
        size_bytes: float,
        pass_bytes: float = 0.0,
        width: float = 0.0,
    ) -> Cost:
        """Time and energy of one kernel of an operator group in a number format; see `Efficiency` for the formula."""
        efficiency = self.calibration.efficiency(group, form)
        if self.fused and group == "gemm" and form in FUSED:
            plain = self.calibration.efficiency(group, ACTIVATIONS)
            efficiency = replace(
                efficiency,
                overhead_s=min(efficiency.overhead_s, plain.overhead_s),
                width_s=min(efficiency.width_s, plain.width_s),
                passes=0.0,
            )
        return self.price(efficiency, arithmetic, flops, size_bytes, pass_bytes, width)

    def price(
        self,
        efficiency: Efficiency,
        arithmetic: str,
        flops: float,
        size_bytes: float,
        pass_bytes: float = 0.0,
        width: float = 0.0,
    ) -> Cost:
        """Time and energy of one kernel with the given constants."""
        arithmetic_s, bytes_s = flops * self.flop_s(efficiency, arithmetic), size_bytes * self.byte_s(efficiency)
        roof = smooth_max(efficiency.sharpness, arithmetic_s, bytes_s, width * efficiency.width_s * self.scale)
        beside = efficiency.overhead_s + efficiency.passes * pass_bytes / self.accelerator.bandwidth_bytes_per_s
        energy = flops * self.joule_per_flop(arithmetic) + (size_bytes + pass_bytes) * self.joule_per_byte
        return Cost(roof + self.scale * beside, energy, arithmetic_s, bytes_s)


def smooth_max(sharpness: float, *times: float) -> float:
    """The p-norm of times: their sum at p = 1, the largest at large p."""
    largest = max(times)
    if largest <= 0:
        return 0.0
    return float(largest * sum((time / largest) ** sharpness for time in times) ** (1 / sharpness))


class Options(Protocol):
    """What of a roofline's options concerns its layers."""

    @property
    def expert_spread(self) -> float:
        """Spread of the popularity of experts."""

    @property
    def fuse_all_reduce(self) -> bool:
        """Whether norms are part of all-reduces."""

    @property
    def marlin(self) -> bool:
        """Whether experts in mxfp4 run on Marlin kernels."""


class Layers:
    """Costs of a replica's layers, by the number of tokens that go through them."""

    def __init__(
        self,
        llm: Llm,
        chip: Chip,
        link: Link,
        parallelism: Parallelism,
        engine: Engine,
        profile: EngineProfile,
        options: Options,
    ) -> None:
        self.llm, self.chip, self.link, self.parallelism, self.profile = llm, chip, link, parallelism, profile
        self._fused_norms = options.fuse_all_reduce and parallelism.tp > 1
        self._blocks = llm.block_scaled if engine.weights == "auto" else engine.weights == "fp8-block"
        dtype, width = self._plain = llm.plain_dtype(engine.weights), llm.plain_width(engine.weights)
        self._products = [
            *_attention_products(llm, parallelism.tp, dtype, width),
            *_recurrent_products(llm, parallelism.tp, dtype, width),
            *_dense_products(llm, parallelism.tp, dtype, width),
        ]
        self._expert_dtype = llm.weights_dtype(engine.weights)
        self._expert_width = llm.expert_width(engine.weights)
        self._expert_form, self._expert_arithmetic = self._expert_format()
        self._expert_efficiency = self.chip.calibration.efficiency("moe", self._expert_form)
        if options.marlin and self._expert_form == "mxfp4_bf16":
            marlin = self.chip.calibration.efficiency("moe", "int4_bf16")
            # its fixed time was measured with seven times as many experts, which take most of it
            own = self._expert_efficiency
            self._expert_efficiency = replace(marlin, overhead_s=own.overhead_s, width_s=own.width_s)
        self._popularity = _popularity(llm.experts, llm.experts_per_token, options.expert_spread)

    # --- formats ----------------------------------------------------------------------------------------------------

    def _product_format(self, dtype: str) -> tuple[str, str]:
        """Number format of a product, as calibrations name it, and the data type of its arithmetic."""
        arithmetic = self.chip.accelerator.arithmetic(dtype)
        return ("fp8_block" if arithmetic == "fp8" and self._blocks else arithmetic), arithmetic

    def _expert_format(self) -> tuple[str, str]:
        """The same of the experts; mxfp4 weights meet 8-bit activations where the chip has 4-bit units, else 16-bit."""
        form, arithmetic = self._product_format(self._expert_dtype)
        if self._expert_dtype == "int4":
            return "int4_bf16", "bf16"
        if self._expert_dtype != "fp4" or self.llm.quantised_parts != "experts":
            return form, arithmetic
        return ("mxfp4_fp8", "fp8") if arithmetic == "fp4" else ("mxfp4_bf16", "bf16")

    def formats(self) -> list[tuple[str, str]]:
        """Operator groups of the layers, with their number formats."""
        products = [("gemm", self._product_format(product.dtype)[0]) for product in self._products]
        return [*products, ("moe", self._expert_form)] if self.llm.is_moe else products

    # --- layers -----------------------------------------------------------------------------------------------------

    def work(self, tokens: float, with_experts: bool) -> Work:
        """Everything that depends on the tokens of a micro-batch only, through all layers."""
        llm, parallel = self.llm, self.parallelism
        parts = [self._product_cost(product, tokens) for product in self._products]
        parts += [self._elementwise_cost(tokens), self._recurrence_cost(tokens)]
        if with_experts:
            parts.append(self.experts(tokens))
        time = sum(part.time_s for part in parts)
        energy = sum(part.energy_j for part in parts) * parallel.tp * parallel.pp
        residual = tokens * llm.hidden * VALUE
        reduced = llm.attention_layers + llm.linear_layers + llm.mlp_layers + llm.moe_layers
        network = reduced * self.link.all_reduce_s(residual, parallel.tp)
        if parallel.pp > 1:
            network += parallel.pp * self.link.send_s(residual / parallel.tp)
        arithmetic_s, bytes_s = sum(part.arithmetic_s for part in parts), sum(part.bytes_s for part in parts)
        return Work(time, network, energy, arithmetic_s, bytes_s)

    def operators(self, tokens: float, experts_s: float) -> tuple[tuple[float, float, float, float, float], float]:
        """Time of each of `api.OPERATORS` through all layers, attention itself left out, and of the embedding [s].

        They add up to the time of `work`. Norms before attention belong to the projection behind them, the rotary embedding and
        the cache write to attention, activation functions to the projection before them; collectives to the projections that
        they follow; a recurrence counts as attention, the time of experts is shared by the size of their projections.
        """
        llm, tp = self.llm, self.parallelism.tp
        dtype, width = self._plain
        qkv = out = up = down = 0.0
        for products in (_attention_products(llm, tp, dtype, width), _recurrent_products(llm, tp, dtype, width)):
            for product in products[:-1]:
                qkv += self._product_cost(product, tokens).time_s
            out += sum(self._product_cost(product, tokens).time_s for product in products[-1:])
        for product in _dense_products(llm, tp, dtype, width):
            if product.outer == llm.hidden:
                down += self._product_cost(product, tokens).time_s
            else:
                up += self._product_cost(product, tokens).time_s
        norms, rotary, activation, embedding = (cost.time_s for cost in self._elementwise_costs(tokens))
        mixing, feeding = llm.attention_layers + llm.linear_layers, llm.mlp_layers + llm.moe_layers
        both = max(mixing + feeding, 1)
        qkv += norms * mixing / both
        up += norms * feeding / both + activation + experts_s * (llm.projections - 1) / llm.projections
        down += experts_s / llm.projections
        reduced = self.link.all_reduce_s(tokens * llm.hidden * VALUE, tp)
        out += mixing * reduced
        down += feeding * reduced
        return (qkv, rotary + self._recurrence_cost(tokens).time_s, out, up, down), embedding

    def _product_cost(self, product: Product, tokens: float) -> Cost:
        form, arithmetic = self._product_format(product.dtype)
        quantised = arithmetic != ACTIVATIONS
        inputs = tokens * product.inner
        one = self.chip.cost(
            "gemm",
            form,
            arithmetic,
            flops=2.0 * inputs * product.outer,
            size_bytes=product.inner * product.outer * product.width
            + inputs * (BYTES_PER_VALUE[arithmetic] if quantised else VALUE)
            + tokens * product.outer * VALUE,
            pass_bytes=inputs * (VALUE + BYTES_PER_VALUE[arithmetic]) if quantised else 0.0,
            width=product.inner,
        )
        return one.times(product.layers)

    def _elementwise_cost(self, tokens: float) -> Cost:
        """Norms, rotary embedding, cache write, activation function and embedding look-up."""
        time = energy = moved_s = 0.0
        for one in self._elementwise_costs(tokens):
            time += one.time_s
            energy += one.energy_j
            moved_s += one.bytes_s
        return Cost(time, energy, 0.0, moved_s)

    def _elementwise_costs(self, tokens: float) -> list[Cost]:
        """Norms; rotary embedding and cache write; activation function; embedding look-up: each through all layers."""
        llm, tp = self.llm, self.parallelism.tp
        heads = 2 * (llm.query_dim + llm.kv_values_per_token) / tp
        feed_forward = llm.mlp_layers + llm.moe_layers
        costs = []
        for width, layers in (
            (4.0 * llm.hidden, 0 if self._fused_norms else llm.attention_layers + llm.linear_layers + feed_forward),
            (heads, llm.attention_layers * (3 if llm.head_norm else 2)),
            (llm.projections * llm.intermediate / tp, llm.mlp_layers),
            (llm.hidden * 2.0, 1),
        ):
            one = self.chip.cost("elementwise", ACTIVATIONS, ACTIVATIONS, 0.0, tokens * width * VALUE)
            costs.append(one.times(layers))
        return costs

    def _recurrence_cost(self, tokens: float) -> Cost:
        """What recurrent layers do beside their projections: split, convolution, recurrence over the state, gated norm.

        Each token is taken to read and write a state, as in decode; chunked prompts do so once per chunk and are limited
        by their arithmetic instead, which is small beside the projections'.
        """
        llm, tp = self.llm, self.parallelism.tp
        if not llm.linear_layers:
            return Cost(0.0, 0.0)
        efficiency = self.chip.calibration.efficiency("elementwise", ACTIVATIONS)
        states = min(tokens, self.profile.max_seqs)
        moved = 2 * states * llm.linear_state_bytes / llm.linear_layers / tp
        flops = tokens * llm.linear_flops_per_token / tp
        one = self.chip.cost("prefill_attention", ACTIVATIONS, ACTIVATIONS, flops, 0.0)
        attention_s = self.chip.calibration.efficiency("prefill_attention", ACTIVATIONS).overhead_s * self.chip.scale
        moved_s = moved * self.chip.byte_s(efficiency)
        time = max(one.time_s - attention_s, moved_s)
        time += RECURRENT_KERNELS[llm.linear_kind] * efficiency.overhead_s * self.chip.scale
        energy = one.energy_j + moved * self.chip.joule_per_byte
        return Cost(time, energy, one.arithmetic_s, moved_s).times(llm.linear_layers)

    # --- experts ----------------------------------------------------------------------------------------------------

    def hit(self, tokens: float) -> float:
        """Distinct experts of all ranks that `tokens` visit, on average."""
        return float(sum(count * (1 - (1 - p) ** tokens) for count, p in self._popularity))

    def busiest(self, assigned: float, ranks: int) -> float:
        """Work of the busiest of `ranks` expert-parallel ranks over the mean.

        The ranks' popularities differ since their experts' do, and their shares of a step since tokens are few: both
        variances add, and the largest of `ranks` normal draws is that many deviations above the mean.
        """
        if ranks <= 1:
            return 1.0
        mean = self.llm.experts_per_token / self.llm.experts
        spread = sum(n * (p / mean - 1) ** 2 for n, p in self._popularity) / self.llm.experts
        deviation = sqrt(spread * ranks / self.llm.experts + 1 / max(assigned, 1e-9))
        largest = max(v for n, v in LARGEST_OF_NORMAL.items() if n <= ranks)
        return float(min(1 + largest * deviation, ranks))

    def experts(self, tokens: float) -> Cost:
        """Router, routed experts of the busiest accelerator, all MoE layers."""
        llm, parallel = self.llm, self.parallelism
        if not llm.is_moe:
            return Cost(0.0, 0.0)
        ranks = min(parallel.ep, parallel.tp * parallel.dp)
        width = llm.moe_intermediate * ranks / (parallel.tp * parallel.dp)
        mean = tokens * llm.experts_per_token / ranks
        assigned = mean * self.busiest(mean, ranks)
        hit = min(self.hit(tokens * assigned / max(mean, 1e-9)) / ranks, max(assigned, 1.0))
        size = llm.projections * llm.hidden * width
        one = self.chip.price(
            self._expert_efficiency,
            self._expert_arithmetic,
            flops=2.0 * assigned * size,
            size_bytes=hit * size * self._expert_width,
            pass_bytes=assigned * (2 * llm.hidden + llm.projections * width) * VALUE,
            width=llm.hidden + width,
        )
        energy = one.energy_j * mean / max(assigned, 1e-9)
        return Cost(one.time_s, energy, one.arithmetic_s, one.bytes_s).times(llm.moe_layers)

    def coupled_experts(self, group_tokens: float) -> Work:
        """Experts shared by data-parallel ranks: all tokens are gathered, computed, and their sums scattered back."""
        one = self.experts(group_tokens)
        moved = self.link.all_gather_s(group_tokens * self.llm.hidden * VALUE, self.parallelism.dp)
        energy = one.energy_j * self.parallelism.tp * self.parallelism.pp
        return Work(one.time_s, 2 * self.llm.moe_layers * moved, energy, one.arithmetic_s, one.bytes_s)

    # --- ends -------------------------------------------------------------------------------------------------------

    def head(self, sampled: int) -> Work:
        """LM head and sampler."""
        llm, parallel = self.llm, self.parallelism
        head = self._product_cost(Product(llm.hidden, llm.vocab / parallel.tp, 1, ACTIVATIONS, VALUE), sampled)
        logits = sampled * llm.vocab * BYTES_PER_VALUE["fp32"]
        sampler = self.chip.cost("sampler", ACTIVATIONS, ACTIVATIONS, 0.0, logits)
        gathered = self.link.all_gather_s(sampled * llm.vocab * VALUE, parallel.tp)
        return Work(
            head.time_s + sampler.time_s,
            gathered,
            head.energy_j * parallel.tp + sampler.energy_j,
            head.arithmetic_s,
            head.bytes_s + sampler.bytes_s,
        )


def _popularity(experts: int, chosen: int, spread: float) -> list[tuple[float, float]]:
    """Groups of experts: their number, and the chance that a token visits one of them.

    Popularities follow a lognormal with standard deviation `spread` of the logarithm, cut into sixteen equal groups.
    """
    if not experts:
        return []
    if not spread:
        return [(float(experts), chosen / experts)]
    groups = 16
    weights = [exp(spread * NormalDist().inv_cdf((i + 0.5) / groups)) for i in range(groups)]
    mean = sum(weights) / groups
    return [(experts / groups, min(chosen / experts * weight / mean, 1.0)) for weight in weights]


def _attention_products(llm: Llm, tp: int, dtype: str, width: float) -> Sequence[Product]:
    """Projections around attention on one accelerator."""
    layers = llm.attention_layers
    if llm.attention == "mla":
        *inputs, (rows, columns, _) = llm.mla_projections()
        products = [Product(inner, outer / tp if cut else outer, layers, dtype, width) for inner, outer, cut in inputs]
        return [*products, Product(rows / tp, columns, layers, dtype, width)]
    queries, outputs = llm.query_dim * (2 if llm.attention_gate else 1) / tp, llm.value_dim / tp
    key_values = 2 * llm.head_dim * -(-llm.kv_heads // tp)
    joined = Product(llm.hidden, queries + key_values, layers, dtype, width)
    return [joined, Product(outputs, llm.hidden, layers, dtype, width)]


def _recurrent_products(llm: Llm, tp: int, dtype: str, width: float) -> Sequence[Product]:
    """Projections into and out of recurrent layers on one accelerator."""
    if not llm.linear_layers:
        return []
    (inner, outer), (back, hidden) = llm.linear_projections
    layers = llm.linear_layers
    return [Product(inner, outer / tp, layers, dtype, width), Product(back / tp, hidden, layers, dtype, width)]


def _dense_products(llm: Llm, tp: int, dtype: str, width: float) -> Sequence[Product]:
    """Feed-forward products on one accelerator: dense layers, shared experts and the router."""
    products = []
    for inner, layers in ((llm.intermediate, llm.mlp_layers), (llm.shared_intermediate, llm.moe_layers)):
        if inner and layers:
            up = (llm.projections - 1) * inner / tp
            products.append(Product(llm.hidden, up, layers, dtype, width))
            products.append(Product(inner / tp, llm.hidden, layers, dtype, width))
    if llm.is_moe:
        products.append(Product(llm.hidden, llm.experts, llm.moe_layers, ACTIVATIONS, VALUE))
    return products
