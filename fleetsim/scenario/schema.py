"""What a scenario file may say: frozen models, no unknown keys, quantities with units.

The docstring under each field is its reference text: `fleetsim schema` exports it for completion in editors.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fleetsim.plugins import Choice, PolicyField, ScenarioFile
from fleetsim.scenario.quality import Quality
from fleetsim.scenario.timed import Price, Series, Timed
from fleetsim.units import (
    Bytes,
    BytesPerSecond,
    PerSecond,
    PerSecondOrZero,
    Quantity,
    Seconds,
    SecondsOrZero,
    Watts,
)

Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Ratio = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
MAX_TOKENS = 2**31 - 1
"""A longer prompt, output or cache is taken for a mistake."""
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS, strict=True)]
Degree = Annotated[int, Field(ge=1, le=4096, strict=True)]
Interval = Annotated[float, Quantity("time", "s", ge=0.001)]

_ROUTER = PolicyField("routers", default="least-outstanding")
_SEARCH = PolicyField("searches", default="rebase")
_SCHEDULER = PolicyField("schedulers", default="vllm-v1")
_ORDER = PolicyField("orders", default="fcfs")
_EVICTION = PolicyField("evictions", default="lru")
_STEP_TIME = PolicyField("step_time_models", key="model", default="roofline")


class Block(BaseModel):
    """Base of every part of a scenario."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# --- workload -------------------------------------------------------------------------------------------------------


class FixedTokens(Block):
    """The same length for every request."""

    distribution: Literal["fixed"]
    value: Tokens
    """Tokens."""


class LognormalTokens(Block):
    """Lognormal lengths by mean and coefficient of variation of the lognormal itself, cut to [min, max]."""

    distribution: Literal["lognormal"]
    mean: Annotated[Number, Field(gt=0)]
    """Mean before cutting [tokens]."""
    cv: Annotated[Number, Field(ge=0, le=20)]
    """Standard deviation / mean before cutting."""
    min: Tokens = 1
    """Smaller draws become this."""
    max: Tokens = 1_000_000
    """Larger draws become this."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class QuantileTokens(Block):
    """Empirical lengths: linear interpolation between equally spaced quantiles."""

    distribution: Literal["quantiles"]
    values: Annotated[tuple[Annotated[Number, Field(ge=1)], ...], Field(min_length=2)]
    """Quantiles at levels 0, 1/(n-1), …, 1 [tokens], not falling."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(b < a for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError("quantiles must not fall")
        return self


Lengths = Annotated[FixedTokens | LognormalTokens | QuantileTokens, Field(discriminator="distribution")]


class PoissonArrivals(Block):
    """Poisson process: exponential gaps."""

    process: Literal["poisson"]
    rate: PerSecond
    """Mean arrivals per second."""


class GammaArrivals(Block):
    """Gamma-distributed gaps; `burstiness` is their shape, as in vLLM's benchmark (1 is Poisson, below 1 burstier)."""

    process: Literal["gamma"]
    rate: PerSecond
    """Mean arrivals per second."""
    burstiness: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    """Shape of the gamma distribution."""
    normalise: Flag = False
    """Rescale all gaps so that the last arrival falls on requests / rate exactly, as vLLM's benchmark does."""


class WeibullArrivals(Block):
    """Weibull-distributed gaps."""

    process: Literal["weibull"]
    rate: PerSecond
    """Mean arrivals per second."""
    shape: Annotated[Number, Field(gt=0.05, le=1e3)]
    """Below 1 is burstier than Poisson."""


class DeterministicArrivals(Block):
    """Equal gaps."""

    process: Literal["deterministic"]
    rate: PerSecond
    """Arrivals per second."""


def _not_too_fine(pieces: Iterable[tuple[float, float]]) -> None:
    """Refuse pieces of time so short that simulating arrivals would be all about passing through them."""
    arrivals = [duration * rate for duration, rate in pieces]
    if len(arrivals) > 10_000 * sum(arrivals):
        raise ValueError("less than one arrival in 10,000 pieces of time: make them longer or the rates higher")


class MmppArrivals(Block):
    """Markov-modulated Poisson process: the rate jumps between states with exponential holding times, in a cycle."""

    process: Literal["mmpp"]
    rates: Annotated[tuple[PerSecondOrZero, ...], Field(min_length=2)]
    """Arrival rate in each state."""
    holding: Annotated[tuple[Seconds, ...], Field(min_length=2)]
    """Mean time in each state."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.rates) != len(self.holding):
            raise ValueError(f"{len(self.rates)} rates but {len(self.holding)} holding times")
        if not any(self.rates):
            raise ValueError("at least one rate must be above zero")
        _not_too_fine(zip(self.holding, self.rates, strict=True))
        return self


class DiurnalArrivals(Block):
    """Poisson with a sinusoidal rate: rate x (1 + amplitude x sin(2 pi (t - phase) / period))."""

    process: Literal["diurnal"]
    rate: PerSecond
    """Mean rate."""
    amplitude: Ratio = 0.5
    """Relative swing, 0 to 1."""
    period: Seconds = 86400.0
    """Length of a cycle."""
    phase: SecondsOrZero = 0.0
    """Time at which the rate crosses its mean upwards."""


class RateStep(Block):
    """A constant rate for a while."""

    duration: Seconds
    """How long."""
    rate: PerSecondOrZero
    """Arrivals per second."""


class PiecewiseArrivals(Block):
    """Poisson with a rate that is constant by pieces; repeats from the start after the last piece."""

    process: Literal["piecewise"]
    steps: Annotated[tuple[RateStep, ...], Field(min_length=1)]
    """The pieces in order."""

    @model_validator(mode="after")
    def _not_silent(self) -> Self:
        if not any(step.rate for step in self.steps):
            raise ValueError("at least one rate must be above zero")
        _not_too_fine((step.duration, step.rate) for step in self.steps)
        return self


class ClosedLoopArrivals(Block):
    """A fixed number of users: each sends its next request a think time after its last one ended."""

    process: Literal["closed-loop"]
    concurrency: Count
    """Users."""
    think_time: SecondsOrZero = 0.0
    """Mean pause between a user's requests (exponential; 0 sends at once)."""


Arrivals = Annotated[
    PoissonArrivals
    | GammaArrivals
    | WeibullArrivals
    | DeterministicArrivals
    | MmppArrivals
    | DiurnalArrivals
    | PiecewiseArrivals
    | ClosedLoopArrivals,
    Field(discriminator="process"),
]


class SharedPrefixes(Block):
    """Groups of requests that start with the same tokens (system prompt, few-shot examples)."""

    groups: Annotated[Count, Field(le=10_000_000)]
    """Distinct prefixes."""
    tokens: Tokens
    """Length of each; a shorter prompt lies wholly inside its prefix. In sessions it stands before the first turn."""
    zipf: Annotated[Number, Field(ge=0, le=10)] = 0.0
    """Exponent of the groups' popularity: the k-th is chosen with weight k^-zipf; 0 is uniform."""


