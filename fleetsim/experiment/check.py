"""Checks that need more than one field, or the catalogue: small functions yield findings, all reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.data import catalogue
from fleetsim.catalog.encoder import Encoder, load_encoder
from fleetsim.catalog.floors import Floors, floors
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import Llm, load_llm
from fleetsim.catalog.memory import MemoryPlan, memory_plan, parallelisms_that_fit
from fleetsim.catalog.own import own_of
from fleetsim.errors import DataError, Finding, InputError, ScenarioError, nearest
from fleetsim.experiment.check_elastic import conversions_can_be, pools_are_there
from fleetsim.experiment.check_energy import CHECKS
from fleetsim.experiment.check_faults import cuts_are_modelled
from fleetsim.experiment.check_quality import answers_can_be
from fleetsim.fleet.pool import describe_pool, encoder_bytes_per_accelerator, encoder_parallelism
from fleetsim.kernel.streams import Streams
from fleetsim.network.topology import layout_of
from fleetsim.plugins import Choice, load
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import (
    FixedTokens,
    Lengths,
    LognormalTokens,
    MixWorkload,
    Parallelism,
    Pool,
    QuantileTokens,
    Scenario,
    SloLimits,
    SyntheticWorkload,
    TraceWorkload,
    TreeSearchWorkload,
    Workload,
)
from fleetsim.units import show, show_bytes
from fleetsim.workload.build import build_workload
from fleetsim.workload.formats import locate
from fleetsim.workload.prefixes import blocks_compatible
from fleetsim.workload.profiles import load_profile

if TYPE_CHECKING:
    from fleetsim.workload import request as workloads

Findings = Iterator[Finding]


@dataclass(frozen=True, slots=True)
class Site:
    """A pool of the scenario with what the catalogue says about it."""

    loaded: LoadedScenario
    index: int
    pool: Pool
    llm: Llm
    accelerator: Accelerator

    @property
    def encoder(self) -> Encoder | None:
        """What encodes images here, if anything does."""
        return None if self.pool.encoder is None else load_encoder(self.pool.encoder.model)

    @property
    def plan(self) -> MemoryPlan:
        """Division of each accelerator's memory."""
        weights = encoder_bytes_per_accelerator(self.encoder, self.pool.parallelism)
        return memory_plan(self.llm, self.accelerator, self.pool.parallelism, self.pool.engine, weights)

    def finding(self, path: tuple[str | int, ...], message: str, hint: str = "", severity: str = "error") -> Finding:
        """A finding about a value of this pool."""
        return self.loaded.finding(("pools", self.index, *path), message, hint, severity)

    @property
    def floors(self) -> Floors:
        """Physical lower bounds of one replica."""
        return floors(self.llm, self.accelerator, self.pool.parallelism, self.pool.engine)


def check_scenario(loaded: LoadedScenario) -> list[Finding]:
    """Everything that is wrong or suspicious about a valid scenario, errors first.

    Parameters
    ----------
    loaded : LoadedScenario
        From `load_scenario`.

    Returns
    -------
    list of Finding
        Of severity ``error`` or ``warning``.
    """
    sites: list[Site] = []
    findings = list(_names_in_catalogue(loaded, sites))
    for check in _SCENARIO_CHECKS:
        findings += check(loaded)
    for site in sites:
        for pool_check in _POOL_CHECKS:
            findings += pool_check(site)
    if len(sites) == sum(1 + len(pool.models) for pool in loaded.scenario.pools):
        findings += _images_are_encoded(loaded, sites)
        findings += _slo_above_floors(loaded, [site for site in sites if site.pool.role != "encode"])
        findings += _halves_meet(sites)
        findings += conversions_can_be(loaded, sites)
    if not any(finding.severity == "error" for finding in findings):
        for site in sites:
            findings += _step_times_known(site)
    return sorted(dict.fromkeys(findings), key=lambda f: f.severity != "error")


def require_valid(loaded: LoadedScenario, force: bool = False) -> list[Finding]:
    """Warnings about a scenario.

    Parameters
    ----------
    loaded : LoadedScenario
        From `load_scenario`.
    force : bool
        Only warn of an SLO that no pool can keep.

    Raises
    ------
    ScenarioError
        If there are errors; it carries the warnings too.
    """
    findings = check_scenario(loaded)
    if force:
        findings = [replace(f, severity="warning") if f.path.startswith("slo") else f for f in findings]
    if any(f.severity == "error" for f in findings):
        raise ScenarioError(findings)
    return findings


