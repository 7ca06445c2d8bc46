"""Validation errors in the user's words: where, what was found, what is allowed, and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fleetsim import plugins
from fleetsim.errors import Finding, nearest
from fleetsim.scenario.shape import ROOT, Shape
from fleetsim.scenario.source import Located, path_text, type_names

Path = tuple[str | int, ...]

_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_BRANCHES = ("tuple[", "dict[", "list[", "function-", "constrained-")
"""How pydantic names the alternatives of a value, which are no part of its path."""
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a block of keys",
    "mapping": "a block of keys",
    "model": "a block of keys",
    "is": "a block of keys",
}


def findings_of(error: ValidationError, tree: Located, root: Shape = ROOT) -> list[Finding]:
    """One finding per mistake, in the order of the file; `root` is what the file should be."""
    found = [
        _finding(detail, tree, root) for detail in error.errors(include_url=False) if not _echo(detail, tree, root)
    ]
    unique = {(f.path, f.message): f for f in found}
    return sorted(unique.values(), key=lambda f: (f.file, f.line or 0, f.column or 0))


def _echo(detail: ErrorDetails, tree: Located, root: Shape) -> bool:
    """Whether the error only repeats others: a list is called too short because items of it are wrong."""
    if detail["type"] != "too_short":
        return False
    node, exists = tree.descend(_without_variants(detail["loc"], tree, root))
    return exists and isinstance(node.value, list) and len(node.value) >= detail.get("ctx", {}).get("min_length", 0)


def place(tree: Located, path: Path, *, key: bool = False) -> dict[str, Any]:
    """Where a path stands, as fields of a finding; where it does not exist, the deepest block that does."""
    node, whole = tree.descend(path)
    if node.key_line is not None and (key or not whole):
        return {"file": node.file, "line": node.key_line, "column": node.key_column}
    return {"file": node.file, "line": node.line, "column": node.column}


def _finding(detail: ErrorDetails, tree: Located, root: Shape) -> Finding:
    path = _without_variants(detail["loc"], tree, root)
    around = _block_around(path, tree, root)
    kind, ctx = detail["type"], detail.get("ctx") or {}
    node, exists = tree.descend(path)
    value = node.value if exists else None
    if kind == "extra_forbidden":
        return _unknown_key(path, around, tree)
    if kind == "missing":
        return _finding_at(tree, path, f'"{path[-1]}" is missing', _described(around, path[-1]))
    if kind in ("union_tag_invalid", "union_tag_not_found", "policy_block", "unknown_policy"):
        return _variant(kind, path, ctx, tree, root)
    if kind in _LIMITS:
        limit, word = _LIMITS[kind]
        return _finding_at(tree, path, f"must be {word} {_number(ctx[limit])}, found {shown(value)}")
    if kind == "literal_error":
        return _not_one_of(path, value, str(ctx.get("expected", "")), tree)
    return _finding_at(tree, path, _message(kind, detail["msg"], ctx, value))


def _message(kind: str, message: str, ctx: Mapping[str, Any], value: object) -> str:
    if kind == "value_error":
        return str(ctx.get("error", message))
    if kind in ("too_short", "string_too_short"):
        return "must not be empty" if ctx.get("min_length") == 1 else f"needs at least {ctx.get('min_length')} values"
    if kind in ("too_long", "string_too_long"):
        return f"must be no longer than {ctx.get('max_length')}"
    expected = _EXPECTED.get(kind.split("_")[0])
    return f"expected {expected}, found {shown(value)}" if expected else f"{message}, found {shown(value)}"


def _block_around(path: Path, tree: Located, root: Shape) -> Shape | None:
    shape = shape_at(path[:-1], tree, root)
    return _chosen(shape, tree.descend(path[:-1])[0]) if shape else None


def shape_at(path: Path, tree: Located, root: Shape = ROOT) -> Shape | None:
    """Shape of the value at a path, the variants on the way chosen as the tree says."""
    shape: Shape | None = root
    node: Located | None = tree
    for step in path:
        shape = _chosen(shape, node).below(step) if shape else None
        node = node.child(step) if node else None
    return shape


def _chosen(shape: Shape, node: Located | None) -> Shape:
    return shape if node is None else shape.chosen(shape.variant_of(node))


def _without_variants(loc: Path, tree: Located, root: Shape) -> Path:
    """Path of an error's location: the names of variants taken out."""
    path: list[str | int] = []
    shape: Shape | None = root
    for step in loc:
        if isinstance(step, str) and step.startswith(_BRANCHES):
            continue
        if shape is not None and shape.variants():
            shape = shape.chosen(step)
            continue
        path.append(step)
        shape = shape_at(tuple(path), tree, root)
    return tuple(path)


def _finding_at(tree: Located, path: Path, message: str, hint: str = "") -> Finding:
    return Finding(message, path_text(path), hint=hint, **place(tree, path))


def _unknown_key(path: Path, shape: Shape | None, tree: Located) -> Finding:
    known = [*(shape.keys() if shape else []), *(["extends"] if shape is ROOT else [])]
    place_of_key = place(tree, path, key=True)
    message = f'unknown key "{str(path[-1])[:80]}"'
    return Finding(message, path_text(path), hint=nearest(str(path[-1]), known, "keys"), **place_of_key)


def _described(shape: Shape | None, name: str | int) -> str:
    if shape is None or shape.model is None:
        return ""
    fields = shape.model.model_fields
    return next((f.description or "" for key, f in fields.items() if name in (key, f.alias)), "")


def _variant(kind: str, path: Path, ctx: Mapping[str, Any], tree: Located, root: Shape) -> Finding:
    """A block whose ``kind``, ``policy`` … is missing or unknown."""
    shape = shape_at(path, tree, root) or root
    key = shape.discriminator or str(ctx.get("key"))
    known = plugins.names(shape.policy.kind) if shape.policy else list(shape.variants())
    block, exists = tree.descend(path)
    named = block.child(key) if exists else None
    given = named.value if named else block.value if isinstance(block.value, str) else None
    where = (*path, key) if named else path
    if not exists or not isinstance(given, str):
        plain_block = isinstance(block.value, dict) and not named
        found = f", found {shown(given or block.value)}" if exists and not plain_block else ""
        return _finding_at(tree, where, f"expected a block with `{key}: NAME`{found}", nearest("", known, key))
    if kind == "unknown_policy" and (":" in given or given in known):
        return _finding_at(tree, where, str(ctx.get("reason")), nearest(given, known))
    return _finding_at(tree, where, f'unknown {key} "{given[:80]}"', nearest(given, known))


def _not_one_of(path: Path, value: object, expected: str, tree: Located) -> Finding:
    known = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
    if len(known) == 1:
        return _finding_at(tree, path, f"must be {known[0]}, found {shown(value)}")
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"?' if close else ""
    return _finding_at(tree, path, f"must be one of {', '.join(known)}, found {shown(value)}", hint)


def shown(value: object) -> str:
    """A found value, short enough for a message."""
    if isinstance(value, dict | list):
        return type_names[type(value)]
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return f'"{text}"' if isinstance(value, str) else text


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