class Sessions(Block):
    """Multi-turn conversations: each turn's prompt is the whole history plus new user tokens."""

    turns: Lengths
    """Turns per session."""
    think_time: SecondsOrZero = 0.0
    """Mean pause between the end of an answer and the next turn (exponential)."""
    max_context_tokens: Tokens = 32_768
    """A session ends before a turn whose prompt and output would exceed this."""
    agent_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS, strict=True)] = 0
    """Above 0, turns are agents that read each other's answers: the n-th turn's prompt starts with so many tokens of instructions,
    which are the n-th agent's in every session, then come the task (the first turn's `prompt_tokens`) and all answers so far."""


class Images(Block):
    """Images that requests bring: an encoder turns them into tokens of the prompt, beside those of its text."""

    tokens: Lengths
    """Prompt tokens of one image."""
    per_request: Lengths = FixedTokens(distribution="fixed", value=1)
    """Images of a request that has any."""
    share: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Share of the requests that have images."""


class SyntheticWorkload(Block):
    """Requests drawn from distributions or from a public trace's profile."""

    kind: Literal["synthetic"]
    requests: Count | None = None
    """How many requests to send (turns of sessions count)."""
    duration: Seconds | None = None
    """Stop sending after this long."""
    profile: str | None = None
    """Name of a trace profile (`fleetsim list traces`) that gives arrivals and lengths not stated here."""
    arrivals: Arrivals | None = None
    """Arrival process; of sessions where there are any."""
    prompt_tokens: Lengths | None = None
    """Prompt lengths; with sessions, the new user tokens of each turn."""
    output_tokens: Lengths | None = None
    """Output lengths."""
    prefixes: SharedPrefixes | None = None
    """Shared prompt starts."""
    sessions: Sessions | None = None
    """Multi-turn structure."""
    images: Images | None = None
    """Images of the requests; default: none have any."""
    model: str | None = None
    """Send every request to pools of this LLM only."""
    klass: Annotated[str | None, Field(alias="class", min_length=1)] = None
    """Service class of its requests."""
    tenant: Annotated[str | None, Field(min_length=1)] = None
    """Who pays for them."""
    origin: Annotated[str | None, Field(min_length=1)] = None
    """Site from which its requests come."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.requests is None and self.duration is None:
            raise ValueError("give requests, duration or both: the workload must end")
        normalise = isinstance(self.arrivals, GammaArrivals) and self.arrivals.normalise
        if normalise and (self.requests is None or self.sessions):
            raise ValueError("arrivals.normalise needs the number of arrivals: give requests, and no sessions")
        if self.profile is None:
            missing = [k for k in ("arrivals", "prompt_tokens", "output_tokens") if getattr(self, k) is None]
            if missing:
                raise ValueError(f"without a profile these must be given: {', '.join(missing)}")
        if self.prefixes is not None and self.sessions is not None and self.sessions.agent_tokens:
            raise ValueError(
                "prefixes and sessions.agent_tokens cannot be combined: the prompts start with the instructions"
            )
        if self.images is not None and self.sessions is not None:
            raise ValueError(
                "images and sessions cannot be combined: which images a later turn encodes again is not modelled"
            )
        if isinstance(self.arrivals, ClosedLoopArrivals) and self.sessions is not None:
            raise ValueError(
                "closed-loop arrivals and sessions cannot be combined: a session's turns already form a loop"
            )
        return self


class TimeSlice(Block):
    """A window of the trace's own time, before any rate scaling."""

    start: SecondsOrZero = 0.0
    """First instant kept, from the trace's first row."""
    end: Seconds | None = None
    """First instant not kept."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end:g} s is not after start {self.start:g} s")
        return self


class TraceWorkload(Block):
    """Replay of a trace file."""

    kind: Literal["trace"]
    format: Literal["azure", "burstgpt", "mooncake", "bailian", "splitwise", "sharegpt", "parquet"]
    """What the file is; `fleetsim trace describe FILE` tells."""
    path: Annotated[str, Field(min_length=1)]
    """File, relative to the scenario file; `.gz` is read as it is. `embedded:NAME` is a trace that fleetsim carries."""
    rate_scale: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    """Replay this many times as fast as recorded (below 1: slower)."""
    rate_scaling: Literal["time", "thin"] = "time"
    """Squeeze the time between arrivals, or keep each request (each session) with probability rate_scale, at most 1."""
    slice: TimeSlice = TimeSlice()
    """Part of the trace to replay."""
    limit: Count | None = None
    """At most this many requests."""
    loop: Count = 1
    """Replay the slice this many times, one after the other."""
    on_bad_rows: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be read: refuse the run and show them, or skip them and report how many."""
    tokens_per_image: Tokens | None = None
    """Prompt tokens of an image where the trace counts images without saying how many tokens they are: as many of the prompt's
    tokens come from images, all but one at most."""
    sessions: Literal["recorded", "released"] = "recorded"
    """Later turns of a session: at their recorded time, or released by the end of the turn before plus its pause."""
    model: str | None = None
    """Send every request to pools of this LLM only, whatever the trace says."""
    klass: Annotated[str | None, Field(alias="class", min_length=1)] = None
    """Service class of requests for which the trace names none."""
    tenant: Annotated[str | None, Field(min_length=1)] = None
    """Who pays for requests for which the trace does not say."""
    origin: Annotated[str | None, Field(min_length=1)] = None
    """Site from which its requests come."""

    @model_validator(mode="after")
    def _thinning(self) -> Self:
        if self.rate_scaling == "thin" and self.rate_scale > 1:
            raise ValueError("thinning keeps a share of the requests: rate_scale must be at most 1")
        return self


