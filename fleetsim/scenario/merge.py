"""Inheritance (``extends``) and overrides (``--set``): both lay one tree over another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.scenario.shape import ROOT, Shape
from fleetsim.scenario.source import MAX_DEPTH, Located, located, parse_value, path_text, read_tree

MAX_PARENTS = 10
"""Longest chain of ``extends``."""

Overrides = str | Sequence[str] | Mapping[str, object]
"""Overrides as one or more ``path=value`` texts, or as values by path; a `Located` value keeps its place."""

_EXPECTED = "expected path=value, such as pools[0].replicas=3"
_STEP = re.compile(r"\.?([^.\[\]=]+)|\[(\d{1,9})\]")


def overlay(base: Located, over: Located, shape: Shape | None) -> Located:
    """`over` laid over `base`.

    Mappings are merged key by key and pools by name; any other list, and a block whose variant changes (another
    ``policy``, ``kind``, ``process`` …), replaces what was there.
    """
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        chosen = shape.chosen(shape.variant_of(base)) if shape else None
        if shape and shape.discriminator in over.value and shape.variant_of(over) != shape.variant_of(base):
            return over
        merged = dict(base.value)
        for name, child in over.value.items():
            before = merged.get(name)
            merged[name] = child if before is None else overlay(before, child, chosen.below(name) if chosen else None)
        return replace(base, value=merged)
    if isinstance(base.value, list) and isinstance(over.value, list) and shape == ROOT.below("pools"):
        return replace(over, value=_pools(base.value, over.value))
    if isinstance(over.value, dict) and shape and shape.policy and isinstance(base.value, str):
        named = replace(base, value={shape.policy.key: base})
        return overlay(named, over, shape)
    return over


def _name(pool: Located) -> object:
    child = pool.child("name")
    return child.value if child else None


def _pools(base: list[Located], over: list[Located]) -> list[Located]:
    merged = list(base)
    places = {_name(pool): i for i, pool in enumerate(base)}
    shape = ROOT.below("pools")
    for pool in over:
        place = places.get(_name(pool))
        if place is None or _name(pool) is None:
            merged.append(pool)
        else:
            merged[place] = overlay(merged[place], pool, shape.below(0) if shape else None)
    return merged


# --- extends ----------------------------------------------------------------------------------------------------------


def read_with_parents(path: Path, shown: str) -> tuple[Located, list[Finding]]:
    """Tree of a scenario file laid over the files that it extends."""
    return _read(path, shown, ())


def _read(path: Path, shown: str, chain: tuple[Path, ...]) -> tuple[Located, list[Finding]]:
    tree, findings = read_tree(path, shown)
    assert isinstance(tree.value, dict)
    parent = tree.value.pop("extends", None)
    if parent is None:
        return tree, findings
    chain = (*chain, path.resolve())
    try:
        base, more = _parent(parent, path, shown, chain)
    except ScenarioError as error:
        raise ScenarioError([*findings, *error.findings]) from None
    return overlay(base, tree, ROOT), [*findings, *more]


def _parent(parent: Located, child: Path, shown: str, chain: tuple[Path, ...]) -> tuple[Located, list[Finding]]:
    if not isinstance(parent.value, str) or not parent.value:
        raise ScenarioError(_at(parent, "extends", "expected the path of a scenario file"))
    path = child.parent / parent.value
    if path.resolve() in chain:
        raise ScenarioError(_at(parent, "extends", f"{parent.value} extends this file again: a cycle"))
    if len(chain) > MAX_PARENTS:
        raise ScenarioError(_at(parent, "extends", f"more than {MAX_PARENTS} files extend each other"))
    if not path.is_file():
        raise ScenarioError(_at(parent, "extends", f"no such file: {parent.value}"))
    tree, findings = _read(path, os.path.join(os.path.dirname(shown), parent.value), chain)
    return _moved(tree, path.parent, child.parent), findings


def _at(node: Located, path: str, message: str, hint: str = "") -> Finding:
    return Finding(message, path, node.file, node.line, node.column, hint)


def _moved(tree: Located, source: Path, target: Path) -> Located:
    """The tree with its relative file names, so far relative to `source`, made relative to `target`."""
    prefix = os.path.relpath(source.resolve(), target.resolve())
    if prefix == "." or not isinstance(tree.value, dict):
        return tree
    moved = dict(tree.value)
    if "workload" in moved:
        moved["workload"] = _moved_key(moved["workload"], "path", prefix, is_trace_file)
    pools = moved.get("pools")
    if pools is not None and isinstance(pools.value, list):
        moved["pools"] = replace(pools, value=[_moved_key(pool, "llm", prefix, is_llm_file) for pool in pools.value])
    return replace(tree, value=moved)


def _moved_key(block: Located, key: str, prefix: str, is_file: Callable[[str], bool]) -> Located:
    child = block.child(key)
    if child is None or not isinstance(child.value, str) or not is_file(child.value):
        return block
    path = child.value if os.path.isabs(child.value) else os.path.normpath(os.path.join(prefix, child.value))
    assert isinstance(block.value, dict)
    return replace(block, value={**block.value, key: replace(child, value=path)})


def is_trace_file(path: str) -> bool:
    """Whether `workload.path` names a file rather than a trace that fleetsim carries."""
    return not path.startswith("embedded:")


def is_llm_file(llm: str) -> bool:
    """Whether a pool's `llm` names a ``config.json`` rather than an entry of the catalogue."""
    return "/" in llm or llm.endswith(".json")


