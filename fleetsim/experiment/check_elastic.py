"""Findings about autoscalers of a whole fleet and about replicas that change their pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from fleetsim.catalog.memory import kv_bytes_per_token, weight_bytes_per_accelerator
from fleetsim.elasticity.api import NamesPool
from fleetsim.errors import Finding, nearest
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Conversion

if TYPE_CHECKING:
    from fleetsim.experiment.check import Site

Findings = Iterator[Finding]
_Path = tuple[str | int, ...]
GIB = 2.0**30


def pools_are_there(loaded: LoadedScenario) -> Findings:
    """Pools that the fleet's autoscaler and the conversions name."""
    scenario = loaded.scenario
    names = [pool.name for pool in scenario.pools]
    if scenario.autoscaler is not None:
        for path, name in _named(scenario.autoscaler.config):
            if name and name not in names:
                hint = nearest(name, names, "pools")
                yield loaded.finding(("autoscaler", *path), f'no pool is called "{name}"', hint)
    pairs: set[tuple[str, str]] = set()
    for index, way in enumerate(scenario.conversions):
        for key, name in (("source", way.source), ("target", way.target)):
            if name not in names:
                message = f'no pool is called "{name}"'
                yield loaded.finding(("conversions", index, key), message, nearest(name, names, "pools"))
        if way.source == way.target:
            yield loaded.finding(("conversions", index, "target"), "a pool's replicas cannot turn into its own")
        if (way.source, way.target) in pairs:
            message = f"there is another conversion from {way.source} to {way.target} already"
            yield loaded.finding(("conversions", index), message)
        pairs.add((way.source, way.target))


def _named(config: BaseModel) -> Iterator[tuple[_Path, str]]:
    """Names of pools among a policy's parameters, and where they stand."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        yield from _inside(value, (name,), any(map(_marked, (*field.metadata, field.annotation))))


def _marked(annotation: Any) -> bool:
    """Whether a type, or what is inside it, is that of names of pools."""
    return isinstance(annotation, NamesPool) or any(map(_marked, get_args(annotation)))


def _inside(value: Any, path: _Path, marked: bool) -> Iterator[tuple[_Path, str]]:
    if isinstance(value, str):
        if marked:
            yield path, value
    elif isinstance(value, BaseModel):
        yield from (((*path, *inner), name) for inner, name in _named(value))
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _inside(each, (*path, index), marked)


def conversions_can_be(loaded: LoadedScenario, sites: Sequence[Site]) -> Findings:
    """Both pools of a conversion must agree in what stays, and the change needs memory."""
    by_name = {site.pool.name: site for site in sites}
    for index, way in enumerate(loaded.scenario.conversions):
        old, new = by_name.get(way.source), by_name.get(way.target)
        if old is None or new is None or old is new:
            continue
        where: _Path = ("conversions", index)
        if new.pool.most_replicas <= new.pool.replicas and old.pool.most_replicas <= old.pool.replicas:
            hint = f"give it max_replicas above {new.pool.replicas}"
            yield loaded.finding(
                (*where, "target"), f'pool "{way.target}" has room for no more than it begins with', hint
            )
        if old.llm.name != new.llm.name or old.accelerator.name != new.accelerator.name:
            message = (
                f'"{way.source}" is {old.llm.name} on {old.accelerator.name}, "{way.target}" {new.llm.name} on '
                f"{new.accelerator.name}: what stays on its accelerators has the same LLM on the same kind"
            )
            yield loaded.finding(where, message)
            continue
        if way.weights == "store" and loaded.scenario.network.store is None:
            yield loaded.finding((*where, "weights"), "the network has no store", "give network.store, its bandwidth")
        if way.requests == "hand-over":
            yield from _hands_over(loaded, where, way, old, new)


def _hands_over(loaded: LoadedScenario, where: _Path, way: Conversion, old: Site, new: Site) -> Findings:
    """What goes on at the new replica must be what it was at the old one."""
    kv, other = old.pool.engine.kv, new.pool.engine.kv
    for what, mine, theirs in (
        ("role", old.pool.role, new.pool.role),
        ("engine.kv.block_tokens", kv.block_tokens, other.block_tokens),
        ("engine.kv.dtype", old.llm.kv_dtype(kv.dtype), new.llm.kv_dtype(other.dtype)),
    ):
        if mine != theirs:
            message = f'{what} is {mine} in "{way.source}" and {theirs} in "{way.target}": requests cannot go on there'
            yield loaded.finding((*where, "requests"), message, "take the same in both, or requests: wait")
    for site in (old, new):
        if site.pool.engine.kv.approximate:
            message = f"engine.kv.{site.pool.engine.kv.approximate}: moving approximate keys and values is not modelled"
            yield loaded.finding((*where, "requests"), message, "use requests: wait or restart")
    if way.accelerators == "shared":
        yield from _has_room(loaded, where, way, old, new)


def _has_room(loaded: LoadedScenario, where: _Path, way: Conversion, old: Site, new: Site) -> Findings:
    """While the change is under way, an accelerator of both holds the old weights and cache, and what is brought for the new."""
    before, after = (
        weight_bytes_per_accelerator(site.llm, site.pool.parallelism, site.pool.engine.weights) for site in (old, new)
    )
    plan = old.plan
    cache = plan.capacity_tokens * kv_bytes_per_token(old.llm, old.pool.parallelism, old.pool.engine.kv.dtype)
    held = plan.weights_bytes + plan.activations_bytes + plan.runtime_bytes + cache
    if way.weights in ("none", "peer"):
        brought, what = max(after - before, 0.0), "what the new shape has more of"
    else:
        theirs = new.plan.capacity_tokens * kv_bytes_per_token(new.llm, new.pool.parallelism, new.pool.engine.kv.dtype)
        brought, what = after + theirs, "the new replica's weights and cache"
    lacking = held + brought - plan.usable_bytes
    if brought and lacking > 0.0:
        message = (
            f"needs {(held + brought) / GIB:.1f} GiB of {plan.usable_bytes / GIB:.1f} GiB on an accelerator that both share: "
            f"{held / GIB:.1f} GiB of the old replica and {brought / GIB:.1f} GiB for {what}"
        )
        hint = f"leave {lacking / GIB:.1f} GiB free: a smaller engine.kv.capacity_tokens in its pools, or accelerators: new"
        yield loaded.finding((*where, "requests"), message, hint)
