"""``fleetsim show``: the arithmetic of a model, a chip or a pool, before any simulation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fleetsim import plugins
from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.encoder import load_encoder
from fleetsim.catalog.floors import floors
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import Llm, load_llm
from fleetsim.catalog.memory import memory_plan, parallelisms_that_fit
from fleetsim.catalog.sourced import Sourced
from fleetsim.cli.console import import_option, json_option, print_json, print_table, set_option
from fleetsim.errors import InputError, nearest
from fleetsim.fleet.pool import describe_pool, encoder_bytes_per_accelerator
from fleetsim.scenario.load import load_scenario
from fleetsim.scenario.schema import Engine, Parallelism, Pool
from fleetsim.scenario.template import scenario_path
from fleetsim.units import show, show_bytes

Lines = list[tuple[str, str, str]]
"""Quantity, value, and where it comes from."""

LINKS = ("link", "host_link", "network")
"""What joins a chip to its peers in the node, its host and other nodes."""


@click.group()
def command() -> None:
    """Memory, limits and physical floors of a model, a chip or a pool."""


@command.command("llm", short_help="Architecture of an LLM, its weights and KV per token.")
@click.argument("name")
@json_option
def llm_command(name: str, as_json: bool) -> None:
    """Architecture of an LLM: NAME is in `fleetsim list llms`, or the path of a Hugging Face config.json."""
    llm = load_llm(name, Path.cwd())
    if as_json:
        print_json({"name": llm.name, **_plain(llm), **_llm_figures(llm)})
        return
    click.echo(f"{llm.name}: {show(llm.parameters_total / 1e9, 'B parameters')}")
    print_table(("quantity", "value", "from"), _llm_lines(llm), right=(1,))


def _llm_figures(llm: Llm) -> dict[str, float]:
    return {
        "parameters_total": llm.parameters_total,
        "parameters_active": llm.parameters_active,
        "weight_bytes": llm.weight_bytes(),
        "kv_bytes_per_token": llm.kv_bytes_per_token(),
        "flops_per_token": llm.flops_per_token,
    }


def _llm_lines(llm: Llm) -> Lines:
    heads = f"{llm.heads} heads of {llm.head_dim}, {llm.kv_heads} for keys and values"
    if llm.attention == "mla":
        heads = f"{llm.heads} heads of {llm.nope_head_dim} + {llm.rope_head_dim}, latent of {llm.kv_lora_rank}"
    lines = [
        ("layers", str(llm.layers), llm.source),
        ("hidden", str(llm.hidden), ""),
        ("attention", llm.attention, heads),
        ("parameters", f"{llm.parameters_total:,}", _published(llm.published_parameters, llm.parameters_total)),
        ("active per token", f"{llm.parameters_active:,}", ""),
        ("weights", show_bytes(llm.weight_bytes()), f"{llm.native_dtype}; embedding and norms in 16 bits"),
        ("KV per token", show(llm.kv_bytes_per_token() / 1024, "KiB"), _kv_formula(llm)),
        ("arithmetic per token", show(llm.flops_per_token / 1e9, "GFLOP"), "2 x active linear parameters"),
        ("context", f"{llm.context_tokens:,}", "tokens"),
    ]
    if llm.is_moe:
        experts = f"{llm.experts_per_token} per token, {llm.moe_layers} of {llm.layers} layers"
        lines.insert(3, ("experts", str(llm.experts), experts))
    return lines


def _published(published: int, counted: int) -> str:
    return f"published: {published:,} ({counted / published - 1:+.2%})" if published else ""


def _kv_formula(llm: Llm) -> str:
    return f"{llm.attention_layers} layers x {llm.kv_values_per_token:,} values x 2 B"


@command.command("accelerator", short_help="Data sheet of a chip, every number with its source.")
@click.argument("name")
@json_option
def accelerator_command(name: str, as_json: bool) -> None:
    """Data sheet of a chip, every number with its source: NAME is in `fleetsim list accelerators`."""
    chip = load_accelerator(name)
    if as_json:
        sourced = {key: _plain(value) for key, value in chip.sourced.items()}
        texts = {
            key: getattr(chip, key) for key in ("name", "title", "vendor", "kind", "status", "calibration", *LINKS)
        }
        print_json({**texts, "values": sourced})
        return
    shared = f", like those of {chip.calibration}" if chip.calibration != chip.name else ""
    click.echo(f"{chip.title} ({chip.vendor}); step times are {chip.status}{shared}")
    lines = [(key, getattr(chip, key), load_link(getattr(chip, key)).title) for key in LINKS]
    lines += [(key, f"{value.published:g} {value.unit}", _source(value)) for key, value in chip.sourced.items()]
    print_table(("quantity", "value", "source"), lines, right=(1,))


def _source(value: Sourced) -> str:
    return f"{value.source}: {value.note}" if value.note else value.source


@command.command("pool", short_help="Memory, largest batch and physical floors of pools.")
@click.argument("scenario", required=False)
@click.option("--pool", "name", help="Only this pool of the scenario.")
@click.option("--llm", help="Instead of a scenario: this LLM …")
@click.option("--accelerator", help="… on this chip …")
@click.option("--tp", type=click.IntRange(1), default=1, help="… with this tensor parallelism.")
@set_option
@import_option
@json_option
def pool_command(
    scenario: str | None,
    name: str | None,
    llm: str | None,
    accelerator: str | None,
    tp: int,
    overrides: tuple[str, ...],
    allow_import: bool,
    as_json: bool,
) -> None:
    """Memory, largest batch and physical floors of the pools of a SCENARIO, or of --llm on --accelerator."""
    with plugins.allowing_imports(allow_import):
        pools, base_dir = _pools(scenario, name, llm, accelerator, tp, overrides)
        sheets = [_Sheet(pool, base_dir) for pool in pools]
    if as_json:
        print_json({"pools": [sheet.as_json() for sheet in sheets]})
        return
    for sheet in sheets:
        click.echo(sheet.headline())
        print_table(("quantity", "value", "from"), sheet.lines(), right=(1,))
        click.echo()


def _pools(
    scenario: str | None,
    name: str | None,
    llm: str | None,
    accelerator: str | None,
    tp: int,
    overrides: tuple[str, ...],
) -> tuple[list[Pool], Path]:
    if llm is not None and accelerator is not None and scenario is None:
        spread = Parallelism(tp=tp)
        return [Pool(name="pool", llm=llm, accelerator=accelerator, parallelism=spread, engine=Engine())], Path.cwd()
    if llm is not None or accelerator is not None:
        raise InputError("give a scenario, or both --llm and --accelerator")
    loaded = load_scenario(scenario_path(scenario), overrides)
    pools = {pool.name: pool for pool in loaded.scenario.pools}
    if name is not None and name not in pools:
        raise InputError(f'no pool "{name}". {nearest(name, pools, "pools")}')
    return [pool for pool in pools.values() if name in (None, pool.name)], loaded.base_dir


class _Sheet:
    """The figures of one pool, with the numbers put in."""

    def __init__(self, pool: Pool, base_dir: Path) -> None:
        self.pool = pool
        self._base_dir = base_dir
        self.llm: Llm = load_llm(pool.llm, base_dir)
        self.chip: Accelerator = load_accelerator(pool.accelerator)
        self.encoder = None if pool.encoder is None else load_encoder(pool.encoder.model)
        self.encoder_bytes = encoder_bytes_per_accelerator(self.encoder, pool.parallelism)
        self.plan = memory_plan(self.llm, self.chip, pool.parallelism, pool.engine, self.encoder_bytes)
        self.floors = floors(self.llm, self.chip, pool.parallelism, pool.engine)
        self.fitting = parallelisms_that_fit(self.llm, self.chip, pool.engine)

    @property
    def max_batch(self) -> int | None:
        """Most requests that run at a time on one rank, as the scheduler limits it."""
        seats = getattr(self.pool.engine.scheduler.config, "max_seqs", None)
        return seats if isinstance(seats, int) else None

    def requests_of(self, tokens: int) -> int:
        """Requests of `tokens` tokens that the KV cache of one rank holds."""
        blocks = -(-tokens // self.plan.block_tokens)
        return self.plan.capacity_tokens // (blocks * self.plan.block_tokens)

    def headline(self) -> str:
        """Whether it fits."""
        spread = self.pool.parallelism
        ranks = ", ".join(f"{k} {v}" for k, v in spread.model_dump().items() if v > 1)
        what = f"{self.pool.name}: {self.pool.llm} on {spread.accelerators} x {self.pool.accelerator}"
        what += f" ({ranks})" if ranks else ""
        if self.pool.role == "encode":
            return f"{what} encodes images only"
        if self.plan.fits:
            return f"{what} fits: room for {self.plan.capacity_tokens:,} cached tokens per rank"
        fitting = " or ".join(f"tp {p.tp}" + (f", pp {p.pp}" if p.pp > 1 else "") for p in self.fitting[:3])
        return f"{what} does not fit" + (f"; would fit: {fitting}" if fitting else "")

    def lines(self) -> Lines:
        """The table."""
        if self.pool.role == "encode":
            return self._encoder_lines()
        plan = self.plan
        ratio = self.pool.engine.kv.memory_ratio
        cache = f"{show_bytes(max(plan.kv_bytes, 0.0))} / {show(plan.kv_bytes_per_token / 1024, 'KiB')} per token"
        if self.pool.engine.kv.capacity_tokens is not None:
            cache = "given as capacity_tokens"
        lines = [
            ("memory", show_bytes(plan.total_bytes), "what the driver reports"),
            ("usable", show_bytes(plan.usable_bytes), f"x memory_ratio {ratio:g}"),
            (
                "weights",
                show_bytes(plan.weights_bytes - self.encoder_bytes),
                self.llm.weights_dtype(self.pool.engine.weights),
            ),
            ("activations", show_bytes(plan.activations_bytes), "peak of a full step"),
            ("runtime", show_bytes(plan.runtime_bytes), "context, libraries, graphs, buffers"),
            ("KV cache", show_bytes(plan.kv_bytes), "usable - weights - activations - runtime"),
            ("KV capacity", f"{plan.capacity_tokens:,} tokens", f"{cache}, whole blocks of {plan.block_tokens}"),
        ]
        lines += [(f"requests of {n:,} tokens", f"{self.requests_of(n):,}", "in the KV cache") for n in (1000, 8000)]
        if self.max_batch is not None:
            lines.append(("requests at a time", f"{self.max_batch:,}", "at most, by the scheduler"))
        return lines + self._encoder_lines() + self._floor_lines()

    def _encode_s(self, tokens: int) -> float:
        """Time to encode one image that becomes so many tokens [s]."""
        return describe_pool(self.pool, 0, self._base_dir).encode_time(1, tokens)[0]

    def _encoder_lines(self) -> Lines:
        encoder = self.encoder
        if encoder is None:
            return []
        lines = [
            ("encoder", show_bytes(self.encoder_bytes), f"{encoder.title}: weights in 16 bits"),
            ("patches per token", f"{encoder.patches_per_token}", f"{encoder.layers} layers of width {encoder.hidden}"),
        ]
        for tokens in (256, 1024):
            sent = tokens * self.llm.hidden * 2.0
            lines.append(
                (
                    f"image of {tokens:,} tokens",
                    show(self._encode_s(tokens) * 1e3, "ms"),
                    f"encoded alone; {show(sent / 1e6, 'MB')} of embeddings",
                )
            )
        return lines

    def _floor_lines(self) -> Lines:
        spread = self.pool.parallelism
        chips = spread.tp * (spread.dp if self.llm.is_moe else 1)
        bandwidth = show(self.chip.bandwidth_bytes_per_s / 1e9, "GB/s")
        read = self.floors.decode_s * self.chip.bandwidth_bytes_per_s * chips
        arithmetic = self.chip.arithmetic(self.llm.weights_dtype(self.pool.engine.weights))
        peak = show(self.chip.peak_flop_per_s[arithmetic] / 1e12, "TFLOPS")
        prompt = (
            f"1,000 x {show(self.llm.flops_per_token / 1e9, 'GFLOP')} / ({chips * spread.pp} x {peak} {arithmetic})"
        )
        step = f"{show_bytes(read)} of weights / ({chips} x {bandwidth})"
        return [
            ("least TPOT", show(self.floors.tpot_s * 1e3, "ms"), step),
            ("least TTFT, 1,000 tokens", show(self.floors.ttft_s(1000) * 1e3, "ms"), prompt),
        ]

    def as_json(self) -> dict[str, Any]:
        """The same figures in base units."""
        return {
            "pool": self.pool.name,
            "llm": self.pool.llm,
            "accelerator": self.pool.accelerator,
            "parallelism": self.pool.parallelism.model_dump(),
            "fits": self.plan.fits,
            "memory": asdict(self.plan),
            "max_batch": self.max_batch,
            "encoder": None
            if self.encoder is None
            else {
                "model": self.encoder.name,
                "weights_bytes": self.encoder_bytes,
                "image_256_tokens_s": self._encode_s(256),
                "image_1024_tokens_s": self._encode_s(1024),
            },
            "floors": {
                "tpot_s": self.floors.tpot_s,
                "ttft_1000_tokens_s": self.floors.ttft_s(1000),
                "prefill_s_per_token": self.floors.prefill_s_per_token,
            },
            "parallelisms_that_fit": [p.model_dump() for p in self.fitting],
        }


def _plain(value: Any) -> dict[str, Any]:
    return {key: getattr(value, key) for key in value.__slots__}
