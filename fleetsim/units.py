"""Quantities with units as text, parsed once at the border.

Inside the package every number is a float or int in the base unit that its name's suffix says (``_s``, ``_bytes``,
``_w``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BYTES = {f"{p}B": m for p, m in _DECIMAL.items()} | {f"{p}iB": 1024.0**i for i, p in enumerate("KMGT", start=1)}
_BITS = {f"{p}b": m / 8 for p, m in _DECIMAL.items()} | {f"{p}bit": m / 8 for p, m in _DECIMAL.items()}

UNITS: dict[str, dict[str, float]] = {
    "time": _TIME,
    "bytes": _BYTES,
    "bytes/s": {f"{u}/s": f for u, f in (_BYTES | _BITS).items()} | {f"{p}bps": m / 8 for p, m in _DECIMAL.items()},
    "rate": {
        f"{noun}/{t}": 1.0 / f for noun in ("req", "requests", "") for t, f in _TIME.items() if t in ("s", "min", "h")
    }
    | {"Hz": 1.0, "rps": 1.0},
    "frequency": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "flop/s": {f"{p}{u}": m for p, m in _DECIMAL.items() for u in ("FLOPS", "FLOP/s", "OPS")},
    "power": {"mW": 1e-3, "W": 1.0, "kW": 1e3, "MW": 1e6},
    "energy": {"J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6},
    "price": {"USD/h": 1.0, "$/h": 1.0, "USD/d": 1 / 24, "USD/y": 1 / 8760},
    "carbon intensity": {"g/kWh": 1.0, "kg/kWh": 1e3, "kg/MWh": 1.0, "t/GWh": 1.0},
    "price of energy": {"USD/kWh": 1.0, "$/kWh": 1.0, "USD/MWh": 1e-3, "$/MWh": 1e-3},
    "temperature": {"C": 1.0, "°C": 1.0, "degC": 1.0},
    "mass": {"g": 1.0, "kg": 1e3, "t": 1e6},
}
"""Accepted units and their factor to the base unit, per dimension: s, B, B/s, 1/s, Hz, FLOP/s, W, J, USD/h, g/kWh (of
CO2 equivalents), USD/kWh, °C, g."""

_QUANTITY = re.compile(r"^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s].*?)?\s*$")
_EXAMPLES = {
    "time": "500 ms, 2 s, 40 min",
    "bytes": "24 GiB, 80 GB",
    "bytes/s": "3.35 TB/s, 400 Gb/s",
    "rate": "40 req/s, 120 req/min",
    "frequency": "1755 MHz",
    "flop/s": "989 TFLOPS",
    "power": "700 W, 1.2 kW",
    "energy": "5 kWh",
    "price": "2.5 USD/h",
    "carbon intensity": "380 g/kWh",
    "price of energy": "0.12 USD/kWh",
    "temperature": "60 C",
    "mass": "150 kg",
}


def parse(value: object, dimension: str) -> float:
    """Value of a quantity such as ``"500 ms"`` in the base unit of its dimension.

    Parameters
    ----------
    value : str
        A number and a unit. Only zero may stand without a unit.
    dimension : str
        A key of `UNITS`.

    Raises
    ------
    ValueError
        If the text is not a finite number with a unit of that dimension; the message says what would be.
    """
    expected = f"expected a {dimension} such as {_EXAMPLES[dimension]}"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{expected}, found {value!r}")
    match = _QUANTITY.match(str(value))
    if match is None:
        raise ValueError(f"{expected}, found {value!r}")
    number, unit = float(match[1].replace("_", "")), match[2] or ""
    if not math.isfinite(number):
        raise ValueError(f"{expected}, found {value!r}")
    if not unit:
        if number == 0:
            return 0.0
        raise ValueError(f"{value!r} has no unit: {expected}")
    factor = UNITS[dimension].get(unit)
    if factor is None:
        other = next((name for name, table in UNITS.items() if unit in table), None)
        what = f"{value!r} has a unit of {other}" if other else f'unknown unit "{unit}" in {value!r}'
        raise ValueError(f"{what}: {expected}")
    return number * factor


@dataclass(frozen=True)
class Quantity:
    """Annotation of a config field that holds a quantity: text with a unit outside, a float in the base unit inside."""

    dimension: str
    unit: str
    gt: float | None = None
    ge: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        limits = {k: v for k, v in (("gt", self.gt), ("ge", self.ge)) if v is not None}
        text = core_schema.plain_serializer_function_ser_schema(self._as_text, when_used="json-unless-none")
        number = core_schema.float_schema(allow_inf_nan=False, serialization=text, **limits)  # type: ignore[arg-type]
        return core_schema.no_info_before_validator_function(lambda value: parse(value, self.dimension), number)

    def _as_text(self, value: float) -> str:
        return f"{value!r} {'req/s' if self.dimension == 'rate' else self.unit}"

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        units = "|".join(re.escape(unit) for unit in UNITS[self.dimension])
        field: dict[str, Any] = {
            "type": "string",
            "pattern": rf"^\s*[+]?[0-9._]+([eE][+-]?[0-9]+)?\s*({units})\s*$",
            "unit": self.unit,
            "examples": _EXAMPLES[self.dimension].split(", "),
        }
        return field if self.ge != 0 else field | {"type": ["string", "number"], "minimum": 0, "maximum": 0}


Seconds = Annotated[float, Quantity("time", "s", gt=0)]
SecondsOrZero = Annotated[float, Quantity("time", "s", ge=0)]
PerSecond = Annotated[float, Quantity("rate", "1/s", gt=0)]
PerSecondOrZero = Annotated[float, Quantity("rate", "1/s", ge=0)]
Bytes = Annotated[float, Quantity("bytes", "B", gt=0)]
BytesPerSecond = Annotated[float, Quantity("bytes/s", "B/s", gt=0)]
UsdPerHour = Annotated[float, Quantity("price", "USD/h", ge=0)]
Watts = Annotated[float, Quantity("power", "W", ge=0)]


def show(value: float, unit: str = "", digits: int = 4) -> str:
    """Short text for people: `digits` significant figures, thousands separated, and the unit."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) or value == 0 else f"{value:.{digits}g}"
    return f"{text} {unit}".rstrip()


def show_bytes(value: float) -> str:
    """Bytes as GiB, for people."""
    return f"{value / 2**30:.1f} GiB"