def check_workload(loaded: LoadedScenario) -> list[Finding]:
    """What is wrong with the workload itself; a trace is read to its end.

    Parameters
    ----------
    loaded : LoadedScenario
        A scenario without errors of its own.
    """
    try:
        open_workload(loaded, Streams(loaded.scenario.seed))
    except InputError as error:
        return list(error.findings)
    return []


def open_workload(loaded: LoadedScenario, streams: Streams) -> workloads.Workload:
    """The workload of a scenario, checked to its end and against the fleet.

    Raises
    ------
    InputError
        If a trace cannot be read, has bad rows that are not to be skipped, or blocks that an engine's do not fit.
    """
    scenario = loaded.scenario
    served = {load_llm(name, loaded.base_dir).name for pool in scenario.pools for name in (pool.llm, *pool.models)}
    workload = build_workload(scenario.workload, loaded.base_dir, streams, served)
    findings = list(_trace_blocks_fit(loaded, getattr(workload, "block_tokens", frozenset())))
    if findings:
        raise ScenarioError(findings)
    return workload


def _trace_blocks_fit(loaded: LoadedScenario, traced: frozenset[int]) -> Findings:
    for path, own in _blocks_read(loaded.scenario):
        for tokens in sorted(size for size in traced if not blocks_compatible(size, own)):
            message = f"the trace names its prompts in blocks of {tokens} tokens: {own} neither divides that nor is a multiple"
            hint = f"such as {tokens}, or 16" if tokens % 16 == 0 else f"such as {tokens}"
            yield loaded.finding(path, message, hint)


