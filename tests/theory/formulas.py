"""Exact results for queues whose mean service time is 1."""

from __future__ import annotations

from math import log

import numpy as np
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve


def erlang_b(servers: int, load: float) -> float:
    """Share of requests that M/M/c/c blocks at an offered load of `load` servers."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Probability of waiting in M/M/c."""
    blocked = erlang_b(servers, load)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


def wait_exceeded(servers: int, load: float, ratio: float) -> float:
    """Wait that a share `ratio` of the requests of M/M/c exceeds."""
    return max(0.0, log(erlang_c(servers, load) / ratio) / (servers - load))


def loss_station(servers: int, places: int, load: float) -> tuple[float, float]:
    """Blocking probability of M/M/c/K and mean wait of those it admits."""
    weights = [1.0]
    for n in range(1, places + 1):
        weights.append(weights[-1] * load / min(n, servers))
    chance = np.array(weights) / sum(weights)
    queue = float(sum((n - servers) * chance[n] for n in range(servers, places + 1)))
    return float(chance[-1]), queue / (load * (1.0 - float(chance[-1])))


def pollaczek_khinchine(load: float, cv2: float) -> float:
    """Mean wait of M/G/1."""
    return load * (1.0 + cv2) / (2.0 * (1.0 - load))


def shortest_of_two(load: float, size: int = 120) -> float:
    """Mean response time of two M/M/1 servers behind join-the-shortest-queue, from its truncated Markov chain.

    The state is (shorter queue, longer queue); `load` is per server.
    """
    states = [(i, j) for j in range(size) for i in range(j + 1)]
    number = {state: k for k, state in enumerate(states)}
    rates = lil_matrix((len(states), len(states)))
    for (i, j), k in number.items():
        moves = [((min(i + 1, j), max(i + 1, j)), 2 * load)]
        if i:
            moves.append(((i - 1, j), 1.0))
        if j:
            moves.append(((min(i, j - 1), max(i, j - 1)), 1.0))
        for target, rate in moves:
            if target in number:
                rates[number[target], k] += rate
                rates[k, k] -= rate
    rates[0, :] = 1.0
    right = np.zeros(len(states))
    right[0] = 1.0
    chance = spsolve(rates.tocsr(), right)
    return float(sum(p * (i + j) for p, (i, j) in zip(chance, states, strict=True)) / (2 * load))
