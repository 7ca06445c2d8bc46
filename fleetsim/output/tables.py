"""What the tables contain: one place for column names, types, units, meanings and formulas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pyarrow as pa

from fleetsim.metrics.described import meaning

SCHEMA_VERSION = "2"
"""Version of the table layout, written into every file; `fleetsim.results.versions` tells what changed, and reads earlier ones."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    kind: str
    """Arrow type: float64, int64, int32, string, or name (dictionary-encoded string)."""
    unit: str
    description: str
    formula: str = ""


_F, _I, _N = "float64", "int64", "name"

REQUESTS = (
    Column("request_id", _I, "", "Number of the request, in order of arrival; later turns of sessions follow"),
    Column("session_id", _I, "", "Conversation; null if none"),
    Column("turn", "int32", "", "Turn within the session, from 0"),
    Column("tenant", _N, "", "Who pays, if the workload says"),
    Column("class", _N, "", "Service class, if the workload says"),
    Column("model", _N, "", "LLM that served it"),
    Column("pool", _N, "", "Pool that served it; null if rejected"),
    Column("replica", "int32", "", "Replica that served it, numbered over the fleet; null if rejected"),
    Column("site", _N, "", "Where that stands; null without sites"),
    Column("origin", _N, "", "Site that it comes from, if the scenario says"),
    Column("prefill_replica", "int32", "", "Replica that computed its prompt, if that was another one; else null"),
    Column(
        "encode_replica", "int32", "", "Replica that encoded its images; null if it has none or they were not encoded"
    ),
    Column("status", _N, "", "finished, rejected, timed_out, failed or unfinished"),
    Column("reason", _N, "", "Why it was rejected or failed"),
    Column("arrival_s", _F, "s", "Arrival at the gateway; with sites, when it was sent from where it comes"),
    Column("encode_start_s", _F, "s", "Encoding of its images began; null without images"),
    Column("encode_end_s", _F, "s", "They were encoded"),
    Column("queued_s", _F, "s", "Joined a replica's queue, with what was made of its images"),
    Column("first_scheduled_s", _F, "s", "First step that computed some of it began"),
    Column("first_token_s", _F, "s", "First output token"),
    Column("end_s", _F, "s", "Last output token, or end for another reason"),
    Column("prompt_tokens", _I, "tokens", "Prompt length"),
    Column("images", "int32", "count", "Images in its prompt"),
    Column("image_tokens", _I, "tokens", "Of the prompt, what an encoder makes of them"),
    Column("output_tokens", _I, "tokens", "Tokens produced"),
    Column("cached_tokens", _I, "tokens", "Prompt tokens found in the prefix cache when first scheduled"),
    Column(
        "loaded_tokens", _I, "tokens", "Tokens loaded from host memory, drives or the store, again after a preemption"
    ),
    Column("load_s", _F, "s", "Time for which it waited for them after its admission"),
    Column(
        "dropped_tokens",
        _I,
        "tokens",
        "Tokens taken out of the prompt by compressing it: what that does to quality is not known",
    ),
    Column(
        "approximate_tokens",
        _I,
        "tokens",
        "Tokens computed from an approximation of the keys and values before them, or reused as one: a risk to quality; "
        "again after a preemption",
    ),
    Column("preemptions", "int32", "count", "Times it was preempted"),
    Column("migrations", "int32", "count", "Times it moved to another replica"),
    Column("ttft_s", _F, "s", "Time to first token, its way back included", "first_token_s + return_s - arrival_s"),
    Column(
        "tpot_s",
        _F,
        "s",
        "Mean time per output token after the first; null below two tokens",
        "(end_s - first_token_s) / (output_tokens - 1)",
    ),
    Column("ntpot_s", _F, "s", "End-to-end latency per output token", "e2el_s / output_tokens"),
    Column("e2el_s", _F, "s", "End-to-end latency, the way back included", "end_s + return_s - arrival_s"),
    Column(
        "return_s",
        _F,
        "s",
        "Way of the answer from the replica to where the request came from, half of the round trips; 0 without sites. The first "
        "token's is that of the replica that computed the prompt",
    ),
    Column(
        "encode_s",
        _F,
        "s",
        "Time of the pass that encoded its images; null without images",
        "encode_end_s - encode_start_s",
    ),
    Column("queue_wait_s", _F, "s", "Wait in the replica's queue", "first_scheduled_s - queued_s"),
    Column(
        "prefill_s",
        _F,
        "s",
        "Time from its first step to its first token without what follows",
        "first_token_s - first_scheduled_s - part of transfer_s and stall_s before first_token_s",
    ),
    Column(
        "transfer_s",
        _F,
        "s",
        "Time for which it waited, admitted, for keys and values from another replica, the host, drives or the store",
    ),
    Column(
        "decode_s",
        _F,
        "s",
        "Time from its first token to its last without these",
        "end_s - first_token_s - part of transfer_s and stall_s after first_token_s",
    ),
    Column(
        "stall_s",
        _F,
        "s",
        "Time after its first step for which it ran nowhere: preempted, between replicas, in the queue of the one that decodes",
    ),
    Column("itl_max_s", _F, "s", "Largest gap between two of its tokens; null below two tokens"),
    Column(
        "energy_j",
        _F,
        "J",
        "Its share of the steps' energy: each step's energy is divided evenly over the tokens computed in it",
    ),
    Column(
        "site_energy_j",
        _F,
        "J",
        "The same with its share of the busy servers and of cooling; idle energy is charged to nobody",
        "pue x (energy_j + host_busy power x its share of the busy time)",
    ),
    Column(
        "carbon_g",
        _F,
        "g",
        "Greenhouse gases of that, in CO2 equivalents, at the intensity where and when it was drawn; null without one",
        "site_energy_j / 3.6e6 x carbon_intensity",
    ),
    Column(
        "embodied_g",
        _F,
        "g",
        "Its share of the busy time's part of what making the accelerators emitted; null without energy.embodied",
    ),
    Column(
        "electricity_usd",
        _F,
        "USD",
        "Price of its site energy where and when it was drawn, not part of cost_usd; null without one",
        "site_energy_j / 3.6e6 x electricity_price",
    ),
    Column(
        "cost_usd",
        _F,
        "USD",
        "Its share of the busy time's price, divided like the energy; idle time is charged to nobody",
    ),
    Column("slo_met", "bool", "", "Finished within all limits of its class; null without an SLO"),
    Column(
        "quality",
        _F,
        "",
        "How good its answer was, 0 to 1; null without an answer, or where nobody chooses among models",
    ),
    Column("expected_quality", _F, "", "What the router's predictor expected of the model that gave it"),
    Column("best_quality", _F, "", "How good the best model's answer would have been, as nobody knew"),
    Column("list_usd", _F, "USD", "List price of its calls, decisions and judgements"),
    Column("calls", _I, "count", "Calls for it: answers, samples and verifications"),
    Column("call_prompt_tokens", _I, "tokens", "Prompt tokens of all its calls"),
    Column("call_output_tokens", _I, "tokens", "Tokens produced by all its calls"),
    Column("budget_tokens", _I, "tokens", "Reasoning budget of the call that gave its answer"),
    Column("domain", _N, "", "What it is about, as nobody knew"),
)

