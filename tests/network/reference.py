"""Max-min fair sharing as plainly as it can be said: all flows, every link, every event."""

from dataclasses import dataclass
from math import inf


@dataclass
class Transfer:
    start_s: float
    links: tuple[int, ...]
    size_bytes: float
    weight: float = 1.0
    limit: float = inf


def rates(transfers: dict[int, Transfer], capacities: list[float]) -> dict[int, float]:
    """Raise all flows together by small exact steps: to the next full link or the next limit."""
    rate = dict.fromkeys(transfers, 0.0)
    growing = set(transfers)
    while growing:
        steps = []
        for link, capacity in enumerate(capacities):
            users = [i for i in transfers if link in transfers[i].links]
            weight = sum(transfers[i].weight for i in users if i in growing)
            if weight:
                steps.append(((capacity - sum(rate[i] for i in users)) / weight, [i for i in users if i in growing]))
        steps += [((transfers[i].limit - rate[i]) / transfers[i].weight, [i]) for i in growing]
        step = max(min(s for s, _ in steps), 0.0)
        for i in growing:
            rate[i] += step * transfers[i].weight
        for at, stopped in steps:
            if at <= step * (1 + 1e-12) + 1e-15:
                growing -= set(stopped)
    return rate


def drain_times(
    transfers: list[Transfer], capacities: list[float], changes: list[tuple[float, int, float]] | None = None
) -> list[float]:
    """When each transfer has sent its last byte; links may carry another share of their capacity from some time on."""
    capacities, nominal, changes = list(capacities), list(capacities), sorted(changes or [])
    left = {i: t.size_bytes for i, t in enumerate(transfers)}
    ends = [0.0] * len(transfers)
    now_s = 0.0
    while left:
        active = {i: transfers[i] for i in left if transfers[i].start_s <= now_s}
        while changes and changes[0][0] <= now_s:
            _, link, share = changes.pop(0)
            capacities[link] = nominal[link] * share
        rate = rates(active, capacities)
        soonest = min((now_s + left[i] / rate[i] for i in active if rate[i]), default=inf)
        soonest = min([soonest, *[time_s for time_s, _, _ in changes[:1]]])
        next_start = min((transfers[i].start_s for i in left if transfers[i].start_s > now_s), default=inf)
        then_s = min(soonest, next_start)
        for i in active:
            left[i] -= rate[i] * (then_s - now_s)
            if left[i] <= 1e-9 * transfers[i].size_bytes:
                del left[i]
                ends[i] = then_s
        now_s = then_s
    return ends
