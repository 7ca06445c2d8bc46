"""Values of a scenario that may change over time: a quantity as ever, or a block that says which series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import core_schema

from fleetsim.units import UNITS, Quantity

Hour = Annotated[float, Field(strict=True, ge=0, le=1e6)]


class Series(BaseModel):
    """A value by the hour: from a list, from a grid of the catalogue, or from a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    hourly: Annotated[tuple[Annotated[float, Field(strict=True)], ...] | None, Field(min_length=1)] = None
    """One value for each hour, in `unit`; or …"""
    grid: Annotated[str, Field(min_length=1)] | None = None
    """… name of a grid of the catalogue (`fleetsim list grids`), whose mean day in a season repeats; or …"""
    file: Annotated[str, Field(min_length=1)] | None = None
    """… a CSV file with a line of column names, relative to the scenario; `.gz` is read as it is."""
    unit: str | None = None
    """Of the list's or the file's values; default: the base unit (g/kWh, USD/kWh, USD/h)."""
    scale: Annotated[float, Field(strict=True, gt=0, le=1e9)] = 1.0
    """Factor on all values: an exchange rate, say."""
    begin_hour: Hour = 0.0
    """Hour of the list, or of the grid's day (UTC), at which the run begins."""
    season: Literal["year", "winter", "spring", "summer", "autumn"] = "year"
    """Of the grid: December to February is winter north of the equator, summer south of it."""
    time: str = "time"
    """Column of the file with the begin of each value: seconds, or dates (ISO 8601, or as 01jan2022 00:00:00)."""
    value: str = "value"
    """Column of the file with the values."""
    begin: str | None = None
    """When, in the file's own time, the run begins; default: with its first row."""
    repeat: bool = False
    """Whether a list or a file begins again at its end; a grid's day always does. A run longer than its series is refused."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        self._require_one_source()
        return self

    def _require_one_source(self) -> None:
        given = [name for name in ("hourly", "grid", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f", found {' and '.join(given)}" if given else ""
            raise ValueError(f"a series needs one of hourly, grid and file{found}")
        unused = {
            "hourly": ("time", "value", "begin", "season"),
            "grid": ("time", "value", "begin", "repeat", "unit"),
            "file": ("begin_hour", "season"),
        }[given[0]]
        for name in unused:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} says nothing of a series given by {given[0]}: leave it out")
        if self.hourly is not None and self.begin_hour >= len(self.hourly):
            raise ValueError(f"begin_hour {self.begin_hour:g} lies behind the {len(self.hourly)} hours of the list")
        if self.grid is not None and self.begin_hour >= 24:
            raise ValueError(f"begin_hour {self.begin_hour:g} is no hour of the day: 0 to below 24")


class Price(Series):
    """A price by the hour, or one that the catalogue knows of a market."""

    term: Literal["on-demand", "reserved", "spot"] | None = None
    """Term of the contract, whose price is the catalogue's for the pool's accelerator (`fleetsim list prices`)."""
    region: Annotated[str, Field(min_length=1)] | None = None
    """Of the provider; default: any."""
    provider: Annotated[str, Field(min_length=1)] | None = None
    """Who rents it; default: the cheapest that the catalogue knows for the term and the region."""

    @property
    def listed(self) -> bool:
        """Whether the catalogue knows it."""
        return self.term is not None

    def _require_one_source(self) -> None:
        if self.grid is not None:
            raise ValueError("grid: power grids have no prices of accelerators")
        if self.term is None:
            for name in ("region", "provider"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs a term: on-demand, reserved or spot")
            if self.hourly is None and self.file is None:
                raise ValueError("a price needs one of term, hourly and file")
            super()._require_one_source()
            return
        own = {"term", "region", "provider", "scale"}
        for name in type(self).model_fields:
            if name not in own and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} says nothing of a price given by term: leave it out")


@dataclass(frozen=True)
class Timed:
    """Annotation of a field that holds a quantity, or the series of one."""

    dimension: str
    unit: str
    block: type[BaseModel] = Series
    """What a block in its place is."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        quantity = Quantity(self.dimension, self.unit, ge=0)
        number = quantity.__get_pydantic_core_schema__(float, handler)
        return core_schema.no_info_wrap_validator_function(
            self._validate,
            number,
            serialization=core_schema.plain_serializer_function_ser_schema(self._plain, when_used="json-unless-none"),
        )

    def _validate(self, value: Any, number: Any) -> Any:
        if not isinstance(value, dict | BaseModel):
            return number(value)
        found = self.block.model_validate(value)
        unit = getattr(found, "unit", None)
        if unit is not None and unit not in UNITS[self.dimension]:
            raise ValueError(f'unknown unit "{unit}" of a {self.dimension}: {", ".join(UNITS[self.dimension])}')
        if any(number < 0 for number in getattr(found, "hourly", None) or ()) and self.dimension != "price of energy":
            raise ValueError(f"hourly: a {self.dimension} is not below 0")
        return found

    def _plain(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json", exclude_none=True)
        return f"{value!r} {self.unit}"

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        number = Quantity(self.dimension, self.unit, ge=0).__get_pydantic_json_schema__(schema, handler)
        return {"oneOf": [number, self.block.model_json_schema()]}