class TreeSearchWorkload(Block):
    """Problems solved by tree search under a reward model: every depth is a burst of requests with shared prompts."""

    kind: Literal["tree-search"]
    problems: Annotated[Count, Field(le=10_000_000)]
    """How many to solve."""
    concurrency: Count = 8
    """Problems searched at a time; the next starts when one is solved."""
    width: Annotated[Count, Field(le=100_000)] = 64
    """Steps written at each depth of a problem's tree, less one for every answer that was reached."""
    search: Annotated[Choice, _SEARCH] = Field(default_factory=lambda: _default(_SEARCH))
    """Which leaves go on."""
    prompt_tokens: Lengths = LognormalTokens(distribution="lognormal", mean=150, cv=0.5, min=20, max=1000)
    """Lengths of the questions, with instructions."""
    step_tokens: Lengths = LognormalTokens(distribution="lognormal", mean=80, cv=0.6, min=5, max=256)
    """Lengths of steps."""
    max_tokens: Tokens = 1024
    """Longest answer, all its steps together: a path that reaches it ends."""
    answer_ratio: Ratio = 0.05
    """Chance that a step ends in an answer."""
    first_reward: Ratio = 0.5
    """Reward that the noise of first steps is added to."""
    reward_noise: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """Standard deviation of a step's reward around its parent's; rewards stay between 0 and 1."""
    clusters_min_ratio: Annotated[Number, Field(gt=0, le=1)] = 0.3
    """Fewest different meanings among the steps of a depth, as a share of their number; drawn evenly at each depth."""
    clusters_max_ratio: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """Most of them."""
    reward_per_token: SecondsOrZero = 0.00003
    """Time of the reward model per token of new steps, on accelerators of its own that take one problem at a time. The default is
    what 2 x 7 billion operations take on an H100 at 60 % of its peak."""
    model: str | None = None
    """Send every request to pools of this LLM only."""
    klass: Annotated[str | None, Field(alias="class", min_length=1)] = None
    """Service class of its requests."""
    tenant: Annotated[str | None, Field(min_length=1)] = None
    """Who pays for them."""
    origin: Annotated[str | None, Field(min_length=1)] = None
    """Site from which its requests come."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clusters_min_ratio > self.clusters_max_ratio:
            raise ValueError(
                f"clusters_min_ratio {self.clusters_min_ratio:g} is above clusters_max_ratio {self.clusters_max_ratio:g}"
            )
        return self


PartName = Annotated[str, Field(min_length=1, max_length=100)]


class MixWorkload(Block):
    """Several workloads at once, each with its own random streams: adding one changes no other."""

    kind: Literal["mix"]
    parts: Annotated[
        dict[PartName, Annotated[TraceWorkload | SyntheticWorkload, Field(discriminator="kind")]], Field(min_length=1)
    ]
    """The workloads by name; `class` and `tenant` of a part tell its requests from others'."""


Workload = Annotated[TraceWorkload | SyntheticWorkload | TreeSearchWorkload | MixWorkload, Field(discriminator="kind")]


class RequestClass(Block):
    """What sets a class of requests apart; its latency limits stand in slo.classes."""

    priority: Annotated[int, Field(ge=-(2**31), le=2**31, strict=True)] = 0
    """Higher is more urgent; requests of no class have 0."""
    origin: Annotated[str, Field(min_length=1)] | None = None
    """Site from which its requests come, where neither their workload nor their tenant says."""


class Tenant(Block):
    """What sets a tenant apart."""

    weight: Annotated[Number, Field(gt=0, le=1e9)] = 1.0
    """Share relative to other tenants', where they compete; requests of no tenant have 1."""
    origin: Annotated[str, Field(min_length=1)] | None = None
    """Site from which its requests come, where their workload does not say."""


# --- service-level objectives ----------------------------------------------------------------------------------------


class SloLimits(Block):
    """Latency limits that a request must keep to count as good. A limit not given is not checked."""

    ttft: Seconds | None = None
    """Time to first token."""
    tpot: Seconds | None = None
    """Mean time per output token after the first; requests with one output token meet it."""
    e2el: Seconds | None = None
    """End-to-end latency."""


class Slo(SloLimits):
    """Service-level objective: limits, and the share of requests that must keep all of them."""

    attainment: Annotated[Number, Field(gt=0, le=1)] = 0.99
    """Share of all requests (rejected and unfinished ones included) that must meet the limits."""
    classes: dict[str, SloLimits] = {}
    """Other limits for requests of a class named in the trace."""


# --- fleet ------------------------------------------------------------------------------------------------------------


class Parallelism(Block):
    """How one replica is spread over accelerators; it uses tp x pp x dp of them."""

    tp: Degree = 1
    """Tensor parallel ranks: each layer is cut."""
    pp: Degree = 1
    """Pipeline stages: the layers are divided."""
    dp: Degree = 1
    """Attention data-parallel ranks in lock step, each with its own KV cache and batch."""
    ep: Degree = 1
    """Expert-parallel ranks: whole experts are spread over tp x dp accelerators."""

    @property
    def accelerators(self) -> int:
        """Accelerators of one replica."""
        return self.tp * self.pp * self.dp


class HostTier(Block):
    """Host memory that one replica keeps for keys and values (HiCache's L2, LMCache's CPU tier)."""

    capacity: Bytes | None = None
    """Room of one replica; default: by `ratio`."""
    ratio: Annotated[Number, Field(gt=0, le=1000)] = 2.0
    """Room over that of the replica's own cache, where no capacity is given (HiCache: hicache_ratio)."""


class SsdTier(Block):
    """Drives of the server, below its host memory."""

    capacity: Bytes
    """Room of one replica."""


class StoreTier(Block):
    """Use of the remote store (`network.store`), which the replicas of one LLM share (HiCache's L3)."""

    prefetch: Literal["best_effort", "wait_complete", "timeout", "never"] = "best_effort"
    """What comes to the host while a request is in the queue: as much as it can until the request is scheduled; everything, and
    the request waits for it; the same, but it waits no longer than a time; or nothing: the request loads when it is admitted."""
    min_tokens: Tokens = 256
    """Fetch only if the store holds so many tokens more than the host (HiCache: prefetch_threshold)."""
    timeout_base: SecondsOrZero = 1.0
    """Longest wait with `timeout`, whatever is fetched; an assumption."""
    timeout_per_1024_tokens: SecondsOrZero = 0.25
    """Added to it per 1,024 tokens; an assumption."""
    limit: BytesPerSecond = 20e9
    """Most that the software of one replica moves to or from the store: 5 to 20 GB/s is usual."""


