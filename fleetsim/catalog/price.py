"""What accelerators cost by the hour: the catalogue's list of offers, and the price that a pool of a scenario means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.data import catalogue, read_yaml
from fleetsim.catalog.series import StepSeries, constant, series_of
from fleetsim.catalog.sourced import Record, Sourced
from fleetsim.errors import DataError, Finding, nearest
from fleetsim.scenario.timed import Price, Series

TERMS = ("on-demand", "reserved", "spot")


@dataclass(frozen=True, slots=True)
class Listed:
    """One offer of the catalogue."""

    accelerator: str
    provider: str
    region: str
    """``any`` where its list has no regions."""
    term: str
    usd_per_h: float
    """Of one accelerator [USD/h]."""
    sourced: Sourced


@cache
def load_prices(accelerator: str) -> tuple[Listed, ...]:
    """All that the catalogue knows about the price of an accelerator; nothing if it has no list.

    Raises
    ------
    DataError
        If its file is not valid.
    """
    path = catalogue("price").get(accelerator)
    if path is None:
        return ()
    record = Record(read_yaml(path), path)
    record.text("title")
    providers, found = record.part("providers"), []
    for provider in providers.content:
        regions = providers.part(provider)
        for region in regions.content:
            terms = regions.part(region)
            for term in terms.content:
                if term not in TERMS:
                    terms.find(term, f"expected one of {', '.join(TERMS)}")
                price = terms.quantity(term, "price")
                sourced = record.sourced.get(f"providers.{provider}.{region}.{term}")
                if sourced is not None:
                    found.append(Listed(accelerator, provider, region, term, price, sourced))
    record.finish()
    return tuple(found)


def listed_price(accelerator: str, price: Price) -> Listed:
    """The cheapest offer of the catalogue that is meant.

    Raises
    ------
    DataError
        If there is none; the message says what there is.
    """
    offers = load_prices(accelerator)
    if not offers:
        known = sorted(catalogue("price"))
        raise DataError(
            Finding(f"the catalogue lists no prices of {accelerator}", hint=nearest(accelerator, known, "lists"))
        )
    for what, wanted in (("provider", price.provider), ("term", price.term), ("region", price.region)):
        if wanted is None:
            continue
        names = sorted({str(getattr(offer, what)) for offer in offers})
        left = [
            offer for offer in offers if getattr(offer, what) == wanted or (what == "region" and offer.region == "any")
        ]
        if not left:
            raise DataError(
                Finding(f'no {what} "{wanted}" among the prices of {accelerator}', hint=nearest(wanted, names))
            )
        offers = tuple(left)
    return min(offers, key=lambda offer: offer.usd_per_h)


def price_of(
    price: float | Series | None, accelerator: Accelerator, base_dir: Path, name: str = "the price of accelerators"
) -> StepSeries:
    """What one accelerator of a pool costs over time [USD/h].

    Parameters
    ----------
    price : float, Price or None
        As the pool says; None means the catalogue's one price of the accelerator.
    accelerator : Accelerator
        The pool's.
    base_dir : Path
        Folder that the name of a file starts from.
    name : str
        What it is called in messages.

    Raises
    ------
    DataError
        If the catalogue or the file does not have it.
    """
    if price is None:
        return constant(accelerator.price_usd_per_h or 0.0)
    if isinstance(price, Price) and price.listed:
        return constant(listed_price(accelerator.name, price).usd_per_h * price.scale)
    return series_of(price, "price", base_dir, name)