REPLICAS = (
    Column("start_s", _F, "s", "Begin of the interval"),
    Column("end_s", _F, "s", "End of the interval"),
    Column("pool", _N, "", "Pool"),
    Column("replica", "int32", "", "Replica, numbered over the fleet"),
    Column("state", _N, "", "ready, starting, draining, loading (another LLM), asleep, waking or down at the end"),
    Column("running", "int32", "count", "Requests running at the end of the interval"),
    Column("waiting", "int32", "count", "Requests in the queue at the end of the interval"),
    Column("kv_used_ratio", _F, "", "KV blocks in use / capacity at the end of the interval"),
    Column("kv_cached_ratio", _F, "", "KV blocks cached and unused / capacity at the last step boundary"),
    Column("busy_ratio", _F, "", "Share of the interval in which a step was running", "busy_s / (end_s - start_s)"),
    Column("steps", _I, "count", "Steps done in the interval"),
    Column("batch_mean", _F, "count", "Mean number of tokens per step", "(prompt_tokens + output_tokens) / steps"),
    Column("prompt_tokens", _I, "tokens", "Prompt tokens computed in the interval (by step boundary)"),
    Column("output_tokens", _I, "tokens", "Tokens produced in the interval (by step boundary)"),
    Column(
        "power_w",
        _F,
        "W",
        "Mean power of the accelerators in the interval",
        "(energy of steps + idle power x idle time) / (end_s - start_s)",
    ),
    Column("model", _N, "", "LLM that it holds at the end of the interval; null while it loads one"),
    Column("clock_ratio", _F, "", "Clock over the usual one at the end of the interval, brake and throttling included"),
    Column("cap_w", _F, "W", "Cap of each accelerator at the end of the interval; null without one"),
    Column("temperature_c", _F, "C", "Temperature of the accelerators at the last look; null where it is not followed"),
)

