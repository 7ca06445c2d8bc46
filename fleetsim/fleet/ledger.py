"""Money and greenhouse gases where prices change over time or from site to site.

Where neither does, none of this runs: the figures are then products of what was used and one price (`output/recorder.py`). Here,
what a replica and its requests used is turned into money and gases at the prices of the time. A new price holds for a replica from
its first step boundary on, since a forward pass is never torn apart: there the replica's meter is read and all its requests are
charged, so that both are exact, and the same in leaps as in single steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from fleetsim.engine.replica import Meter, Replica
from fleetsim.fleet.tariffs import Rates, Tariffs
from fleetsim.kernel.clock import ARRIVAL
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet


class Bill:
    """What something has cost so far."""

    __slots__ = ("carbon_g", "electricity_usd", "embodied_g", "settled_j", "settled_s", "site_j", "usd")

    def __init__(self) -> None:
        self.usd = 0.0
        """For accelerators [USD]."""
        self.site_j = 0.0
        """Energy of the site [J]."""
        self.carbon_g = 0.0
        """Of that [g]."""
        self.electricity_usd = 0.0
        """For that [USD]."""
        self.embodied_g = 0.0
        """Share of what making the accelerators emitted [g]."""
        self.settled_j = 0.0
        """Of a request: energy of accelerators and servers that is in it already [J]."""
        self.settled_s = 0.0
        """Of a request: share of its replica's time that is in it already, since it came there [s]."""

    def add(self, rates: Rates, energy_j: float, time_s: float) -> None:
        """Add energy of accelerators and servers, and time of a replica."""
        site_j = rates.pue * energy_j
        self.usd += rates.usd_per_s * time_s
        self.embodied_g += rates.embodied_g_per_s * time_s
        self.site_j += site_j
        self.carbon_g += rates.g_per_j * site_j
        self.electricity_usd += rates.usd_per_j * site_j

    def take_over(self, other: Bill) -> None:
        """Add what another one says."""
        for name in Bill.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Account:
    """What one replica has cost, as far as it was settled, and what its meters said then."""

    rates: Rates
    busy: Bill
    idle: Bill
    meter: Meter
    on_s: float = 0.0
    unused_j: float = 0.0
    """Energy of accelerators while no step ran, and of weights that are loaded [J]."""

    def copy(self) -> Account:
        """The same, to be settled further without changing this one."""
        busy, idle = Bill(), Bill()
        busy.take_over(self.busy)
        idle.take_over(self.idle)
        return Account(self.rates, busy, idle, self.meter, self.on_s, self.unused_j)