def _blocks_read(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Sizes of the blocks [tokens] in which engines and routers (also one inside another) read prompts, and where they are set."""
    for index, pool in enumerate(scenario.pools):
        yield ("pools", index, "engine", "kv", "block_tokens"), pool.engine.kv.block_tokens
    path: tuple[str | int, ...] = ("gateway", "router")
    router: object = scenario.gateway.router
    while isinstance(router, Choice):
        own = getattr(router.config, "block_tokens", None)
        if isinstance(own, int):
            yield (*path, "block_tokens"), own
        path, router = (*path, "inner"), getattr(router.config, "inner", None)


# --- the catalogue ----------------------------------------------------------------------------------------------------


def _names_in_catalogue(loaded: LoadedScenario, sites: list[Site]) -> Findings:
    """Names that the catalogue lacks; pools whose names it has are added to `sites`."""
    for index, pool in enumerate(loaded.scenario.pools):
        where = ("pools", index)
        llms: list[tuple[str, Llm]] = []
        paths = [("llm",), *(("models", number) for number in range(len(pool.models)))]
        for name, own in zip((pool.llm, *pool.models), paths, strict=True):
            try:
                llms.append((name, load_llm(name, loaded.base_dir)))
            except DataError as error:
                yield from _retold(loaded, (*where, *own), error)
        try:
            accelerator = load_accelerator(pool.accelerator)
        except DataError as error:
            yield from _retold(loaded, (*where, "accelerator"), error)
            accelerator = None
        if pool.encoder is not None:
            try:
                load_encoder(pool.encoder.model)
            except DataError as error:
                yield from _retold(loaded, (*where, "encoder", "model"), error)
                continue
        for path, link in ((("link",), pool.link), (("server", "nic"), pool.server.nic)):
            try:
                load_link(link) if link is not None else None
            except DataError as error:
                yield from _retold(loaded, (*where, *path), error)
        if accelerator:
            for name, llm in llms:  # a replica must be able to be each of them
                sites.append(Site(loaded, index, pool.model_copy(update={"llm": name, "models": ()}), llm, accelerator))


def _retold(loaded: LoadedScenario, path: tuple[str | int, ...], error: DataError) -> Findings:
    """Findings about a file that the scenario names, told at the place that names it."""
    for found in error.findings:
        place = ":".join(str(part) for part in (Path(found.file).name, found.line) if part) if found.file else ""
        inside = f"{found.path}: {found.message}" if found.path else found.message
        yield loaded.finding(path, f"{place}: {inside}" if place else inside, found.hint)


# --- the scenario as a whole ------------------------------------------------------------------------------------------


def _pool_names_unique(loaded: LoadedScenario) -> Findings:
    counts = Counter(pool.name for pool in loaded.scenario.pools)
    seen: set[str] = set()
    for index, pool in enumerate(loaded.scenario.pools):
        if counts[pool.name] > 1 and pool.name in seen:
            message = f'another pool is called "{pool.name}" already'
            yield loaded.finding(("pools", index, "name"), message, "pools are told apart by name")
        seen.add(pool.name)


def _parts(
    workload: Workload,
) -> Iterator[tuple[tuple[str, ...], TraceWorkload | SyntheticWorkload | TreeSearchWorkload]]:
    """The workloads that there are, and where they stand in the scenario."""
    if isinstance(workload, MixWorkload):
        yield from ((("workload", "parts", name), part) for name, part in workload.parts.items())
    else:
        yield ("workload",), workload


def _trace_exists(loaded: LoadedScenario) -> Findings:
    for where, workload in _parts(loaded.scenario.workload):
        if isinstance(workload, TraceWorkload):
            yield from _file_exists(loaded, (*where, "path"), workload.path)


def _file_exists(loaded: LoadedScenario, where: tuple[str, ...], name: str) -> Findings:
    try:
        path = locate(name, loaded.base_dir)
    except DataError as error:
        yield from _retold(loaded, where, error)
        return
    try:
        if path.is_dir():
            yield loaded.finding(where, f"{name} is a folder, not a trace file")
        elif not path.exists():
            names = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
            hint = nearest(path.name, names, "in that folder") if names else f"there is no folder {path.parent}"
            yield loaded.finding(where, f"no such file: {name}", hint)
    except (OSError, ValueError) as error:
        yield loaded.finding(where, f"cannot be read: {error}")


def _model_is_served(loaded: LoadedScenario) -> Findings:
    served = {name for pool in loaded.scenario.pools for name in (pool.llm, *pool.models)}
    for where, workload in _parts(loaded.scenario.workload):
        model = workload.model
        if model is not None and model not in served:
            yield loaded.finding((*where, "model"), f'no pool serves "{model}"', nearest(model, served, "in the pools"))


def _store_is_there(loaded: LoadedScenario) -> Findings:
    for index, pool in enumerate(loaded.scenario.pools):
        tiers = pool.engine.kv.tiers
        if tiers is not None and tiers.store is not None and loaded.scenario.network.store is None:
            path = ("pools", index, "engine", "kv", "tiers", "store")
            yield loaded.finding(path, "the network has no store", "give network.store, at least its bandwidth")


def _copies_have_a_place(loaded: LoadedScenario) -> Findings:
    """Whether copies of keys and values can be made, and can lie where they are to."""
    scenario = loaded.scenario
    copies, path = scenario.gateway.on_failure.copies, ("gateway", "on_failure", "copies")
    if copies is None:
        return
    if copies.to == "store" and scenario.network.store is None:
        yield loaded.finding((*path, "to"), "the network has no store", "give network.store, at least its bandwidth")
    for pool in scenario.pools:
        approximate = pool.engine.kv.approximate
        if approximate or pool.models:
            what = "engine.kv." + approximate if approximate else "models"
            message = f'copies of keys and values are not modelled for pool "{pool.name}" with {what}'
            yield loaded.finding(path, message, "leave out copies, or that")
            continue
        if copies.to == "other-host" and pool.role != "encode":
            try:
                layout = layout_of(pool)
            except DataError:
                continue  # told where the catalogue is read
            if pool.most_replicas <= layout.replicas:
                message = f'all replicas of pool "{pool.name}" stand in one server: there is no other for copies'
                yield loaded.finding((*path, "to"), message, "take to: store or host, or smaller `server.accelerators`")


def _faults_have_a_target(loaded: LoadedScenario) -> Findings:
    """Whether the pools that faults name are there."""
    pools = [pool.name for pool in loaded.scenario.pools]
    for number, choice in enumerate(loaded.scenario.faults):
        own: list[tuple[tuple[str | int, ...], object]] = [
            (("faults", number, "pool"), getattr(choice.config, "pool", None))
        ]
        for place, incident in enumerate(getattr(choice.config, "incidents", ())):
            own.append((("faults", number, "incidents", place, "pool"), getattr(incident, "pool", None)))
        for path, name in own:
            if isinstance(name, str) and name not in pools:
                yield loaded.finding(path, f'there is no pool "{name}"', nearest(name, pools, "pools"))


def _profile_exists(loaded: LoadedScenario) -> Findings:
    for where, workload in _parts(loaded.scenario.workload):
        if isinstance(workload, SyntheticWorkload) and workload.profile is not None:
            try:
                load_profile(workload.profile)
            except DataError as error:
                yield from _retold(loaded, (*where, "profile"), error)


_NAME_CLASSES = frozenset({"bailian", "burstgpt", "parquet"})
"""Formats of traces that may say of which class a request is."""
_NAME_TENANTS = frozenset({"parquet"})


def _labels_occur(loaded: LoadedScenario) -> Findings:
    """Classes and tenants that no request can have: most likely a slip of the pen."""
    scenario = loaded.scenario
    parts = [part for _, part in _parts(scenario.workload)]
    classes: list[tuple[str, ...]] = [("classes", name) for name in scenario.classes]
    if scenario.slo is not None:
        classes += [("slo", "classes", name) for name in scenario.slo.classes]
    tenants: list[tuple[str, ...]] = [("tenants", name) for name in scenario.tenants]
    for paths, named, formats, what in (
        (classes, {part.klass for part in parts}, _NAME_CLASSES, "class"),
        (tenants, {part.tenant for part in parts}, _NAME_TENANTS, "tenant"),
    ):
        if any(isinstance(part, TraceWorkload) and part.format in formats for part in parts):
            continue
        known = sorted(name for name in named if name is not None)
        for path in paths:
            if path[-1] not in known:
                hint = nearest(path[-1], known, "in the workload") if known else f"set `{what}` in the workload"
                message = f'no request can be of {what} "{path[-1]}"'
                yield loaded.finding(path, message, hint, "warning")


def _rows_possible(loaded: LoadedScenario) -> Findings:
    """Whether each pool has one power manager at most, and one that can do something for it."""
    pools = {pool.name: pool for pool in loaded.scenario.pools}
    taken: dict[str, int] = {}
    for number, row in enumerate(loaded.scenario.power):
        where = ("power", number)
        own = row.pools or tuple(pools)
        named: list[tuple[tuple[str | int, ...], str, set[str]]] = []
        named += [((*where, "pools", place), name, set(pools)) for place, name in enumerate(row.pools)]
        named += [((*where, "low_priority", place), name, set(own)) for place, name in enumerate(row.low_priority)]
        stages = getattr(row.manager.config, "stages", ())
        for place, stage in enumerate(stages):
            inner = (*where, "manager", "stages", place, "pools")
            named += [((*inner, position), name, set(own)) for position, name in enumerate(stage.pools)]
        for path, name, known in named:
            if name not in known:
                yield loaded.finding(path, f'no pool "{name}" here', nearest(name, known, "pools"))
        for name in own:
            pool = pools.get(name)
            if pool is None:
                continue
            if name in taken:
                message = f'pool "{name}" has a power manager already, that of power[{taken[name]}]'
                yield loaded.finding((*where, "pools") if row.pools else where, message, "name the `pools` of each")
            taken[name] = number
            for what, there in (("models", bool(pool.models)), ("encoder", pool.encoder is not None)):
                if there:
                    message = f'pool "{name}": clocks, caps and sleep are not modelled with `{what}`'
                    yield loaded.finding((*where, "pools") if row.pools else where, message)
        policy = load(row.manager.kind, row.manager.name)
        if getattr(policy, "needs_budget", False) and row.budget is None:
            message = f'without a budget "{row.manager.name}" does nothing'
            yield loaded.finding((*where, "manager"), message, "set `budget`, such as 40 kW", "warning")
        if getattr(policy, "needs_sleep", False) and all(
            pools[name].power.sleep is None for name in own if name in pools
        ):
            message = f'"{row.manager.name}" has no sleep state to put replicas in'
            yield loaded.finding((*where, "manager"), message, "set `power.sleep` of a pool", "warning")


_SCENARIO_CHECKS: tuple[Callable[[LoadedScenario], Findings], ...] = (
    _pool_names_unique,
    *CHECKS,
    _trace_exists,
    _profile_exists,
    _store_is_there,
    _copies_have_a_place,
    _faults_have_a_target,
    cuts_are_modelled,
    _model_is_served,
    _labels_occur,
    pools_are_there,
    answers_can_be,
    _rows_possible,
)


# --- one pool ---------------------------------------------------------------------------------------------------------


def _step_times_known(site: Site) -> Findings:
    """What a step-time model lacks: files, packages, measurements of the chip."""
    try:
        describe_pool(site.pool, site.index, site.loaded.base_dir)
    except DataError as error:
        yield from _retold(site.loaded, ("pools", site.index, "engine", "step_time"), error)


def _calibration_holds(site: Site) -> Findings:
    """Whether the engine's calibration file can be used."""
    try:
        own_of(site.pool.engine.located(site.loaded.base_dir))
    except DataError as error:
        yield from _retold(site.loaded, ("pools", site.index, "engine", "calibration"), error)


def _fits_in_memory(site: Site) -> Findings:
    plan = site.plan
    if plan.fits or site.pool.role == "encode":
        return
    chip = f"{site.pool.accelerator} has {show_bytes(plan.total_bytes)}"
    usable = f"{show_bytes(plan.usable_bytes)} of it usable at memory_ratio {site.pool.engine.kv.memory_ratio:g}"
    weights = show_bytes(plan.weights_bytes)
    if plan.weights_bytes >= plan.usable_bytes:
        message = f"{site.pool.llm} does not fit: its weights need {weights} per accelerator, {chip} ({usable})"
    else:
        rest = show_bytes(plan.activations_bytes + plan.runtime_bytes)
        message = (
            f"{site.pool.llm} leaves no room for one KV block: weights {weights}, activations and runtime {rest}, "
            f"{chip} ({usable})"
        )
    yield site.finding(("parallelism",), message, _would_fit(site))


def _would_fit(site: Site) -> str:
    fitting = parallelisms_that_fit(site.llm, site.accelerator, site.pool.engine)[:3]
    if not fitting:
        return "no parallelism within reach fits: take a larger accelerator or narrower weights (engine.weights)"
    return f"would fit: parallelism {' or '.join(_spread(p) for p in fitting)}"


def _spread(parallelism: Parallelism) -> str:
    degrees = {k: v for k, v in parallelism.model_dump().items() if v > 1} or {"tp": 1}
    return "{" + ", ".join(f"{k}: {v}" for k, v in degrees.items()) + "}"


def _tensor_parallel_divides(site: Site) -> Findings:
    tp, heads, kv_heads = site.pool.parallelism.tp, site.llm.heads, site.llm.kv_heads
    path = ("parallelism", "tp")
    if heads % tp:
        yield site.finding(path, f"tp {tp} does not divide the {heads} attention heads of {site.pool.llm}")
    elif kv_heads % tp and tp % kv_heads and site.llm.attention != "mla":
        yield site.finding(
            path, f"tp {tp} and the {kv_heads} key-value heads of {site.pool.llm} do not divide each other"
        )
    elif tp > site.accelerator.per_node:
        message = f"tp {tp} spans nodes of {site.accelerator.per_node}, but is charged the link within a node"
        yield site.finding(path, message, "set `link` to the link between nodes", "warning")


def _pipeline_divides(site: Site) -> Findings:
    pp, layers = site.pool.parallelism.pp, site.llm.layers
    if pp > layers:
        yield site.finding(("parallelism", "pp"), f"{pp} stages, but {site.pool.llm} has {layers} layers")


def _experts_divide(site: Site) -> Findings:
    spread, llm = site.pool.parallelism, site.llm
    path, ranks = ("parallelism", "ep"), spread.tp * spread.dp
    if spread.ep == 1:
        return
    if not llm.is_moe:
        yield site.finding(path, f"{site.pool.llm} has no experts to spread", "leave ep out")
    elif ranks % spread.ep:
        yield site.finding(
            path, f"ep {spread.ep} does not divide tp x dp = {ranks}", "experts spread over tp x dp ranks"
        )
    elif llm.experts % spread.ep:
        yield site.finding(path, f"ep {spread.ep} does not divide the {llm.experts} experts of {site.pool.llm}")


def _seats_within_budget(site: Site) -> Findings:
    config = site.pool.engine.scheduler.config
    tokens, seats = getattr(config, "max_batched_tokens", None), getattr(config, "max_seqs", None)
    if isinstance(tokens, int) and isinstance(seats, int) and tokens < seats:
        message = f"max_batched_tokens {tokens} is below max_seqs {seats}: not every running request could get a token"
        yield site.finding(("engine", "scheduler", "max_batched_tokens"), message, "engines refuse to start this way")


def _arithmetic_exists(site: Site) -> Findings:
    dtype = site.llm.weights_dtype(site.pool.engine.weights)
    if dtype not in ("bf16", "fp16") and site.accelerator.arithmetic(dtype) != dtype and dtype != "int4":
        computed = site.accelerator.arithmetic(dtype)
        message = f"{site.pool.accelerator} has no {dtype} arithmetic: products are computed in {computed}"
        yield site.finding(("engine", "weights"), message, "memory is saved, arithmetic is not", "warning")


def _capacity_holds_a_block(site: Site) -> Findings:
    kv = site.pool.engine.kv
    if kv.capacity_tokens is not None and kv.capacity_tokens < kv.block_tokens:
        message = f"capacity_tokens {kv.capacity_tokens} is below one block of {kv.block_tokens} tokens"
        yield site.finding(("engine", "kv", "capacity_tokens"), message)


def _longest_request_fits(site: Site) -> Findings:
    longest = 0
    for _, workload in _parts(site.loaded.scenario.workload):
        if isinstance(workload, SyntheticWorkload) and not workload.sessions and workload.prompt_tokens:
            answer = _largest(workload.output_tokens) if workload.output_tokens else 1
            images = workload.images
            seen = 0 if images is None else _largest(images.per_request) * _largest(images.tokens)
            longest = max(longest, _largest(workload.prompt_tokens) + seen + answer)
        if isinstance(workload, TreeSearchWorkload):
            longest = max(longest, _largest(workload.prompt_tokens) + workload.max_tokens)
    if site.pool.role == "encode":
        return
    plan = site.plan
    context = site.llm.context_tokens
    if plan.fits and longest > plan.capacity_tokens and longest < 1_000_000:
        message = (
            f"requests may reach {longest:,} tokens, the KV cache holds {plan.capacity_tokens:,}: longer ones fail"
        )
        yield site.finding((), message, "", "warning")
    elif 0 < context < longest < 1_000_000:
        message = f"requests may reach {longest:,} tokens, {site.pool.llm} was made for {context:,}"
        yield site.finding(("llm",), message, "", "warning")


def _price_known(site: Site) -> Findings:
    if site.pool.price is None and site.accelerator.price_usd_per_h is None:
        message = f"nobody rents {site.pool.accelerator} by the hour: costs of this pool are counted as zero"
        yield site.finding(("accelerator",), message, "set `price`", "warning")


def _powers_possible(site: Site) -> Findings:
    power, chip = site.pool.power, site.accelerator
    if power.cap is not None and not chip.power.idle_w < power.cap <= chip.power.limit_w:
        limits = f"above its idle power of {show(chip.power.idle_w, 'W')}, at most its limit of {show(chip.power.limit_w, 'W')}"
        yield site.finding(("power", "cap"), f"{show(power.cap, 'W')} is no cap for {chip.name}: must be {limits}")
    if power.curve == "logistic" and chip.power.logistic is None:
        known = [name for name in catalogue("accelerator") if load_accelerator(name).power.logistic]
        hint = f"known for: {', '.join(sorted(known))}"
        yield site.finding(("power", "curve"), f"{chip.name} has no logistic power curve", hint)


def _heat_known(site: Site) -> Findings:
    """Whether the constants of a pool's heat are there and fit together."""
    thermal, chip = site.pool.power.thermal, site.accelerator
    if thermal is None:
        return
    path = ("power", "thermal")
    if site.pool.encoder is not None or site.loaded.scenario.pools[site.index].models:
        yield site.finding(path, "heat is not modelled for pools with an encoder or with `models`")
    needed = ("resistance", "capacity", "throttle", "resume", "throttled_clock")
    missing = [name for name in needed if getattr(thermal, name) is None]
    if chip.heat_sink is None and missing:
        known = [name for name in catalogue("accelerator") if load_accelerator(name).heat_sink]
        message = f"nobody says how {chip.name} is cooled: {', '.join(missing)} must be given"
        yield site.finding(path, message, f"known for: {', '.join(sorted(known))}")
        return
    sink = chip.heat_sink
    throttle_c = thermal.throttle if thermal.throttle is not None or sink is None else sink.throttle_c
    resume_c = thermal.resume if thermal.resume is not None or sink is None else sink.resume_c
    assert throttle_c is not None
    assert resume_c is not None
    if not thermal.ambient < resume_c < throttle_c:
        message = f"ambient {thermal.ambient:g} C, resume {resume_c:g} C and throttle {throttle_c:g} C must rise in this order"
        yield site.finding(path, message)


def _sleep_saves(site: Site) -> Findings:
    sleep, idle_w = site.pool.power.sleep, site.accelerator.power.idle_w
    if sleep is not None and sleep.power > idle_w:
        message = f"sleeping at {show(sleep.power, 'W')} takes more than {site.accelerator.name} does idle, {show(idle_w, 'W')}"
        yield site.finding(("power", "sleep", "power"), message, severity="warning")


def _encoder_fits(site: Site) -> Findings:
    """Whether an encoder alone fits, and whether it can be spread like the pool's replicas."""
    encoder = site.encoder
    if encoder is None:
        return
    spread = encoder_parallelism(encoder, site.pool.parallelism)
    if spread.tp != site.pool.parallelism.tp:
        message = (
            f"tp {site.pool.parallelism.tp} does not divide the {encoder.heads} heads of {encoder.name}: "
            "each accelerator has a copy of it, and one encodes"
        )
        yield site.finding(("encoder", "model"), message, severity="warning")
    needed = encoder_bytes_per_accelerator(encoder, site.pool.parallelism)
    usable = site.accelerator.memory_bytes * site.pool.engine.kv.memory_ratio
    if site.pool.role == "encode" and needed > usable:
        message = f"{encoder.name} does not fit: it needs {show_bytes(needed)}, {show_bytes(usable)} are usable"
        yield site.finding(("encoder", "model"), message, "take a larger accelerator")


def _tower_left_out(site: Site) -> Findings:
    if site.llm.left_out and site.encoder is None:
        message = f"{site.pool.llm} has more than a language model: its {site.llm.left_out} is left out"
        yield site.finding(("llm",), message, severity="warning")


def _order_has_what_it_needs(site: Site) -> Findings:
    """Orders of the queue that sort by what no request has."""
    order, scenario = site.pool.engine.order, site.loaded.scenario
    policy = load(order.kind, order.name)
    scheduler = site.pool.engine.scheduler
    if order.name != "fcfs" and getattr(load(scheduler.kind, scheduler.name), "own_order", False):
        message = f'scheduler "{scheduler.name}" puts the queue in an order of its own'
        yield site.finding(("engine", "order"), message, "leave it out, or choose another scheduler")
        return
    slo = scenario.slo
    limits = [] if slo is None else [slo.ttft, *(own.ttft for own in slo.classes.values())]
    for needed, there, what, hint in (
        (
            "needs_predictions",
            scenario.gateway.predictor is not None,
            "predicted output lengths",
            "set gateway.predictor",
        ),
        (
            "needs_deadlines",
            any(limit is not None for limit in limits),
            "deadlines",
            "set slo.ttft, or that of a class",
        ),
    ):
        if getattr(policy, needed, False) and not there:
            message = f'order "{order.name}" sorts by {what}, and there are none: all requests are alike to it'
            yield site.finding(("engine", "order"), message, hint, "warning")


_POOL_CHECKS: tuple[Callable[[Site], Findings], ...] = (
    _calibration_holds,
    _tensor_parallel_divides,
    _pipeline_divides,
    _experts_divide,
    _capacity_holds_a_block,
    _fits_in_memory,
    _seats_within_budget,
    _arithmetic_exists,
    _longest_request_fits,
    _price_known,
    _powers_possible,
    _heat_known,
    _sleep_saves,
    _encoder_fits,
    _tower_left_out,
    _order_has_what_it_needs,
)


# --- images ---------------------------------------------------------------------------------------------------------


def _images_are_encoded(loaded: LoadedScenario, sites: list[Site]) -> Findings:
    """Images need an encoder of their LLM's pools, and encoders somebody who computes what they encode."""
    by_llm: dict[str, list[Site]] = {}
    for site in sites:
        by_llm.setdefault(site.llm.name, []).append(site)
    for llm, group in by_llm.items():
        if all(site.pool.role == "encode" for site in group):
            yield group[0].finding(
                ("role",), f"no pool computes prompts of {llm}", "give another pool of it another role"
            )
        names = sorted({site.pool.encoder.model for site in group if site.pool.encoder is not None})
        if len(names) > 1:
            message = f"pools of {llm} have different encoders: {', '.join(names)}"
            yield group[0].finding(("encoder", "model"), message, "an LLM was trained with one of them", "warning")
    brought = False
    for where, part in _parts(loaded.scenario.workload):
        images = isinstance(part, SyntheticWorkload) and part.images is not None
        brought = brought or images or isinstance(part, TraceWorkload)
        if not images:
            continue
        asked = [s for s in sites if part.model is None or s.llm.name == part.model]
        if asked and not any(site.encoder is not None for site in asked):
            message = "requests have images, but no pool encodes them: all of these requests would be rejected"
            yield loaded.finding((*where, "images"), message, "give a pool an encoder, such as {model: qwen2-vl-vit}")
    for site in sites:
        if site.pool.role == "encode" and not brought:
            yield site.finding(("role",), "no request has images: these replicas have nothing to do", "", "warning")


# --- objectives against physics ---------------------------------------------------------------------------------------


def _halves_meet(sites: list[Site]) -> Findings:
    """Pools for prompts need pools for answers of the same LLM with the same format of keys and values, and the other way round."""
    by_llm: dict[str, list[Site]] = {}
    for site in sites:
        by_llm.setdefault(site.llm.name, []).append(site)
    for llm, group in by_llm.items():
        for site in group:
            role = site.pool.role
            other = {"prefill": "decode", "decode": "prefill"}.get(role)
            if other is None:
                continue
            partners = [g for g in group if g.pool.role not in (role, "mixed", "encode")]
            helpers = [g for g in group if g.pool.role not in (role, "encode")]
            what = "answers" if role == "prefill" else "prompts"
            if not helpers:
                yield site.finding(
                    ("role",),
                    f"no pool computes {what} of {llm}",
                    f'give another pool of it "role: {other}" or no role',
                )
            for partner in partners or helpers:
                own, theirs = (g.llm.kv_dtype(g.pool.engine.kv.dtype) for g in (site, partner))
                if own != theirs:
                    yield site.finding(
                        ("engine", "kv", "dtype"),
                        f'keys and values are {own} here and {theirs} in pool "{partner.pool.name}": they cannot be handed over',
                        "give both pools the same `engine.kv.dtype`",
                    )


def _slo_above_floors(loaded: LoadedScenario, sites: list[Site]) -> Findings:
    """Limits that no pool, or not every pool, can keep even alone with one short request."""
    slo = loaded.scenario.slo
    if slo is None:
        return
    yield from _limits_above_floors(loaded, sites, slo, ("slo",))
    for name, limits in slo.classes.items():
        yield from _limits_above_floors(loaded, sites, limits, ("slo", "classes", name))


def _limits_above_floors(
    loaded: LoadedScenario, sites: list[Site], limits: SloLimits, path: tuple[str | int, ...]
) -> Findings:
    parts = [part for _, part in _parts(loaded.scenario.workload)]
    shortest = min(_shortest_prompt(part) for part in parts)
    single = all(
        isinstance(part, SyntheticWorkload) and part.output_tokens and _largest(part.output_tokens) == 1
        for part in parts
    )
    for key, limit in (("ttft", limits.ttft), ("tpot", limits.tpot), ("e2el", limits.e2el)):
        if limit is None or (key == "tpot" and single):
            continue
        bounds = {s.pool.name: s.floors.tpot_s if key == "tpot" else s.floors.ttft_s(shortest) for s in sites}
        missed = {name: bound for name, bound in bounds.items() if limit < bound}
        if missed:
            name, bound = min(missed.items(), key=lambda item: item[1])
            every = len(missed) == len(bounds)
            whose = "every pool; the best" if every else "some pools; of those the best"
            message = (
                f"{show(limit * 1e3)} ms is below what physics allows in {whose}, {name}, needs {show(bound * 1e3)} ms"
            )
            hint = "more tp, faster memory or narrower weights would help; --force runs anyway"
            yield loaded.finding((*path, key), message, hint, "error" if every else "warning")


def _shortest_prompt(workload: TraceWorkload | SyntheticWorkload | TreeSearchWorkload) -> int:
    if isinstance(workload, TreeSearchWorkload):
        return _smallest(workload.prompt_tokens)
    if not isinstance(workload, SyntheticWorkload) or not workload.prompt_tokens:
        return 1
    return 1 if workload.prefixes or workload.sessions else _smallest(workload.prompt_tokens)


def _smallest(lengths: Lengths) -> int:
    if isinstance(lengths, FixedTokens):
        return lengths.value
    return lengths.min if isinstance(lengths, LognormalTokens) else int(lengths.values[0])


def _largest(lengths: Lengths) -> int:
    if isinstance(lengths, QuantileTokens):
        return int(lengths.values[-1])
    return lengths.value if isinstance(lengths, FixedTokens) else lengths.max