FLEET = (
    Column("start_s", _F, "s", "Begin of the interval"),
    Column("end_s", _F, "s", "End of the interval"),
    Column("pool", _N, "", "Pool"),
    Column("arrivals", _I, "count", "Requests sent to the pool in the interval"),
    Column("finished", _I, "count", "Requests of the pool that finished in the interval"),
    Column("prompt_tokens", _I, "tokens", "Prompt tokens computed"),
    Column("output_tokens", _I, "tokens", "Tokens produced"),
    Column("running", _I, "count", "Requests running at the end of the interval"),
    Column("waiting", _I, "count", "Requests in queues at the end of the interval"),
    Column("replicas_wanted", "int32", "count", "Replicas asked for"),
    Column("replicas_starting", "int32", "count", "Replicas starting"),
    Column("replicas_ready", "int32", "count", "Replicas ready"),
    Column("cost_usd_per_h", _F, "USD/h", "Price of the replicas that are paid for"),
    Column("power_w", _F, "W", "Mean power of the accelerators in the interval"),
    Column("site_power_w", _F, "W", "The same with servers and cooling", "pue x (power_w + power of the servers)"),
    Column(
        "carbon_g", _F, "g", "Greenhouse gases of the interval, in CO2 equivalents; null without a carbon intensity"
    ),
    Column("electricity_usd", _F, "USD", "Price of the site's energy in the interval; null without one"),
    Column(
        "kv_fragmented_ratio",
        _F,
        "",
        "Part of the KV blocks that is free and would serve requests that wait first in their queues for lack of blocks, were it "
        "on one replica; at the end of the interval",
    ),
    Column("site", _N, "", "Where it stands; null without sites"),
    Column(
        "availability_ratio",
        _F,
        "",
        "Of the replica time wanted in the interval, the part in which replicas were ready and could be reached",
    ),
)

EVENTS = (
    Column("time_s", _F, "s", "When"),
    Column(
        "kind",
        _N,
        "",
        "replica_ready, replica_failed, replica_unreachable, replica_reachable and other states of replicas; gateway_lost, "
        "gateway_back; model_load_begun, model_loaded (a replica changes its LLM); "
        "clock_set (count: thousandths of the usual clock), cap_set (watts per accelerator), seats_set, brake, brake_released, "
        "throttled, throttle_over (degrees C), replica_asleep, replica_waking, replica_awake; "
        "flip_to_prefill, flip_to_decode (a router gives a replica another role); totals at the end of the "
        "run: kv_evictions, lost_tokens (with the replica), interruptions (steps stopped for a request), "
        "interruption_wait_us (from these requests to the ends of the operators under way), migrations (to the replica), "
        "migration_pause_us (from leaving the old replica to waiting at this one), migrations_given_up, "
        "loans (of this replica's memory, that began and are over), loans_recalled, loans_given_up; run_end",
    ),
    Column("pool", _N, "", "Pool"),
    Column("replica", "int32", "", "Replica, numbered over the fleet"),
    Column("count", _I, "count", "How many"),
    Column("model", _N, "", "LLM that the replica changes to; null for everything else"),
)

GAPS = (
    Column("pool", _N, "", "Pool"),
    Column("low_s", _F, "s", "Lower edge of the bucket"),
    Column("high_s", _F, "s", "Upper edge of the bucket, 1 % above the lower one"),
    Column("count", _I, "count", "Inter-token gaps in the bucket"),
)

TABLES = {"requests": REQUESTS, "replicas": REPLICAS, "fleet": FLEET, "events": EVENTS, "gaps": GAPS}

_TYPES = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "name": pa.dictionary(pa.int32(), pa.string()),
}


@cache
def arrow_schema(table: str) -> pa.Schema:
    """Arrow schema of a table, with unit, description and formula as field metadata."""
    fields = [
        pa.field(
            column.name,
            _TYPES[column.kind],
            metadata={"unit": column.unit, "description": column.description, "formula": column.formula},
        )
        for column in TABLES[table]
    ]
    return pa.schema(fields, metadata={"table": table, "schema_version": SCHEMA_VERSION})


def with_meanings(name: str, table: pa.Table) -> pa.Table:
    """A table of figures, such as ``summary``, with unit and description of each column as field metadata."""
    fields = []
    for field in table.schema:
        unit, description = meaning(field.name, pa.types.is_integer(field.type))
        told = {"unit": unit, "description": description, "formula": ""}
        fields.append(field.with_metadata(told))
    return table.cast(pa.schema(fields, metadata={"table": name, "schema_version": SCHEMA_VERSION}))