class Ledger:
    """Charges replicas and requests at the prices of the time and of the place.

    Parameters
    ----------
    fleet : Fleet
        Built completely.
    tariffs : Tariffs
        Of its scenario.
    """

    def __init__(self, fleet: Fleet, tariffs: Tariffs) -> None:
        self._fleet = fleet
        self.tariffs = tariffs
        nothing = Meter(0.0, 0.0, 0, 0, 0, 0)
        self.accounts = [Account(tariffs.rates(pool.index, 0.0), Bill(), Bill(), nothing) for pool in fleet.pool_of]
        """Of each replica."""
        self.gateway = Bill()
        """Of the gateway's decisions."""

    def begin(self) -> None:
        """Wait for the first change of a price."""
        self._wait(0.0)

    # --- prices that change ------------------------------------------------------------------------------------------

    def _wait(self, after_s: float) -> None:
        change_s = self.tariffs.next_change_s(after_s)
        if change_s < inf:
            self._fleet.clock.at(change_s, self._change, ARRIVAL)

    def _change(self) -> None:
        fleet, now_s = self._fleet, self._fleet.clock.now_s
        if not fleet.active or fleet.stranded:
            return
        self.tariffs.require(now_s)
        fresh = [self.tariffs.rates(pool.index, now_s) for pool in fleet.pools]
        for replica, pool, account in zip(fleet.replicas, fleet.pool_of, self.accounts, strict=True):
            if account.rates == fresh[pool.index]:
                continue
            if replica.in_step:
                replica.at_boundary(partial(self._reprice, replica))
            else:
                self._reprice(replica)
        self._wait(now_s)

    def _reprice(self, replica: Replica) -> None:
        """Settle a replica and its requests between two steps, and go on at the prices of now."""
        replica.charge_running()
        for request in self._requests_of(replica):
            self.charge(request)
        account, now_s = self.accounts[replica.index], self._fleet.clock.now_s
        self._settle(replica.index, account, replica.books(), now_s)
        account.rates = self.tariffs.rates(self._fleet.pool_of[replica.index].index, now_s)

    def _requests_of(self, replica: Replica) -> Iterator[Request]:
        """All that are at a replica, or were when it failed."""
        for batch in replica.batches:
            yield from batch.running
            yield from batch.waiting
            yield from batch.loading
        yield from replica.inbox
        yield from replica.held
        yield from self._fleet.gateway.presence.lost_at(replica)

    def _settle(self, index: int, account: Account, meter: Meter, now_s: float) -> None:
        """Add what a replica used since it was last settled, until its meters said `meter`."""
        fleet, pool = self._fleet, self._fleet.pool_of[index]
        on_s = fleet.lives[index].on_s(now_s)
        seat, supply = pool.seats.get(index), pool.supplies.get(index)
        unused_j = 0.0 if seat is None else seat.loading_j(now_s)
        if supply is None:
            unused_j += fleet.replicas[index].model.idle_w * (on_s - meter.busy_s)
        else:
            unused_j += supply.idle_at_j(meter.busy_s, now_s)
        busy_s = meter.busy_s - account.meter.busy_s
        energy_j = meter.energy_j - account.meter.energy_j
        idle_s = on_s - account.on_s - busy_s
        idle_j = pool.host_idle_w * idle_s + unused_j - account.unused_j
        account.busy.add(account.rates, energy_j + pool.host_busy_w * busy_s, busy_s)
        account.idle.add(account.rates, idle_j, idle_s)
        account.meter, account.on_s, account.unused_j = meter, on_s, unused_j

    # --- requests ----------------------------------------------------------------------------------------------------

    def charge(self, request: Request, replica: int = -1) -> None:
        """Charge a request for what it used at a replica since it was last charged (its own one, where none is named)."""
        index = request.replica if replica < 0 else replica
        if index < 0:
            return
        pool, rates = self._fleet.pool_of[index], self.accounts[index].rates
        time_s = request.cost_share_s
        request.host_energy_j += time_s * pool.host_busy_w
        request.cost_share_s = 0.0
        bill = self.bill(request)
        energy_j = request.energy_j + request.host_energy_j
        bill.add(rates, energy_j - bill.settled_j, time_s)
        bill.settled_j = energy_j
        bill.settled_s += time_s
        request.paid_usd = bill.usd

    def pay(self, request: Request) -> None:
        """Charge a request that leaves its replica."""
        self.charge(request)
        if request.bill is not None:
            request.bill.settled_s = 0.0

    def share_s(self, request: Request) -> float:
        """Share of its replica's time that a request had since it came there [s]."""
        settled_s: float = 0.0 if request.bill is None else request.bill.settled_s
        return settled_s + request.cost_share_s

    def charge_encoding(self, replica: int, request: Request, seconds: float) -> None:
        """Charge a request for its share of the time and energy of an encoder's pass."""
        request.cost_share_s += seconds
        self.charge(request, replica)

    def charge_decision(self, request: Request, energy_j: float) -> None:
        """Charge a request for a decision of the gateway, whose energy is in its books already."""
        rates = self.tariffs.gateway_rates(request.origin, self._fleet.clock.now_s)
        bill = self.bill(request)
        bill.add(rates, energy_j, 0.0)
        bill.settled_j += energy_j
        self.gateway.add(rates, energy_j, 0.0)

    def take_over(self, winner: Request, loser: Request) -> None:
        """Let one of two copies bear what the other one cost, whose energy is in its books already."""
        if loser.bill is not None:
            self.bill(winner).take_over(loser.bill)

    def bill(self, request: Request) -> Bill:
        """What a request has cost."""
        if request.bill is None:
            request.bill = Bill()
        bill: Bill = request.bill
        return bill

    # --- what it comes to ----------------------------------------------------------------------------------------------

    def read(self, index: int, now_s: float) -> Account:
        """What a replica has cost until now; changes nothing."""
        account = self.accounts[index].copy()
        self._settle(index, account, self._fleet.replicas[index].meter(now_s), now_s)
        return account

    def total(self, indexes: Sequence[int], now_s: float) -> tuple[Bill, Bill]:
        """What replicas have cost until now: while they computed, and while they did not."""
        busy, idle = Bill(), Bill()
        for index in indexes:
            account = self.read(index, now_s)
            busy.take_over(account.busy)
            idle.take_over(account.idle)
        return busy, idle
