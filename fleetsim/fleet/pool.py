"""A pool: replicas of one LLM on one kind of accelerator, with what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.encoder import Encoder, load_encoder
from fleetsim.catalog.link import Link, load_link
from fleetsim.catalog.llm import ACTIVATIONS, BYTES_PER_VALUE, Llm, load_llm
from fleetsim.catalog.memory import (
    kv_bytes_per_token,
    memory_plan,
    suspended_bytes_per_token,
    weight_bytes_per_accelerator,
)
from fleetsim.catalog.own import accelerator_for, link_for
from fleetsim.catalog.price import price_of
from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.compressions.between_turns import BetweenTurns
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.kv_tiers.replica_tiers import ReplicaTiers
from fleetsim.engine.replica import Meter, Replica
from fleetsim.engine.steptime.governor import Capped, governed
from fleetsim.engine.steptime.roofline import Roofline, RooflineConfig
from fleetsim.engine.swap import Swap
from fleetsim.errors import DataError, Finding
from fleetsim.fleet.life import Life
from fleetsim.fleet.probe import DecodeTime, PrefillTime
from fleetsim.scenario import schema
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.supply import Supply

_CHUNK_TOKENS = 8192
"""Prompt tokens per step where the scheduler says none: for the prediction of prefill times only."""


@dataclass(slots=True)
class Pool:
    """Replicas that are alike."""

    name: str
    index: int
    config: schema.Pool
    """As in the scenario, the engine's calibration file with its whole path."""
    llm: Llm
    accelerator: Accelerator
    link: Link
    """Between the accelerators of one replica."""
    model: StepTimeModel
    capacity_blocks: int
    """KV blocks of one data-parallel rank."""
    price_usd_per_h: float
    """Of one replica: all its accelerators. At the start, where it changes."""
    gaps: GapHistogram = field(default_factory=GapHistogram)
    replicas: list[Replica] = field(default_factory=list)
    """All that there may be, whatever state they are in."""
    lives: list[Life] = field(default_factory=list)
    """State of each."""
    tiers: list[ReplicaTiers] = field(default_factory=list)
    """What lies below the memory of each replica, if anything does."""
    swaps: list[Swap] = field(default_factory=list)
    """Where each replica keeps what preempted requests had, if they are swapped."""
    between_turns: list[BetweenTurns] = field(default_factory=list)
    """Where each replica keeps compressed caches of conversations, if it does."""
    variants: dict[str, Pool] = field(default_factory=dict)
    """By name of the LLM, what the pool is while its replicas hold it: itself for `llm`, others where it has `models`."""
    seats: dict[int, Any] = field(default_factory=dict)
    """Where its replicas change their LLM: what each holds and did (`fleet/swapping.py`), by number over the fleet."""
    supplies: dict[int, Supply] = field(default_factory=dict)
    """Where clocks, caps or temperatures change: what each replica is set to (`fleet/supply.py`), by number over the fleet."""
    remodel: Callable[[schema.PoolPower], StepTimeModel] | None = None
    """Makes the physics of a step under other clocks, caps and temperatures."""
    encoder: Encoder | None = None
    """What encodes images, if anything does."""
    encode_model: StepTimeModel | None = None
    """Physics of its layers."""
    kv_bytes_per_token: float = field(init=False)
    """Keys and values of one token of context, over all layers and accelerators [bytes]."""
    _prefill_time: PrefillTime | None = None
    _decode_time: DecodeTime | None = None
    _models: dict[tuple[float, float | None, float], StepTimeModel] = field(default_factory=dict)
    """By clock, cap and temperature."""

    def __post_init__(self) -> None:
        self.kv_bytes_per_token = self.llm.kv_bytes_per_token(self.config.engine.kv.dtype)

    def model_at(self, clock_ratio: float, cap_w: float | None, temperature_c: float) -> StepTimeModel:
        """Physics of a step under a clock, a cap of each accelerator and a temperature; built when it is first needed."""
        power = self.config.power
        if (clock_ratio, cap_w, temperature_c) == (power.clock_ratio, power.cap, power.temperature):
            return self.model
        key = (clock_ratio, cap_w, temperature_c)
        model = self._models.get(key)
        if model is None:
            spread = self.config.parallelism
            if cap_w is not None:
                model = Capped(self.model_at(clock_ratio, None, temperature_c), cap_w * spread.accelerators, spread.dp)
            else:
                assert self.remodel is not None
                changed = {"clock_ratio": clock_ratio, "cap": None, "temperature": temperature_c}
                model = self.remodel(power.model_copy(update=changed))
            self._models[key] = model
        return model

    @property
    def swapping(self) -> bool:
        """Whether its replicas may change their LLM."""
        return bool(self.config.models)

    @property
    def weight_bytes(self) -> float:
        """Weights of its LLM on all accelerators of one replica [bytes]."""
        spread = self.config.parallelism
        return weight_bytes_per_accelerator(self.llm, spread, self.config.engine.weights) * spread.accelerators

    def shares(self, replica: Replica, now_s: float) -> list[tuple[Pool, Meter]]:
        """What a replica did until now with each of its LLMs."""
        seat = self.seats.get(replica.index)
        return [(self, replica.meter(now_s))] if seat is None else list(seat.shares(now_s))

    @property
    def accelerators(self) -> int:
        """Accelerators of the whole pool at the start."""
        return self.config.replicas * self.config.parallelism.accelerators

    def on_s(self, now_s: float) -> float:
        """Time for which its replicas have been paid for, added up [s]."""
        return sum([life.on_s(now_s) for life in self.lives])

    def prefill_time(self) -> PrefillTime:
        """How long prompts take one replica; fitted when somebody first asks."""
        if self._prefill_time is None:
            chunk_tokens = getattr(self.config.engine.scheduler.config, "max_batched_tokens", _CHUNK_TOKENS)
            self._prefill_time = PrefillTime(self.model, chunk_tokens)
        return self._prefill_time

    def decode_time(self) -> DecodeTime:
        """How long decode steps take one replica; fitted when somebody first asks."""
        if self._decode_time is None:
            self._decode_time = DecodeTime(self.model)
        return self._decode_time

    @property
    def host_busy_w(self) -> float:
        """Power of the servers around one replica while it computes [W]."""
        return self.config.power.host_busy * self.config.parallelism.accelerators

    @property
    def host_idle_w(self) -> float:
        """The same while it does not [W]."""
        return self.config.power.host_idle * self.config.parallelism.accelerators

    @property
    def embedding_bytes_per_token(self) -> float:
        """What an encoder sends for one token of a prompt [bytes]."""
        return self.llm.hidden * BYTES_PER_VALUE[ACTIVATIONS]

    def encode_time(self, images: int, tokens: int) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of encoding images that become so many tokens together."""
        encoder, model = self.encoder, self.encode_model
        assert encoder is not None
        assert model is not None
        patches = encoder.patches(tokens)
        return model.mixed(patches, 0, encoder.pairs(images, tokens), patches, images, 0, 0, patches)

    def pay_encoding(self, request: Request, seconds: float) -> None:
        """Charge a request for its share of a replica's time while its images were encoded."""
        request.paid_usd += seconds * (self.price_usd_per_h / 3600.0)
        request.host_energy_j += seconds * self.host_busy_w

    @property
    def suspended_tokens(self) -> float:
        """Tokens of cache whose room the activations of one token take while its step is suspended."""
        parallelism = self.config.parallelism
        cached_bytes = kv_bytes_per_token(self.llm, parallelism, self.config.engine.kv.dtype)
        return suspended_bytes_per_token(self.llm, parallelism) / cached_bytes if cached_bytes else 0.0

    @property
    def capacity_tokens(self) -> int:
        """Tokens that one request may have at most."""
        return self.capacity_blocks * self.config.engine.kv.block_tokens