# --- overrides --------------------------------------------------------------------------------------------------------


def override(tree: Located, overrides: Overrides) -> tuple[Located, list[Finding]]:
    """The tree with ``--set path=value`` overrides laid over it in order, and those that could not be."""
    findings: list[Finding] = []
    if isinstance(overrides, str):
        overrides = (overrides,)
    for given in overrides.items() if isinstance(overrides, Mapping) else overrides:
        try:
            path, value = _split(given) if isinstance(given, str) else given
            shown = " ".join(f"--set {path}={value}".split())[:120]
            node = value if isinstance(value, Located) else _read_value(value, shown)
            tree = _assign(tree, path_steps(path, node.file or shown), node, ROOT, ())
        except ScenarioError as error:
            findings.extend(_placed(finding, given) for finding in error.findings)
    return tree, findings


def _placed(finding: Finding, given: str | tuple[str, object]) -> Finding:
    """The finding with the place of the value that was to be laid over, if that is known."""
    value = None if isinstance(given, str) else given[1]
    if finding.line is not None or not isinstance(value, Located):
        return finding
    return replace(finding, line=value.line, column=value.column)


def _read_value(value: object, shown: str) -> Located:
    return parse_value(value, shown) if isinstance(value, str) else located(value, shown)


def _split(text: str) -> tuple[str, object]:
    path, equals, value = text.partition("=")
    if not equals:
        raise ScenarioError(Finding(_EXPECTED, file=f"--set {text}"[:120]))
    return path.strip(), value


def path_steps(path: str, shown: str) -> list[str | int]:
    """Keys and indices of a path such as ``pools[0].replicas``; `shown` is where findings say that it stands."""
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            break
        steps.append(int(match[2]) if match[2] else match[1].strip())
        at = match.end()
    if at < len(path) or not steps or len(steps) > MAX_DEPTH:
        raise ScenarioError(Finding(_EXPECTED, file=shown))
    return steps


def _assign(
    node: Located, steps: list[str | int], value: Located, shape: Shape | None, done: tuple[str | int, ...]
) -> Located:
    if not steps:
        return overlay(node, value, shape)
    step, rest = steps[0], steps[1:]
    if isinstance(node.value, list):
        index = _index(node, step, value.file, done)
        items = list(node.value)
        items[index] = _assign(items[index], rest, value, shape.below(index) if shape else None, (*done, index))
        return replace(node, value=items)
    if isinstance(step, int):
        raise ScenarioError(Finding(f"{path_text(done) or 'the scenario'} is not a list", file=value.file))
    if isinstance(node.value, dict) and step in node.value and not _chooses_variant(step, shape):
        chosen = shape.chosen(shape.variant_of(node)) if shape else None
        below = _assign(node.value[step], rest, value, chosen.below(step) if chosen else None, (*done, step))
        return replace(node, value={**node.value, step: below})
    return overlay(node, _nested(steps, value), shape)


def _chooses_variant(step: str, shape: Shape | None) -> bool:
    return shape is not None and shape.discriminator == step


def _nested(steps: list[str | int], value: Located) -> Located:
    for step in reversed(steps):
        value = Located([value] if isinstance(step, int) else {step: value}, value.file)
    return value


def _index(node: Located, step: str | int, shown: str, done: tuple[str | int, ...]) -> int:
    assert isinstance(node.value, list)
    where = path_text(done)
    if isinstance(step, int):
        if step < len(node.value):
            return step
        last = len(node.value) - 1
        message = f"there is no {where}[{step}]: the last is {where}[{last}]" if last >= 0 else f"{where} is empty"
        raise ScenarioError(Finding(message, file=shown))
    named = {str(_name(item)): i for i, item in enumerate(node.value) if _name(item) is not None}
    if step not in named:
        raise ScenarioError(
            Finding(f'{where} has no item named "{step}"', file=shown, hint=nearest(step, named, where))
        )
    return named[step]
