"""Scenario text to a tree of located values: YAML 1.2 as plain data, every value with the place it came from.

Only mappings, lists and scalars come out of here. Tags are refused and never acted on; duplicate keys, unreadable
bytes, very deep and very large documents are findings. The tree, not plain Python values, is what inheritance and
``--set`` work on, so that a later finding can name the file and line even of a value that was inherited.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import ComposerError
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from fleetsim.errors import Finding, ScenarioError
from fleetsim.plugins import given
from fleetsim.scenario.template import embedded_scenarios

MAX_BYTES = 1 << 20
"""Largest scenario file that is read."""
MAX_VALUES = 100_000
"""Most values in a document once its aliases are followed."""
MAX_DEPTH = 60
"""Deepest nesting of blocks."""

_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = {f"{_CORE}{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp", "merge")}
_COLLECTION_TAGS = {f"{_CORE}map", f"{_CORE}seq"}

type_names = {dict: "a block", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Located:
    """A value and where it stands."""

    value: dict[str, Located] | list[Located] | str | int | float | None
    file: str = ""
    line: int | None = None
    column: int | None = None
    key_line: int | None = None
    """Line of the key that this is the value of, if it has one."""
    key_column: int | None = None

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, step: str | int) -> Located | None:
        """Value under a key or at an index, if there is one."""
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def descend(self, path: Iterable[str | int]) -> tuple[Located, bool]:
        """The deepest value that exists on `path`, and whether that is the end of it."""
        node = self
        for step in path:
            below = node.child(step)
            if below is None:
                return node, False
            node = below
        return node, True


def located(value: object, file: str = "") -> Located:
    """Tree of a plain value, all of it standing in one place; a policy's class in it is known by its name from then on."""
    if isinstance(value, type):
        value = given(value)
    if isinstance(value, Mapping):
        return Located({str(key): located(child, file) for key, child in value.items()}, file)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return Located([located(child, file) for child in value], file)
    return Located(value, file)  # type: ignore[arg-type]


