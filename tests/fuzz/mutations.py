"""Damage to scenario and trace files: whole keys and rows, and single bytes."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable

SCENARIO = """\
schema: 1
name: fuzzed
seed: 7
workload:
  kind: synthetic
  requests: 12
  arrivals: {process: gamma, rate: 4 req/s, burstiness: 0.5}
  prompt_tokens: {distribution: lognormal, mean: 100, cv: 1.2, min: 4, max: 800}
  output_tokens: {distribution: fixed, value: 6}
  prefixes: {groups: 3, tokens: 32, zipf: 1.0}
slo: {ttft: 2 s, tpot: 100 ms, attainment: 0.9}
gateway:
  router: {policy: power-of-two-choices}
pools:
  - name: main
    llm: llama-3.1-8b
    accelerator: h100-sxm
    replicas: 2
    engine: &engine
      scheduler: {policy: vllm-v1, max_batched_tokens: 512, max_seqs: 16}
      kv: {block_tokens: 16, memory_ratio: 0.9}
  - {name: other, llm: llama-3.1-8b, accelerator: a10g, parallelism: {tp: 2}, engine: *engine}
run: {warmup_ratio: 0.1, interval: 1 s, horizon: 1 h}
"""

REPLAY = """\
schema: 1
name: replayed
workload: {kind: trace, format: FORMAT, path: NAME, limit: 30}
pools:
  - {name: main, llm: llama-3.1-8b, accelerator: h100-sxm, replicas: 2}
"""

TRACES = {
    ("azure", "t.csv"): """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
2023-11-16 18:15:51.3910170,91,16
2023-11-16 18:15:52.5738950,91,16
""",
    ("burstgpt", "b.csv"): """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,1,2.0,ChatGPT,472,18,490,Conversation log
45,2,3.5,ChatGPT,1087,230,1317,Conversation log
118,1,1.0,GPT-4,417,276,693,API log
""",
    ("mooncake", "m.jsonl"): """\
{"timestamp": 0, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 300, "input_length": 1300, "output_length": 26, "hash_ids": [46, 47, 49]}
{"timestamp": 300, "input_length": 90, "output_length": 3, "hash_ids": [50]}
{"timestamp": 1200, "input_length": 1600, "output_length": 7, "hash_ids": [46, 47, 49, 51]}
""",
}

ODD_VALUES = r"""
0
-1
1e999
.nan
.inf
-.inf
1e3
99999999999999999999
~
null
true
NO
[]
{}
[1]
.
-
>
|
&
%
@
`
'
010
1_0
a:
#
0x7fffffff
12:30:00
2001-01-01
../../etc/passwd
/dev/zero
embedded:none
embedded:default
*engine
😀
random
round-robin
vllm-v1
poisson
closed-loop
trace
fp8
l40s
llama-3.1-70b
qwen3-30b-a3b
os:system
!x
""
''
{a: 1}
"5 GiB"
"-3 ms"
3 s
0 s
1e-300 s
9e9 h
"\u0000"
"\ud800"
!!python/name:os.system x
{process: closed-loop, concurrency: 3}
{distribution: quantiles, values: [1, 5, 2]}
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
""".strip().splitlines()
ODD_CELLS = [
    "",
    "x",
    "-1",
    "0",
    "1e9",
    "nan",
    "inf",
    "1.5",
    "99999999999999999999",
    '"',
    "\0",
    "null",
    "[]",
    "2023",
    "'",
    "é",
]

NUMBERS = ["1", "2", "3", "5", "8", "16", "17", "64", "100", "333", "1000", "0.5", "0.01"]

Rng = random.Random


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def drop_line(text: str, rng: Rng) -> str:
    lines = _lines(text)
    del lines[rng.randrange(len(lines))]
    return "".join(lines)


def repeat_line(text: str, rng: Rng) -> str:
    lines = _lines(text)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return "".join(lines)


def swap_lines(text: str, rng: Rng) -> str:
    lines = _lines(text)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return "".join(lines)


def indent_line(text: str, rng: Rng) -> str:
    lines = _lines(text)
    i = rng.randrange(len(lines))
    lines[i] = rng.choice(["  ", " ", "\t", "    "]) + lines[i] if rng.random() < 0.5 else lines[i].lstrip()
    return "".join(lines)


def odd_value(text: str, rng: Rng) -> str:
    places = [m for m in re.finditer(r"(?<=[:\[] )[^\s,{}\[\]][^,{}\[\]\n]*", text)]
    place = rng.choice(places)
    return text[: place.start()] + rng.choice(ODD_VALUES) + text[place.end() :]


def other_number(text: str, rng: Rng) -> str:
    """A number that is usually allowed in place of another."""
    place = rng.choice([m for m in re.finditer(r"(?<=[:\[] )\d[\d.]*", text)])
    return text[: place.start()] + rng.choice(NUMBERS) + text[place.end() :]


def odd_key(text: str, rng: Rng) -> str:
    place = rng.choice([m for m in re.finditer(r"[a-z_]+(?=:)", text)])
    key = place[0]
    i = rng.randrange(len(key))
    changed = rng.choice([key[:i] + key[i + 1 :], key[:i] + "x" + key[i:], key.upper(), rng.choice(ODD_VALUES), "<<"])
    return text[: place.start()] + changed + text[place.end() :]


def odd_cell(text: str, rng: Rng) -> str:
    place = rng.choice([m for m in re.finditer(r"[^,\n{}:]+", text)])
    return text[: place.start()] + rng.choice(ODD_CELLS) + text[place.end() :]


def flip_bytes(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(data: bytes, rng: Rng) -> bytes:
    i, j, k = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:j] + data[i:k] + data[j:]


def noise(data: bytes, rng: Rng) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 4, 64))) + data[at:]


TEXTUAL: list[Callable[[str, Rng], str]] = [drop_line, repeat_line, swap_lines, indent_line]
BYTEWISE: list[Callable[[bytes, Rng], bytes]] = [flip_bytes, cut, splice, noise]


def damaged_scenario(rng: Rng) -> bytes:
    """A scenario with one to three kinds of damage."""
    text = SCENARIO
    if rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 2, 3))):
            text = rng.choice([*TEXTUAL, odd_value, odd_value, odd_key, *[other_number] * 8])(text, rng) or text
        return text.encode("utf-8", "surrogatepass")
    return rng.choice(BYTEWISE)(text.encode(), rng)


def damaged_trace(rng: Rng) -> tuple[str, str, bytes]:
    """A format, a file name and damaged content, packed now and then."""
    (form, name), text = rng.choice(list(TRACES.items()))
    if rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 2, 3))):
            text = rng.choice([*TEXTUAL, odd_cell, odd_cell, odd_cell])(text, rng) or text
        data = text.encode()
    else:
        data = rng.choice(BYTEWISE)(text.encode(), rng)
    if rng.random() < 0.2:
        packed = gzip.compress(data)
        return form, f"{name}.gz", rng.choice(BYTEWISE)(packed, rng) if rng.random() < 0.5 else packed
    return form, name, data


def replay_of(form: str, name: str, rng: Rng) -> str:
    """A scenario that replays the trace, told the right format most of the time."""
    told = (
        form if rng.random() < 0.9 else rng.choice(["azure", "burstgpt", "mooncake", "parquet", "sharegpt", "bailian"])
    )
    text = REPLAY.replace("FORMAT", told).replace("NAME", name)
    return text.replace("limit: 30", "limit: 30, on_bad_rows: skip") if rng.random() < 0.5 else text