def describe_pool(config: schema.Pool, index: int, base_dir: Path) -> Pool:
    """A pool without replicas: catalogue entries read, physics built, memory planned.

    Raises
    ------
    DataError
        If a catalogue entry is missing or not valid.
    """
    config = config.model_copy(update={"engine": config.engine.located(base_dir)})
    engine = config.engine
    llm = load_llm(config.llm, base_dir)
    accelerator = accelerator_for(load_accelerator(config.accelerator), engine)
    link: Link = link_for(load_link(config.link or accelerator.link), engine)
    encoder = None if config.encoder is None else load_encoder(config.encoder.model)
    if config.role == "encode":
        capacity_tokens = engine.kv.block_tokens  # nothing is cached there
    else:
        weights = encoder_bytes_per_accelerator(encoder, config.parallelism)
        capacity_tokens = (
            engine.kv.capacity_tokens
            or memory_plan(llm, accelerator, config.parallelism, engine, weights).capacity_tokens
        )
    if engine.kv.reuse is not None:
        kept = getattr(engine.kv.reuse.config, "reserved_tokens", 0)
        if kept >= capacity_tokens:
            message = (
                f"{engine.kv.reuse.name} keeps {kept:,} tokens, the KV cache of {config.name} holds {capacity_tokens:,}"
            )
            raise DataError(Finding(message))
        capacity_tokens -= kept
    create = engine.step_time.located(base_dir).create

    def remodel(power: schema.PoolPower) -> StepTimeModel:
        return governed(create, power, llm, accelerator, link, config.parallelism, engine)

    price = price_of(config.price, accelerator, base_dir).at(0.0)
    pool = Pool(
        name=config.name,
        index=index,
        config=config,
        llm=llm,
        accelerator=accelerator,
        link=link,
        model=remodel(config.power),
        remodel=remodel,
        capacity_blocks=max(capacity_tokens // engine.kv.block_tokens, 1),
        price_usd_per_h=price * config.parallelism.accelerators,
        encoder=encoder,
        encode_model=None if encoder is None else _encode_model(encoder, config, accelerator, link),
    )
    pool.variants[llm.name] = pool
    for name in config.models:
        other = describe_pool(config.model_copy(update={"llm": name, "models": ()}), index, base_dir)
        pool.variants[other.llm.name] = other
    return pool


def encoder_parallelism(encoder: Encoder, parallelism: schema.Parallelism) -> schema.Parallelism:
    """How an encoder is spread: over the tensor ranks of one data-parallel rank's first stage, if its heads can be divided."""
    return schema.Parallelism(tp=parallelism.tp if encoder.heads % parallelism.tp == 0 else 1)


def encoder_bytes_per_accelerator(encoder: Encoder | None, parallelism: schema.Parallelism) -> float:
    """Weights of an encoder on each accelerator [bytes]."""
    return 0.0 if encoder is None else encoder.weight_bytes / encoder_parallelism(encoder, parallelism).tp


def _encode_model(encoder: Encoder, config: schema.Pool, accelerator: Accelerator, link: Link) -> StepTimeModel:
    """Roofline of an encoder's layers, in 16 bits, under the pool's clocks and caps."""
    engine = config.engine.model_copy(update={"weights": "auto"})
    create = partial(Roofline, RooflineConfig())
    spread = encoder_parallelism(encoder, config.parallelism)
    return governed(create, config.power, encoder.as_llm, accelerator, link, spread, engine)