def path_text(path: Iterable[str | int]) -> str:
    """A path as people write it: ``pools[0].engine.kv``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def read_tree(path: Path, shown: str) -> tuple[Located, list[Finding]]:
    """Tree of a YAML file, and what is wrong with it as far as it could be read.

    Parameters
    ----------
    path : Path
        The file.
    shown : str
        What findings call it.

    Raises
    ------
    ScenarioError
        If nothing can be made of the file.
    """
    return parse_tree(_read_text(path, shown), shown)


def parse_tree(text: str, shown: str) -> tuple[Located, list[Finding]]:
    """Tree of a YAML text; see `read_tree`."""
    root = _compose(text, shown)
    if root is None:
        raise ScenarioError(
            Finding("the file is empty", file=shown, hint="fleetsim init writes a scenario to start from")
        )
    builder = _Builder(shown)
    tree = builder.build(root)
    if not isinstance(tree.value, dict):
        findings = [f for f in builder.findings if "tag" in f.message]
        message = f"a scenario is a mapping of keys, found {_kind(tree.value)}"
        raise ScenarioError(findings or Finding(message, file=shown, line=tree.line, column=tree.column))
    return tree, builder.findings


def parse_value(text: str, shown: str) -> Located:
    """Value of an override: the right-hand side of ``--set path=value``, read as YAML."""
    builder = _Builder(shown)
    try:
        root = _compose(text, shown)
        tree = Located(None) if root is None else builder.build(root)
        if builder.findings:
            raise ScenarioError(builder.findings)
    except ScenarioError as error:
        raise ScenarioError([replace(finding, line=None, column=None) for finding in error.findings]) from None
    return located(tree.plain(), shown)


def _kind(value: object) -> str:
    return "nothing" if value is None else type_names[type(value)]


def _similar(path: Path) -> str:
    """Hint for a file that is not there: one of nearly the same name, or what there is instead."""
    if path.name in embedded_scenarios():
        return f"did you mean embedded:{path.name}?"
    try:
        names = {child.stem: child for child in sorted(path.parent.iterdir()) if child.suffix in (".yaml", ".yml")}
    except OSError:
        return f"there is no folder {path.parent} either"
    close = get_close_matches(path.stem, names, n=1)
    return f'did you mean "{names[close[0]]}"?' if close else "`fleetsim init` writes a scenario to start from"


def _read_text(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ScenarioError(Finding("no such file", file=shown, hint=_similar(path))) from None
    except IsADirectoryError:
        raise ScenarioError(Finding("this is a folder, not a scenario file", file=shown)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(Finding(f"cannot be read: {reason}", file=shown)) from None
    if len(data) > MAX_BYTES:
        raise ScenarioError(Finding(f"larger than {MAX_BYTES >> 20} MiB: not a scenario file", file=shown))
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise ScenarioError(Finding("holds NUL bytes: not a text file", file=shown, line=line))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ScenarioError(Finding(f"not UTF-8 text: byte 0x{data[error.start]:02x}", file=shown, line=line)) from None


def _compose(text: str, shown: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML 1.2 allows an anchor to be given anew
            return YAML(typ="safe", pure=True).compose(text)
    except ComposerError as error:
        several = "single document" in str(error.context)
        message = "holds more than one YAML document" if several else f"not valid YAML: {error.problem}"
        raise ScenarioError(_marked(message, error, shown)) from None
    except MarkedYAMLError as error:
        context = f" ({error.context})" if error.context else ""
        raise ScenarioError(_marked(f"not valid YAML: {error.problem}{context}", error, shown)) from None
    except RecursionError:
        raise ScenarioError(Finding("nested too deeply", file=shown)) from None
    except (YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:
        detail = " ".join(str(error).split())[:120]
        raise ScenarioError(Finding(f"not valid YAML: {detail or type(error).__name__}", file=shown)) from None


def _marked(message: str, error: MarkedYAMLError, shown: str) -> Finding:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Finding(message, file=shown)
    return Finding(message, file=shown, line=mark.line + 1, column=mark.column + 1)


class _Builder:
    """Turns composed YAML nodes into located values; collects findings on the way."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.findings: list[Finding] = []
        self._values = 0

    def build(self, node: Any, path: tuple[str | int, ...] = ()) -> Located:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ScenarioError(
                Finding(f"more than {MAX_VALUES:,} values once its aliases are followed", file=self.shown)
            )
        if len(path) > MAX_DEPTH:
            raise ScenarioError(self._finding("nested too deeply", node, path[:3]))
        if not self._tag_allowed(node, path):
            return self._at(node, self._stand_in(node))
        if isinstance(node, MappingNode):
            return self._at(node, self._mapping(node, path))
        if isinstance(node, SequenceNode):
            return self._at(node, [self.build(child, (*path, i)) for i, child in enumerate(node.value)])
        return self._at(node, _scalar(node))

    def _at(self, node: Any, value: Any) -> Located:
        return Located(value, self.shown, node.start_mark.line + 1, node.start_mark.column + 1)

    def _finding(self, message: str, node: Any, path: tuple[str | int, ...], hint: str = "") -> Finding:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        return Finding(message, path_text(path), self.shown, line, column, hint)

    def _tag_allowed(self, node: Any, path: tuple[str | int, ...]) -> bool:
        tag = str(node.tag)
        if tag in (_SCALAR_TAGS if isinstance(node, ScalarNode) else _COLLECTION_TAGS):
            return True
        name = f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else tag
        message = f"the tag {name[:80]} is refused: scenario files are data and run no code"
        self.findings.append(self._finding(message, node, path))
        return False

    @staticmethod
    def _stand_in(node: Any) -> Any:
        """Something of the right kind in place of a tagged value, so that the rest can still be checked."""
        return "tagged" if isinstance(node, ScalarNode | SequenceNode) else {}

    def _mapping(self, node: Any, path: tuple[str | int, ...]) -> dict[str, Located]:
        merged: dict[str, Located] = {}
        own: dict[str, Located] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == f"{_CORE}merge":
                merged.update({k: v for k, v in self._merged(value_node, path) if k not in merged})
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            child = self.build(value_node, (*path, key))
            if key in own:
                first = own[key].key_line
                message = f'the key "{key}" is given twice (first in line {first})'
                self.findings.append(self._finding(message, key_node, (*path, key), "keep one of the two"))
                continue
            own[key] = _with_key(child, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        return {**merged, **own}

    def _merged(self, node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str, Located]]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        for source in sources:
            if isinstance(source, MappingNode):
                value = self.build(source, (*path, "<<")).value
                assert isinstance(value, dict)
                yield from value.items()
            else:
                self.findings.append(self._finding("<< merges mappings, found something else", source, path))

    def _key(self, node: Any, path: tuple[str | int, ...]) -> str | None:
        if isinstance(node, ScalarNode) and self._tag_allowed(node, path):
            return str(node.value)
        if not isinstance(node, ScalarNode):
            self.findings.append(self._finding("a key must be plain text", node, path))
        return None


def _with_key(value: Located, line: int, column: int) -> Located:
    """The value under a key in that place; a value that starts on a later line is found where its key is."""
    keyed = replace(value, key_line=line, key_column=column)
    below = value.line is not None and value.line > line and not isinstance(value.value, str)
    return replace(keyed, line=line, column=column) if below else keyed


def _scalar(node: Any) -> str | int | float | None:
    kind, text = str(node.tag).removeprefix(_CORE), str(node.value)
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind == "int":
            return _integer(text.replace("_", ""))
        if kind == "float":
            return _floating(text.replace("_", "").lower())
    except ValueError:
        return text
    return text


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2].lower(), 10)
    return sign * int(digits if base == 10 else digits[2:], base)


def _floating(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))