class KvTiers(Block):
    """Places below the accelerators' memory where keys and values of known starts are kept.

    As HiCache: `{host: {ratio: 2}, page_tokens: 64}`, with a store `store: {}` added. As LMCache: `{host: {capacity: 5 GB},
    page_tokens: 256, overlap: false}`. As Mooncake's store without a host tier: `{store: {prefetch: never}}`.
    """

    host: HostTier | None = None
    """Memory of the host."""
    ssd: SsdTier | None = None
    """Drives of the server."""
    store: StoreTier | None = None
    """Remote store."""
    write: Literal["write_through", "selective", "write_back"] = "write_through"
    """What goes down: every block when it is computed; blocks that a second request used; or blocks when they are evicted above."""
    inclusive: Flag = True
    """Whether what is loaded stays below too; if not, it is the first to go there (needs write_back)."""
    overlap: Flag = True
    """Compute a layer as soon as its keys and values are there, not when all are."""
    page_tokens: Tokens | None = None
    """Tokens that are written and read together; default: a block (HiCache 64, LMCache 256)."""
    min_load_tokens: Annotated[int, Field(ge=0, strict=True)] = 0
    """Compute what a tier holds in place of loading it where it holds fewer tokens more than is at hand."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.host is None and self.ssd is None and self.store is None:
            raise ValueError("give host, ssd or store")
        if self.host is None and self.store is not None and self.store.prefetch != "never":
            raise ValueError("prefetches from the store end in host memory: give host, or store.prefetch: never")
        if not self.inclusive and self.write != "write_back":
            raise ValueError("exclusive tiers need write: write_back")
        return self


class Preemption(Block):
    """What becomes of the keys and values of a request that is preempted.

    As vLLM V0 swaps: `{mode: swap}`. As FastSwitch: `{mode: swap, group_blocks: 20, asynchronous: true, reuse: true}`.
    """

    mode: Literal["recompute", "swap"] = "recompute"
    """Computed again, or copied to the host and back; without room there, computed again."""
    capacity: Bytes = 4.0 * 2**30
    """Room in host memory per accelerator (vLLM V0: swap_space, 4 GiB)."""
    group_blocks: Count = 1
    """Blocks that one call copies, of the keys or the values of one layer (vLLM 1; FastSwitch's groups are some tens)."""
    call_time: SecondsOrZero = 10e-6
    """Of the host per call, one after the other; an assumption: the order of what launching a small copy takes."""
    asynchronous: Flag = False
    """Let steps go on meanwhile, unless they need blocks that are being copied out."""
    reuse: Flag = False
    """Keep the host's copy of a request that has come back, and copy only what it lacks the next time."""


class KvCache(Block):
    """Room for cached keys and values on one rank."""

    block_tokens: Tokens = 16
    """Tokens per block."""
    memory_ratio: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """Share of the accelerator's memory that the engine may use (vLLM: gpu_memory_utilization)."""
    capacity_tokens: Tokens | None = None
    """Tokens that fit, if known (vLLM prints it at start); otherwise computed from memory."""
    dtype: Literal["auto", "bf16", "fp16", "fp8", "int8"] = "auto"
    """Precision of keys and values; auto is that of the activations."""
    eviction: Annotated[Choice, _EVICTION] = Field(default_factory=lambda: _default(_EVICTION))
    """Which cached blocks go first where room is needed."""
    retain_unmatched: Flag = False
    """Keep a finished request's blocks that no other request of the workload can match (its own text and its answer), until they
    are evicted. A real engine does, since it cannot know; off, they are free at once, which is faster and finds more prefixes."""
    preemption: Preemption = Field(default_factory=Preemption)
    """Computing again, or swapping to the host."""
    tiers: KvTiers | None = None
    """Host memory, drives and a remote store below the accelerators' memory; default: none."""
    reuse: Annotated[Choice, PolicyField("reuses")] | None = None
    """Which keys and values are reused that stand behind another start; default: none. Needs `engine.prefix_cache: true`, no
    tiers, and pools of role mixed."""
    compression: Annotated[Choice, PolicyField("compressions")] | None = None
    """How many keys and values of a request are held; default: all. Needs `engine.prefix_cache: false` and pools of role mixed."""

    @property
    def approximate(self) -> str:
        """What makes keys and values approximate here, if anything does."""
        return "compression" if self.compression is not None else "reuse" if self.reuse is not None else ""

    @model_validator(mode="after")
    def _swaps_whole(self) -> Self:
        if self.compression is not None and self.preemption.mode == "swap":
            raise ValueError("preemption: swapping compressed keys and values is not modelled; take mode: recompute")
        return self

    @model_validator(mode="after")
    def _whole_pages(self) -> Self:
        page = None if self.tiers is None else self.tiers.page_tokens
        if page is not None and page % self.block_tokens:
            raise ValueError(f"tiers.page_tokens {page} is no multiple of block_tokens {self.block_tokens}")
        return self


class Engine(Block):
    """Inference engine of a replica."""

    kind: Literal["vllm", "sglang", "trtllm", "trtllm-1.0", "nanoflow", "generic"] = "vllm"
    """Whose host overheads to charge."""
    scheduler: Annotated[Choice, _SCHEDULER] = Field(default_factory=lambda: _default(_SCHEDULER))
    """Which requests run in each step."""
    order: Annotated[Choice, _ORDER] = Field(default_factory=lambda: _default(_ORDER))
    """Who is next in the queue, and who gives way to whom."""
    kv: KvCache = Field(default_factory=KvCache)
    """Memory for keys and values."""
    prefix_cache: Flag = True
    """Reuse blocks of earlier requests with the same start."""
    weights: Literal["auto", "bf16", "fp16", "fp8", "fp8-block", "fp4", "int8", "int4"] = "auto"
    """Precision of the weights; auto is the checkpoint's own. fp8-block has a scale per block, as DeepSeek's checkpoints."""
    step_time: Annotated[Choice, _STEP_TIME] = Field(default_factory=lambda: _default(_STEP_TIME))
    """Physics of a step."""
    step_by_step: Flag = False
    """Simulate every step by itself instead of leaping: the slow reference path, same results."""
    calibration: Annotated[ScenarioFile, Field(min_length=1)] | None = None
    """File that `fleetsim calibrate` wrote, relative to the scenario: its constants in place of the catalogue's."""

    @model_validator(mode="after")
    def _tiers_extend_a_cache(self) -> Self:
        if self.kv.tiers is not None and not self.prefix_cache:
            raise ValueError("kv.tiers keep what the prefix cache finds: they need prefix_cache: true")
        if self.kv.compression is not None and self.prefix_cache:
            raise ValueError(
                "what kv.compression leaves of a request is no prefix of another: it needs prefix_cache: false"
            )
        if self.kv.reuse is not None and not (self.prefix_cache and self.kv.tiers is None):
            raise ValueError(
                "kv.reuse adds to what the prefix cache finds: it needs prefix_cache: true, and no kv.tiers"
            )
        return self

    def located(self, base_dir: Path) -> Self:
        """The same engine with its calibration file found from `base_dir`, the scenario's folder."""
        if self.calibration is None:
            return self
        return self.model_copy(update={"calibration": str(base_dir / self.calibration)})


def _default(field: PolicyField) -> Choice:
    return field._validate({})


class SleepState(Block):
    """A state in which a replica takes no requests and draws less; a power manager puts it there and wakes it."""

    power: Watts
    """Of one accelerator."""
    wake: SecondsOrZero
    """From being woken to its first request: vLLM's sleep mode copies the weights back from the host, seconds at 8 to 70 billion
    parameters; a processor that only stops its clocks takes milliseconds."""
    keeps_cache: Flag = False
    """Whether its prefix cache survives."""


class Thermal(Block):
    """Heat of the accelerators: one thermal resistance and one capacity between chip and air.

    Edge devices have such constants in the catalogue, which stand where none are given here.
    """

    ambient: Annotated[float, Quantity("temperature", "C", ge=0)] = 25.0
    """Temperature of the air."""
    resistance: Annotated[Number, Field(gt=0, le=1000)] | None = None
    """Kelvins above the air's temperature per watt that an accelerator draws [K/W]."""
    capacity: Annotated[Number, Field(gt=0, le=1e7)] | None = None
    """Heat that warms an accelerator and its heat sink by one kelvin [J/K]."""
    throttle: Annotated[float, Quantity("temperature", "C", gt=0)] | None = None
    """From this temperature on the clock is lowered."""
    resume: Annotated[float, Quantity("temperature", "C", gt=0)] | None = None
    """Below this temperature it is as before."""
    throttled_clock: Annotated[Number, Field(ge=0.1, lt=1)] | None = None
    """Clock over the one that is set, while it is lowered."""
    period: Interval = 1.0
    """Time between two looks at the temperature; the power in between counts as constant, for which the solution is exact."""


class PoolPower(Block):
    """How the accelerators of a pool are clocked and capped, and what the servers around them draw."""

    clock_ratio: Annotated[Number, Field(ge=0.2, le=1)] = 1.0
    """Clock over the usual one: arithmetic slows down with it, memory and links do not, and the voltage falls too."""
    cap: Watts | None = None
    """Most power of one accelerator, below its board limit: steps that would take more are stretched until they do not."""
    temperature: Annotated[float, Quantity("temperature", "C", ge=0)] = 60.0
    """Temperature of the chip: leakage grows with it. The default is what the powers were measured at."""
    curve: Literal["roofline", "logistic"] = "roofline"
    """Power of a step from its arithmetic, bytes and tokens, or by a logistic curve over the batch size alone."""
    host_idle: Watts = 0.0
    """Power of the server (processors, memory, fans, network) per accelerator while that computes nothing."""
    host_busy: Watts = 0.0
    """The same while it computes."""
    sleep: SleepState | None = None
    """State in which a power manager may put replicas without requests; default: there is none."""
    thermal: Thermal | None = None
    """Follow the accelerators' temperature, and throttle them when they are hot; default: `temperature` holds for the whole run."""


class Ssd(Block):
    """Drives of one server."""

    drives: Count = 4
    """How many; data is spread over all."""
    read: BytesPerSecond = 5e9
    """Read from one drive: NVMe drives reach 3 to 7 GB/s."""
    write: BytesPerSecond = 2e9
    """Written to one drive: NVMe drives reach 1 to 3 GB/s."""
    latency: SecondsOrZero = 1e-4
    """Of one access."""


class Server(Block):
    """The servers in which a pool's replicas stand, in order; a replica larger than a server has whole ones of its own."""

    accelerators: Count | None = None
    """Accelerators of one server; default: of the usual one (`fleetsim show`)."""
    nics: Count | None = None
    """Network adapters of one server; default: one per accelerator."""
    nic: str | None = None
    """Link of one adapter (`fleetsim list links`); default: the usual one of the accelerator."""
    network_limit: BytesPerSecond | None = None
    """Most that one server moves over its adapters each way, such as 38 GB/s with TCP in place of RDMA; default: no such limit."""
    accelerators_per_uplink: Count | None = None
    """Accelerators that share one link to the host behind a switch; default: 2 on PCIe, 1 otherwise."""
    ssd: Ssd = Ssd()
    """Its drives."""


class Startup(Block):
    """What it takes to have one more replica, in this order; it is paid for from the beginning."""

    provision: SecondsOrZero = 0.0
    """Until there is a machine: minutes in most clouds, nothing where machines stand by."""
    image: SecondsOrZero = 0.0
    """Until the container image is there."""
    weights: Literal["ssd", "host", "store", "peer", "none"] = "ssd"
    """Where the weights come from, over the network and shared with whatever else moves there: the drives of its server, the host's
    memory, the remote store, or a ready replica of the pool (drives if none is); or they are there."""
    init: SecondsOrZero = 20.0
    """From then on until it can serve: engine start, graph capture, warm-up. An assumption: vLLM takes 10 to 60 s."""


class ModelSwap(Block):
    """What it takes a replica to hold another LLM: weights come from where they lie, then the engine is made ready."""

    weights: Literal["host", "ssd", "store"] = "host"
    """Where the weights of all its LLMs lie: host memory, from which they come over PCIe; the server's drives; or the remote store
    (`network.store`). What comes from there shares the bandwidth with everything else on its way."""
    host_capacity: Bytes | None = None
    """Room in host memory, per replica, for weights that came from drives or the store: those used longest ago go first; default:
    none are kept."""
    setup: SecondsOrZero = 2.0
    """Time from the last byte until the engine serves: memory laid out, graphs captured; an assumption, of the order that engines
    which sleep and wake need. Minutes where they start anew."""
    kv: Literal["drop", "host"] = "drop"
    """Keys and values of a running request that is taken back: computed again, or copied to the host and back."""
    kv_capacity: Bytes = 4.0 * 2**30
    """Room in host memory for these, per accelerator; those that find none are computed again."""


class Encoder(Block):
    """Encodes images of requests between the steps of a replica: meanwhile nothing else is computed there."""

    model: Annotated[str, Field(min_length=1)]
    """Name in the catalogue (`fleetsim list encoders`)."""
    max_images: Count = 8
    """Images encoded at a time at most; a request that has more of them is encoded alone."""
    order: Literal["first", "last"] = "first"
    """`first`: images that wait are encoded before the next step. `last`: decodes and prompts come first; while requests decode,
    images are encoded only as far as steps and encoding together take `step_target` a step, on average since the first of them
    waits (the stage scheduling of xLLM)."""
    step_target: Seconds = 0.05
    """With order `last`: that target, such as the objective for the time per output token."""
    max_wait: SecondsOrZero = 1.0
    """With order `last`: who has waited this long for the encoder is encoded before the next step all the same. An assumption."""


class Pool(Block):
    """Replicas of one LLM on one kind of accelerator."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    """Unique in the scenario."""
    llm: Annotated[str, Field(min_length=1)]
    """Name in the catalogue (`fleetsim list llms`), or the path of a Hugging Face `config.json`."""
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Other LLMs that a replica may hold in its place, one at a time: `gateway.placement` decides which, and who runs when."""
    swap: ModelSwap = ModelSwap()
    """What changing from one LLM to another takes."""
    accelerator: Annotated[str, Field(min_length=1)]
    """Name in the catalogue (`fleetsim list accelerators`)."""
    parallelism: Parallelism = Parallelism()
    """Spread of one replica over accelerators."""
    min_replicas: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 1
    """Fewest that an autoscaler leaves; with 0, requests wait at the gateway until one has started."""
    max_replicas: Annotated[Count, Field(le=100_000)] | None = None
    """Most that an autoscaler asks for; default: as many as at the start."""
    replicas: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 1
    """How many, at the start; 0 where `max_replicas` lets some come."""
    autoscaler: Annotated[Choice, PolicyField("autoscalers")] | None = None
    """How many replicas are wanted; by default always as many as at the start."""
    forecaster: Annotated[Choice, PolicyField("forecasters")] | None = None
    """What demand its autoscaler expects, where that looks ahead; by default what it was last."""
    startup: Startup = Startup()
    """What another replica costs in time."""
    drain: Literal["wait", "migrate", "kill"] = "wait"
    """What becomes of the requests of a replica that is to go: they end there; they move to other replicas, running ones with their
    keys and values; or they are taken away and begin again elsewhere (`gateway.on_failure`)."""
    role: Literal["mixed", "prefill", "decode", "encode"] = "mixed"
    """Part of a request that these replicas compute: all of it, its prompt and first token, the tokens after that, or nothing but
    the encoding of its images."""
    encoder: Encoder | None = None
    """Encodes images; default: this pool cannot. A prompt whose replica has an encoder is encoded there, any other at the
    encoder with the fewest image tokens to do, from where the embeddings go to the prompt over the network."""
    kv_transfer: Literal["serial", "layerwise"] = "serial"
    """Keys and values of a prompt go to where its answer is computed when the prompt is done; or each layer's as soon as it is
    computed, so that only the last layer's, and what the network could not carry by then, are left to send. The latter assumes that
    the network does nothing else meanwhile, and that the place where they go has room for them from the beginning."""
    engine: Engine = Field(default_factory=Engine)
    """Inference engine."""
    link: str | None = None
    """Link between a replica's accelerators (`fleetsim list links`); default: what the accelerator has."""
    price: Annotated[float | Price, Timed("price", "USD/h", Price)] | None = None
    """Price of one accelerator: a number, a series by the hour, or `{term: spot, region: …}` as the catalogue lists it; default:
    what the catalogue says of the accelerator itself."""
    site: Annotated[str, Field(min_length=1)] | None = None
    """Where it stands: a name in `sites`, which then says what its energy costs."""
    power: PoolPower = PoolPower()
    """Clocks, caps and servers."""
    server: Server = Server()
    """Servers and their adapters, over which keys and values move."""

    @field_validator("replicas")
    @classmethod
    def _some(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and not info.data.get("max_replicas"):
            raise ValueError("must be at least 1, or max_replicas must be given")
        return value

    @property
    def most_replicas(self) -> int:
        """Replicas that there may be at a time."""
        return max(self.replicas, self.max_replicas or 0)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below replicas {self.replicas}")
        if self.encoder is not None and (self.autoscaler is not None or self.max_replicas is not None):
            raise ValueError(
                "autoscaler and max_replicas: pools with an encoder that change their size are not modelled"
            )
        if self.autoscaler is not None and self.min_replicas > self.replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above replicas {self.replicas}")
        return self

    @model_validator(mode="after")
    def _swaps_alone(self) -> Self:
        if not self.models:
            return self
        names = (self.llm, *self.models)
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'"{name}" is named twice among llm and models')
        kv = self.engine.kv
        for what, there in (
            (f"role: {self.role}", self.role != "mixed"),
            ("engine.kv.tiers", kv.tiers is not None),
            ("engine.kv.preemption.mode: swap", kv.preemption.mode == "swap"),
            (f"engine.kv.{kv.approximate}", bool(kv.approximate)),
            ("autoscaler or max_replicas", self.autoscaler is not None or self.max_replicas is not None),
            ("encoder", self.encoder is not None),
            ("drain: migrate", self.drain == "migrate"),
        ):
            if there:
                raise ValueError(f"models: replicas that change their LLM are not modelled with {what}")
        return self

    @model_validator(mode="after")
    def _encoders_encode(self) -> Self:
        if self.role == "encode" and self.encoder is None:
            raise ValueError("role: encode needs an encoder: such as {model: qwen2-vl-vit}")
        return self

    @model_validator(mode="after")
    def _approximate_stays(self) -> Self:
        if self.engine.kv.approximate and self.role != "mixed":
            raise ValueError(
                f"engine.kv.{self.engine.kv.approximate} needs role: mixed: moving approximate keys and values is not modelled"
            )
        return self


class Conversion(Block):
    """How a replica of one pool becomes one of another, on the accelerators that it has: another shape, another role."""

    source: Annotated[str, Field(min_length=1)]
    """Pool whose replicas turn …"""
    target: Annotated[str, Field(min_length=1)]
    """… into replicas of this one, of the same LLM on the same kind of accelerator, of which more or fewer may be needed."""
    requests: Literal["hand-over", "wait", "restart"] = "wait"
    """What becomes of the old replica's requests. `hand-over`: it serves until the new one is ready, which then goes on with them
    between two steps, their keys and values staying where they are as far as their accelerators stay; prompts that are computed in
    part, and who finds no room, begin again there. `wait`: it takes no more, and the change begins when the last has ended.
    `restart`: it stops at once, and they begin again elsewhere (`gateway.on_failure`)."""
    plan: SecondsOrZero = 0.0
    """Time to decide what goes where."""
    weights: Literal["none", "peer", "ssd", "host", "store"] = "none"
    """What is brought then: nothing; from the old accelerators what the new shape lacks (all weights of an accelerator that joins,
    and of one that stays what it holds more of than before); or all weights anew, from the drives of the server, the host's memory
    or the remote store, beside the old ones."""
    bandwidth: BytesPerSecond | None = None
    """With `peer`: the rate at which each accelerator receives; default: the weights go over the network like all else."""
    init: SecondsOrZero = 0.0
    """Then, until the new replica serves: engine start, graph capture, warm-up, or what is left of these."""
    accelerators: Literal["shared", "new"] = "shared"
    """Whether the new replica takes over the old one's accelerators, and only what it has more of is paid for before; or all of its
    own are new, and the old ones go afterwards."""


class PowerRow(Block):
    """Replicas whose power one manager looks after: those of a row, of a pool, or all of them."""

    manager: Annotated[Choice, PolicyField("power_managers")]
    """Sets clocks, caps, batch sizes and sleep states."""
    pools: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Whose replicas; default: all pools."""
    low_priority: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Of these pools, those that are slowed down first."""
    budget: Annotated[float, Quantity("power", "W", gt=0)] | None = None
    """Power that their accelerators and servers are to keep to together; default: no limit."""
    telemetry: SecondsOrZero = 0.0
    """Age of what the manager sees."""
    actuation: SecondsOrZero = 0.01
    """From its answer until it takes effect: milliseconds through the driver, up to 40 s through a server's management controller
    (POLCA, ASPLOS 2024). The default is an assumption."""
    brake: SecondsOrZero = 0.01
    """The same for a brake: 5 s through the management controller (POLCA)."""
    stall: SecondsOrZero = 0.0
    """Time for which a replica's next step waits when its clock or cap is set: tens of milliseconds where the driver is slow."""


CarbonIntensity = Annotated[float | Series, Timed("carbon intensity", "g/kWh")]
ElectricityPrice = Annotated[float | Series, Timed("price of energy", "USD/kWh")]


class Embodied(Block):
    """Greenhouse gases of making the accelerators, spread evenly over their lives."""

    per_accelerator: Annotated[float, Quantity("mass", "g", gt=0)] | None = None
    """Of one, in CO2 equivalents, with its share of the server; default: the catalogue's."""
    lifetime: Seconds = 157_680_000.0
    """For how long it is used; five years are an assumption."""


class Energy(Block):
    """What energy costs besides being drawn."""

    pue: Annotated[Number, Field(ge=1, le=10)] = 1.0
    """Power usage effectiveness: energy of the site over energy of its servers."""
    carbon_intensity: CarbonIntensity | None = None
    """Greenhouse gases of the grid, in CO2 equivalents: a number, or a series by the hour; without it no carbon is reported."""
    electricity_price: ElectricityPrice | None = None
    """Price of the site's energy, a number or a series, reported beside the price of the accelerators; without it none is."""
    embodied: Embodied | None = None
    """Carbon of making the accelerators, reported beside that of their energy; without it none is."""


class Site(Block):
    """A place with its own energy, from where others are some way off."""

    pue: Annotated[Number, Field(ge=1, le=10)] | None = None
    """As in `energy`; default: what stands there."""
    carbon_intensity: CarbonIntensity | None = None
    """As in `energy`; default: what stands there."""
    electricity_price: ElectricityPrice | None = None
    """As in `energy`; default: what stands there."""
    rtt: dict[Annotated[str, Field(min_length=1)], SecondsOrZero] = {}
    """Round trips to other sites by name; each pair of sites needs one, here or there."""
    local_rtt: SecondsOrZero = 0.001
    """Round trip of requests that come from here and are served here; an assumption."""
    wan: BytesPerSecond = 1.25e9
    """Link to the other sites, each way; 10 Gb/s are an assumption."""


class Decision(Block):
    """What deciding costs, about a request or about all that a router collects. By default each policy's own published figures."""

    time: SecondsOrZero | None = None
    """Time from a request's arrival at the gateway, or from the end of the window in which the router collected it, until it leaves
    for its replica."""
    energy: Annotated[float, Quantity("energy", "J", ge=0)] | None = None
    """Energy, charged to the request, or evenly to those that were decided about together."""
    workers: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 0
    """Decisions that are taken at a time; more wait. 0: as many as come."""


class KvCopies(Block):
    """Copies of the keys and values of running requests, from which these go on after a failure."""

    to: Literal["host", "other-host", "store"] = "other-host"
    """Memory of the replica's own server, which a failed engine leaves and a failed server takes along; of the next server of its
    pool; or the remote store (`network.store`)."""
    every: Seconds = 1.0
    """Time between two looks at what is not copied yet; an assumption."""
    min_tokens: Tokens = 64
    """Tokens that a request must have got since its last copy; an assumption."""
    capacity: Bytes | None = None
    """Room for copies at each place; what finds none is not copied. Default: no limit."""
    use: Literal["cheaper", "always"] = "cheaper"
    """Bring a copy where that is estimated to be faster than computing what it holds, or always."""


class OnFailure(Block):
    """What becomes of requests whose replica is gone."""

    retry: Flag = True
    """Send them to another replica, where the prompt and what was answered so far are computed again; if not, they have failed."""
    max_retries: Annotated[int, Field(ge=0, le=1000, strict=True)] = 3
    """Then they have failed."""
    detect: SecondsOrZero = 0.0
    """Time until the gateway notices: until then it sends more requests there, which are lost too."""
    unreachable: Literal["retry", "wait"] = "retry"
    """Requests whose replica cannot be reached over the network, but goes on: begin again elsewhere, as after a failure, while the
    replica goes on in vain until it hears of it; or wait for what it answers."""
    transfers: Literal["recompute", "wait"] = "recompute"
    """Keys and values that come to a cut in the network on their way: computed again once that is noticed, or waited for."""
    copies: KvCopies | None = None
    """From what requests go on that are sent again; by default prompt and answer so far are computed anew, as far as no cache or
    tier holds them."""


class Clients(Block):
    """What clients do that find no gateway: they try again, later each time. The defaults are assumptions, usual ones."""

    max_retries: Annotated[int, Field(ge=0, le=1000, strict=True)] = 10
    """Then the request has failed; with 0 at once."""
    first_wait: Seconds = 1.0
    """Longest wait before the second try."""
    factor: Annotated[Number, Field(ge=1, le=100)] = 2.0
    """How many times as long the next wait may be."""
    longest_wait: Seconds = 30.0
    """No wait is longer."""
    jitter: Ratio = 0.5
    """Part of a wait that is drawn, so that not all come back at once."""


class View(Block):
    """How old is what the gateway knows of the replicas."""

    freshness: Literal["exact", "sampled", "delayed"] = "exact"
    """`exact`: as it is; `sampled`: as it was at the last multiple of `period`; `delayed`: as it was `delay` ago."""
    period: Seconds = 1.0
    """Time between two samples."""
    delay: Seconds = 0.1
    """Age of what is delayed."""
    own_counts: Flag = True
    """Whether the gateway's own counts (outstanding requests and tokens) are exact all the same. Off: several gateways that do not
    talk to each other, each of which learns of what the others sent as late as of everything else."""


class Gateway(Block):
    """Where requests enter the fleet."""

    router: Annotated[Choice, _ROUTER] = Field(default_factory=lambda: _default(_ROUTER))
    """Chooses the replica (the one for the prompt, where prompts and answers are computed apart)."""
    decode_router: Annotated[Choice, PolicyField("routers")] | None = None
    """Chooses the replica for the answer, of pools that are not for prompts only; default: as `router`."""
    model_router: Annotated[Choice, PolicyField("model_routers")] | None = None
    """Chooses, for requests that name no LLM, which of `quality.models` answers, and whether others are asked too."""
    budget: Annotated[Choice, PolicyField("budgets")] | None = None
    """Decides how many samples, rounds and tokens each answer may take that the model router asks for; by default one answer as
    long as it is."""
    admission: Annotated[Choice, PolicyField("admissions")] | None = None
    """Who is let in, put off or turned away; by default everybody is let in."""
    predictor: Annotated[Choice, PolicyField("predictors")] | None = None
    """Expects output lengths, which orders of queues and other policies may use; by default nobody does."""
    placement: Annotated[Choice, PolicyField("placements")] | None = None
    """Decides, in the router's place, about replicas of pools with `models`: which LLM each holds, and which request runs there
    when; default: on-demand. Pools with one LLM stay the router's."""
    rebalancer: Annotated[Choice, PolicyField("rebalancers")] | None = None
    """Moves waiting or running requests between replicas; by default nobody does."""
    decision: Decision = Decision()
    """What deciding costs."""
    on_failure: OnFailure = OnFailure()
    """What becomes of requests whose replica fails, is killed or cannot be reached."""
    clients: Clients = Clients()
    """What clients do while there is no gateway."""
    timeout: Seconds | None = None
    """A request that has not ended this long after its arrival is given up."""
    first_token_timeout: Seconds | None = None
    """A request without a first token this long after its arrival is given up."""
    view: View = View()
    """How old is what policies see."""
    site: Annotated[str, Field(min_length=1)] | None = None
    """Where the gateway stands, in `sites`; default: a front end at each site, which all know the same."""


class RemoteStore(Block):
    """A pool of memory or disks that all servers reach over the network."""

    bandwidth: BytesPerSecond
    """Of all its machines together, each way."""
    capacity: Bytes | None = None
    """Keys and values that it holds of each LLM; default: no limit."""
    latency: SecondsOrZero = 5e-4
    """From a request until its first byte leaves; an assumption."""


class Network(Block):
    """What joins the servers. Transfers between replicas, host memories, drives and the store share its bandwidth."""

    servers_per_leaf: Count = 32
    """Servers on one group of leaf switches (one per rail); more are joined by a spine. 32 is usual with 8 GPUs a server."""
    oversubscription: Annotated[Number, Field(ge=1, le=1000)] = 1.0
    """Bandwidth of the servers below a leaf over that of its links to the spine; 1 does not block."""
    store: RemoteStore | None = None
    """Remote store; default: there is none."""
    gateway: BytesPerSecond = 12.5e9
    """Adapter of the gateway: 100 Gb/s."""


class Run(Block):
    """How to simulate and what to keep."""

    warmup_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the requests, by arrival, that are simulated but left out of the latency metrics."""
    horizon: Seconds | None = None
    """Stop here; requests still in flight end as `unfinished`. Default: when all are done."""
    interval: Interval = 10.0
    """Spacing of the rows of the `replicas` and `fleet` tables."""


class Scenario(Block):
    """A workload, a fleet, the rules between them, and how to run it."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of the scenario format."""
    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What this scenario is called in tables and reports."""
    description: str = ""
    """For people."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Root of every random stream."""
    workload: Workload
    """Who asks for what, when."""
    classes: dict[str, RequestClass] = {}
    """Classes of requests by name."""
    tenants: dict[str, Tenant] = {}
    """Tenants by name."""
    slo: Slo | None = None
    """Service-level objective."""
    gateway: Gateway = Field(default_factory=Gateway)
    """Where requests enter."""
    pools: Annotated[tuple[Pool, ...], Field(min_length=1)]
    """The fleet."""
    quality: Quality | None = None
    """How good the answers of each LLM are, for `gateway.model_router`; by default nobody asks."""
    autoscaler: Annotated[Choice, PolicyField("fleet_autoscalers")] | None = None
    """How many replicas of each pool are wanted, and which change their pool: of all pools together; by default each has its own
    autoscaler, or none."""
    conversions: tuple[Conversion, ...] = ()
    """Ways for replicas of one pool to become replicas of another, which `autoscaler` may take."""
    network: Network = Network()
    """What joins the servers."""
    faults: tuple[Annotated[Choice, PolicyField("faults")], ...] = ()
    """What breaks; each model by itself."""
    power: tuple[PowerRow, ...] = ()
    """Who sets clocks, caps, batch sizes and sleep states; each of its own pools."""
    energy: Energy = Energy()
    """What energy costs besides being drawn."""
    sites: dict[Annotated[str, Field(pattern=r"^[\w. -]{1,100}$")], Site] = {}
    """Places by name; with any, every pool stands at one."""
    run: Run = Run()
    """How to simulate."""

    @model_validator(mode="after")
    def _fleets_scale(self) -> Self:
        if not any(pool.replicas for pool in self.pools):
            raise ValueError("no pool has a replica at the start: give one of them replicas above 0")
        if self.conversions and self.autoscaler is None:
            raise ValueError("conversions: nobody asks for them: give an autoscaler of the fleet (`autoscaler`)")
        for pool in self.pools if self.autoscaler is None else ():
            if not pool.replicas and pool.autoscaler is None:
                raise ValueError(f'pool "{pool.name}" has no replica, and nobody asks for one: give it an autoscaler')
        for pool in self.pools if self.autoscaler is not None else ():
            if pool.autoscaler is not None:
                raise ValueError(f'pool "{pool.name}" has an autoscaler, and the fleet has one: one or the other')
            if pool.models or pool.encoder is not None:
                raise ValueError(
                    f'autoscaler: pool "{pool.name}" has models or an encoder: such pools do not change their size'
                )
            if pool.min_replicas > pool.replicas:
                raise ValueError(
                    f'pool "{pool.name}": min_replicas {pool.min_replicas} is above replicas {pool.replicas}'
                )
        return self

    @model_validator(mode="after")
    def _models_are_chosen(self) -> Self:
        if self.quality is None and self.gateway.model_router is not None:
            raise ValueError("gateway.model_router chooses among LLMs whose answers differ: say how in `quality`")
        if self.quality is None and self.gateway.budget is not None:
            raise ValueError(
                "gateway.budget is spent on answers that a model router asks for: give `quality` and the router"
            )
        if self.quality is not None and self.gateway.model_router is None:
            raise ValueError("quality: nobody chooses among the models: give `gateway.model_router`, such as `single`")
        return self

    @model_validator(mode="after")
    def _placements_place(self) -> Self:
        swapping = [pool for pool in self.pools if pool.models]
        gateway = self.gateway
        if gateway.placement is not None and not swapping:
            raise ValueError("gateway.placement chooses among the LLMs of a replica: give a pool `models`")
        if not swapping:
            return self
        if gateway.rebalancer is not None:
            raise ValueError(
                "gateway.rebalancer moves requests between replicas of one LLM: not where a pool has `models`"
            )
        for name in sorted({name for pool in swapping for name in (pool.llm, *pool.models)}):
            for pool in self.pools:
                if not pool.models and pool.llm == name:
                    raise ValueError(
                        f'"{name}" is served by pool "{pool.name}" for good and by pools with `models`: one or the other'
                    )
        for pool in swapping:
            if pool.swap.weights == "store" and self.network.store is None:
                raise ValueError(f'pool "{pool.name}": swap.weights: store needs network.store, at least its bandwidth')
        return self

    @model_validator(mode="after")
    def _approximate_stays(self) -> Self:
        for pool in self.pools:
            if self.gateway.rebalancer is not None and pool.engine.kv.approximate:
                raise ValueError(
                    "gateway.rebalancer moves keys and values, which is not modelled for pools with "
                    f"engine.kv.{pool.engine.kv.approximate}"
                )
        return self
