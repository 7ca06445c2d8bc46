"""Axes of a sweep: which values which paths of the scenario take, and which combinations of them.

::

    axes:
      gateway.router: [round-robin, {policy: power-of-two-choices}]           # a path alone: every value with every other
      workload.arrivals.rate: {log-range: [10 req/s, 80 req/s], points: 4}    # or range; `step` instead of `points`
      grid: {pools[0].replicas: {range: [2, 8], step: 2}}                     # the same, as a block
      zip: {pools[0].accelerator: [h100-sxm, l40s], pools[0].price: [2.5 USD/h, 0.9 USD/h]}     # side by side
      list: [{run.horizon: 60 s}, {run.horizon: 90 s, pools[0].replicas: 9}]  # written out
      random: {draws: 20, stream: wide, over: {seed: {range: [1, 1000]}}}     # drawn; range, log-range or a list to choose from

All blocks are combined with each other; `axes` may also be a list of such mappings, where a kind of block is needed twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.explain import shown
from fleetsim.scenario.source import Located, located, parse_value

MAX_COMBINATIONS = 100_000
"""More are taken for a mistake."""
DIGITS = 6
"""Significant digits of a value between the ends of a range, so that names and tables stay readable."""
BLOCKS = ("grid", "zip", "list", "random")
RANGES = ("range", "log-range")
STREAM = "random"

Combination = dict[str, Located]
"""Values by path; where a scenario would have them, as `--set` takes them."""

_QUANTITY = re.compile(r"^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*)$")


def combinations(axes: Located, seed: int) -> list[Combination]:
    """Every combination, in the order of the file: the last axis varies fastest.

    Parameters
    ----------
    axes : Located
        What stands under ``axes``.
    seed : int
        Root of the streams of random axes.

    Raises
    ------
    ScenarioError
        With the place of what cannot be used.
    """
    blocks: list[list[Combination]] = []
    taken: dict[str, Located] = {}
    for part in axes.value if isinstance(axes.value, list) else [axes]:
        if not isinstance(part.value, dict):
            raise _error(
                part, "axes", f"expected paths with their values, or {', '.join(BLOCKS)}; found {shown(part.value)}"
            )
        for name, node in part.value.items():
            block = _block(name, node, seed)
            for path in dict.fromkeys(path for one in block for path in one):
                if path in taken:
                    hint = f"its other values are in line {taken[path].line}" if taken[path].line else ""
                    raise _error(node, f"axes.{path}", "this path is varied twice", hint)
                taken[path] = node
            blocks.append(block)
    count = math.prod(len(block) for block in blocks)
    if count > MAX_COMBINATIONS:
        raise _error(axes, "axes", f"{count:,} combinations: more than {MAX_COMBINATIONS:,} are taken for a mistake")
    return [{path: value for one in chosen for path, value in one.items()} for chosen in product(*blocks)]


def _block(name: str, node: Located, seed: int) -> list[Combination]:
    if name not in BLOCKS:
        return [{name: value} for value in _values(node, name)]
    if name == "list":
        return _written_out(node)
    if name == "random":
        return _drawn(node, seed)
    if not isinstance(node.value, dict) or not node.value:
        raise _error(node, f"axes.{name}", f"expected paths with their values, found {shown(node.value)}")
    columns = {path: _values(child, path) for path, child in node.value.items()}
    if name == "grid":
        return [dict(zip(columns, chosen, strict=True)) for chosen in product(*columns.values())]
    lengths = {path: len(values) for path, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{path} has {length}" for path, length in lengths.items())
        raise _error(node, "axes.zip", f"values that go side by side are equally many: {told}")
    return [dict(zip(columns, chosen, strict=True)) for chosen in zip(*columns.values(), strict=True)]


def _written_out(node: Located) -> list[Combination]:
    if not isinstance(node.value, list) or not node.value:
        raise _error(node, "axes.list", f"expected a list of blocks `path: value`, found {shown(node.value)}")
    written = []
    for item in node.value:
        if not isinstance(item.value, dict) or not item.value:
            raise _error(item, "axes.list", f"expected a block `path: value`, found {shown(item.value)}")
        written.append(dict(item.value))
    return written


# --- values of one path -----------------------------------------------------------------------------------------------


def _values(node: Located, path: str) -> list[Located]:
    """Values that a path takes one after the other."""
    if isinstance(node.value, list) and node.value:
        return list(node.value)
    span = _span(node, path)
    if span is None:
        hint = "a path takes a list of values, {range: [low, high], points: n} or {log-range: [low, high], points: n}"
        raise _error(node, f"axes.{path}", f"expected several values, found {shown(node.value)}", hint)
    if "step" in node.value:  # type: ignore[operator]
        return _stepped(node, path, span)
    points = _whole(node, path, "points", 2)
    shares = [i / (points - 1) for i in range(points)]
    return list(dict.fromkeys(span.at(share) for share in shares))


def _stepped(node: Located, path: str, span: Span) -> list[Located]:
    if span.log:
        raise _error(node, f"axes.{path}", "a log-range has points, no step")
    if node.child("points") is not None:
        raise _error(node, f"axes.{path}", "give points or step, not both")
    step, unit = _number(node.child("step"), node, path)
    if unit not in ("", span.unit) or step <= 0:
        raise _error(node, f"axes.{path}", f"step must be above 0, in the unit of the range ({span.unit or 'none'})")
    count = math.floor((span.high - span.low) / step * (1 + 1e-12)) + 1
    if count > MAX_COMBINATIONS:
        raise _error(node, f"axes.{path}", f"{count:,} values: more than {MAX_COMBINATIONS:,} are taken for a mistake")
    exact = span.whole and step == int(step)
    span = replace(span, whole=exact)
    return [span.located(span.low + i * step) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Span:
    """The values between two ends."""

    low: float
    high: float
    unit: str
    whole: bool
    """Both ends are whole numbers, written so: then so are the values."""
    log: bool
    node: Located

    def at(self, share: float) -> Located:
        """The value at a share of the way; on the logarithmic scale if that is the kind."""
        if share in (0.0, 1.0):
            return self.located((self.low, self.high)[int(share)])
        if self.log:
            return self.located(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self.located(self.low + share * (self.high - self.low))

    def located(self, value: float) -> Located:
        """A value as it would stand in the file, in the place of the range."""
        number: int | float = value if value in (self.low, self.high) else float(f"{value:.{DIGITS}g}")
        if self.whole or (self.unit and number == int(number)):
            number = round(number)
        return replace(self.node, value=f"{number!r} {self.unit}" if self.unit else number)


def _span(node: Located, path: str, extra: tuple[str, ...] = ("points", "step")) -> Span | None:
    """The range that a block states; None if it states none."""
    kinds = [kind for kind in RANGES if isinstance(node.value, dict) and kind in node.value]
    if not kinds:
        return None
    assert isinstance(node.value, dict)
    allowed = (kinds[0], *extra)
    for key, child in node.value.items():
        if key not in allowed:
            raise _error(child, f"axes.{path}.{key}", f'unknown key "{key}"', nearest(key, allowed, "keys"))
    ends = node.value[kinds[0]]
    if not isinstance(ends.value, list) or len(ends.value) != 2:
        raise _error(ends, f"axes.{path}.{kinds[0]}", f"expected [low, high], found {shown(ends.value)}")
    (low, unit), (high, other) = (_number(end, node, path) for end in ends.value)
    log = kinds[0] == "log-range"
    if unit != other:
        raise _error(
            ends,
            f"axes.{path}.{kinds[0]}",
            f"both ends have the same unit, found {unit or 'none'} and {other or 'none'}",
        )
    if not low < high or (log and low <= 0):
        raise _error(ends, f"axes.{path}.{kinds[0]}", f"expected low < high{' and low > 0' if log else ''}")
    whole = not unit and all(isinstance(end.value, int) for end in ends.value)
    return Span(low, high, unit, whole, log, replace(ends, value=None))


def _number(node: Located | None, around: Located, path: str) -> tuple[float, str]:
    """Number and unit of an end."""
    value = node.value if node is not None else None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value), ""
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None:
        found = shown(node.value) if node is not None else "nothing"
        raise _error(
            node or around, f"axes.{path}", f"expected a number, with a unit where the field has one; found {found}"
        )
    return float(match[1].replace("_", "")), match[2].strip()


def _whole(node: Located, path: str, key: str, least: int) -> int:
    child = node.child(key)
    value = child.value if child is not None else None
    if not isinstance(value, int) or isinstance(value, bool) or value < least or value > MAX_COMBINATIONS:
        found = shown(child.value) if child is not None else "nothing"
        raise _error(child or node, f"axes.{path}.{key}", f"expected a whole number of at least {least}, found {found}")
    return value


@dataclass(frozen=True, slots=True)
class Choices:
    """Values to choose from."""

    values: tuple[Located, ...]


def choices_of(node: Located, path: str) -> Choices | Span:
    """What a search may choose from: a list, or anything between the ends of a range.

    Raises
    ------
    ScenarioError
        If it is neither.
    """
    if isinstance(node.value, list) and node.value:
        return Choices(tuple(node.value))
    span = _span(node, path, ())
    if span is None:
        hint = "a list to choose from, {range: [low, high]} or {log-range: [low, high]}"
        raise _error(node, f"axes.{path}", f"expected something to choose from, found {shown(node.value)}", hint)
    return span


# --- random -----------------------------------------------------------------------------------------------------------


def _drawn(node: Located, seed: int) -> list[Combination]:
    if not isinstance(node.value, dict):
        raise _error(node, "axes.random", f"expected draws, over and perhaps stream; found {shown(node.value)}")
    allowed = ("draws", "stream", "over")
    for key, child in node.value.items():
        if key not in allowed:
            raise _error(child, f"axes.random.{key}", f'unknown key "{key}"', nearest(key, allowed, "keys"))
    draws = _whole(node, "random", "draws", 1)
    stream = node.value.get("stream", Located(STREAM))
    if not isinstance(stream.value, str) or not stream.value:
        raise _error(stream, "axes.random.stream", f"expected a name, found {shown(stream.value)}")
    over = node.value.get("over")
    if over is None or not isinstance(over.value, dict) or not over.value:
        raise _error(
            over or node, "axes.random.over", "expected paths with a range, a log-range or a list to choose from"
        )
    streams = Streams(seed)
    columns = [_draws(child, path, draws, streams, stream.value) for path, child in over.value.items()]
    return [dict(zip(over.value, chosen, strict=True)) for chosen in zip(*columns, strict=True)]


def _draws(node: Located, path: str, draws: int, streams: Streams, stream: str) -> list[Located]:
    """Values of one path, from a stream of its own: another path beside it changes none of them."""
    generator = streams.get(f"sweep.{stream}.{path}")
    if isinstance(node.value, list) and node.value:
        return [node.value[i] for i in generator.integers(len(node.value), size=draws)]
    span = _span(node, path, ())
    if span is None:
        raise _error(
            node, f"axes.{path}", f"expected a range, a log-range or a list to choose from, found {shown(node.value)}"
        )
    if span.whole and not span.log:
        return [span.located(float(n)) for n in generator.integers(int(span.low), int(span.high), draws, endpoint=True)]
    return [span.at(float(share)) for share in generator.random(draws)]


# --- the command line -------------------------------------------------------------------------------------------------


def axis_of(text: str) -> tuple[str, Located]:
    """Path and values of ``--axis PATH=A,B,…``; a unit behind the last number counts for those before it.

    Raises
    ------
    ScenarioError
        If it is not of that form.
    """
    path, equals, values = text.partition("=")
    place = f"--axis {text}"[:120]
    if not equals or not path.strip() or not values.strip():
        message = "expected PATH=VALUE,VALUE,… such as gateway.router=round-robin,power-of-two-choices"
        raise ScenarioError(Finding(message, file=place))
    node = parse_value(f"[{values}]", place)
    assert isinstance(node.value, list)
    only = node.value[0] if len(node.value) == 1 else None
    if only is not None and (isinstance(only.value, list) or _states_range(only)):
        return path.strip(), only
    return path.strip(), replace(node, value=_with_unit(node.value))


def _states_range(node: Located) -> bool:
    return isinstance(node.value, dict) and any(kind in node.value for kind in RANGES)


def _with_unit(values: list[Located]) -> list[Located]:
    last = values[-1].value
    match = _QUANTITY.match(last) if isinstance(last, str) else None
    numbers = all(isinstance(v.value, int | float) and not isinstance(v.value, bool) for v in values[:-1])
    if match is None or not numbers:
        return values
    return [*(replace(v, value=f"{v.value} {match[2].strip()}") for v in values[:-1]), values[-1]]


def axes_of(given: Mapping[str, Any]) -> Located:
    """Axes that were given in Python."""
    return located(given, "axes")


# --- telling ----------------------------------------------------------------------------------------------------------


def value_text(value: Any) -> str:
    """A value as tables and labels have it: a policy's block is its name with its parameters."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = next(
            (value[key] for key in ("policy", "kind", "process", "model") if isinstance(value.get(key), str)), None
        )
        if named is not None:
            rest = [f"{key}={value_text(v)}" for key, v in value.items() if v is not named]
            return " ".join([named, *rest])
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def told(combination: Combination) -> str:
    """A combination in a line."""
    return ", ".join(f"{path}={value_text(value.plain())}" for path, value in combination.items())


def _error(node: Located, path: str, message: str, hint: str = "") -> ScenarioError:
    return ScenarioError(Finding(message, path, node.file, node.line, node.column, hint))


def paths_of(combos: list[Combination]) -> Iterator[str]:
    """Every path that is varied, in the order of the axes."""
    yield from dict.fromkeys(path for one in combos for path in one)
