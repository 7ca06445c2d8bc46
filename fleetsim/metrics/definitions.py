"""The metric catalogue: one formula per name, and what other tools call it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the summary or a column of the request table."""

    name: str
    unit: str
    formula: str
    aliases: dict[str, str] = field(default_factory=dict)
    """Tool -> its name for the same thing."""


METRICS = (
    Metric("ttft_s", "s", "first_token_s - arrival_s: time to first token, queueing included",
           {"vllm": "ttft", "aiperf": "time_to_first_token", "guidellm": "time_to_first_token_ms", "mlperf": "TTFT"}),
    Metric("tpot_s", "s", "(end_s - first_token_s) / (output_tokens - 1): mean gap after the first token; null below two tokens",
           {"vllm": "tpot", "aiperf": "inter_token_latency", "guidellm": "inter_token_latency_ms", "mlperf": "TPOT"}),
    Metric("itl_s", "s", "every single gap between two tokens of a request, pooled (log histogram, 1 % buckets)",
           {"vllm": "itl", "inference-perf": "ITL", "llm-d": "inter_token_latency"}),
    Metric("ntpot_s", "s", "e2el_s / output_tokens: time per token, the first included",
           {"inference-perf": "NTPOT", "guidellm": "time_per_output_token_ms", "llm-d": "normalized_time_per_output_token"}),
    Metric("e2el_s", "s", "end_s - arrival_s: end-to-end latency",
           {"vllm": "e2el", "aiperf": "request_latency", "guidellm": "request_latency"}),
    Metric("queue_wait_s", "s", "first_scheduled_s - queued_s: wait in the replica's queue",
           {"vllm": "vllm:request_queue_time_seconds"}),
    Metric("itl_max_s", "s", "largest gap between two tokens of a request"),
    Metric("slo_attainment_ratio", "",
           "requests that finish within all limits / all requests, rejected and unfinished ones included",
           {"inference-perf": "goodput %"}),
    Metric("goodput_requests_per_s", "1/s", "good measured requests / time from their first arrival to the last end",
           {"vllm": "request_goodput", "aiperf": "goodput"}),
    Metric("requests_per_s", "1/s", "finished requests / makespan_s", {"vllm": "request_throughput"}),
    Metric("prompt_tokens_per_s", "1/s", "prompt tokens of finished requests / makespan_s"),
    Metric("output_tokens_per_s", "1/s", "tokens produced / makespan_s", {"vllm": "output_throughput"}),
    Metric("total_tokens_per_s", "1/s", "(prompt + output tokens of finished requests) / makespan_s",
           {"vllm": "total_token_throughput"}),
    Metric("output_tokens_per_s_per_accelerator", "1/s", "output_tokens_per_s / accelerators of the fleet",
           {"inferencex": "output_tput_per_gpu"}),
    Metric("makespan_s", "s", "end of the last request - arrival of the first",
           {"vllm": "duration", "aiperf": "benchmark_duration"}),
    Metric("prefix_hit_ratio", "", "prompt tokens found in the prefix cache / prompt tokens of requests that were scheduled",
           {"vllm": "prefix_cache_hits / prefix_cache_queries"}),
    Metric("approximate_tokens", "tokens",
           "tokens computed from an approximation of the keys and values before them, or reused as one: a risk to quality"),
    Metric("loaded_tokens", "tokens", "tokens loaded from host memory, drives or the store"),
    Metric("load_mean_s", "s", "mean over requests that loaded any: wait for them after the admission"),
    Metric("kv_host_ratio", "", "tokens loaded from host memory / prompt tokens of requests that were scheduled"),
    Metric("kv_ssd_ratio", "", "the same from drives"),
    Metric("kv_store_ratio", "", "the same from the remote store; what was prefetched from there to the host counts there too"),
    Metric("corrupt_tokens", "tokens", "tokens that were loaded from below and found corrupt: computed after all"),
    Metric("preemptions", "count", "times a running request was stopped to be recomputed", {"vllm": "vllm:num_preemptions"}),
    Metric("migrations", "count", "times a waiting or running request moved to another replica"),
    Metric("migration_pause_mean_s", "s",
           "mean over running requests that moved of the time from leaving the old replica to waiting at the new one"),
    Metric("network_bytes", "B", "keys and values that arrived from another place: transfers, migrations, loans, weights"),
    Metric("recoveries", "count", "times a request was sent again because its replica failed or was killed"),
    Metric(
        "lost_tokens",
        "tokens",
        "tokens whose keys and values were lost with their replica, or that were computed in vain behind a cut in the network",
    ),
    Metric("lost_energy_j", "J", "energy that requests had taken at replicas where they had to begin again elsewhere"),
    Metric("lost_accelerator_s", "s", "time of accelerators that they had taken there"),
    Metric("failed_tries", "count", "times that a client found no gateway"),
    Metric("loans", "count", "times blocks of a running request came to lie on another replica"),
    Metric("loans_recalled", "count", "loans whose blocks were brought back before their request was over"),
    Metric("remote_attention_bytes", "B", "queries to blocks on other replicas, and partial results back"),
    Metric("model_swaps", "count", "times that a replica changed to another LLM"),
    Metric("model_swap_s", "s", "time in which replicas did that, summed: nothing runs there meanwhile"),
    Metric("model_swap_bytes", "B", "weights loaded for it"),
    Metric("model_swap_energy_j", "J", "its time x (static - idle power): what loading adds to idle power, part of energy_idle_j"),
    Metric("mfu_ratio", "",
           "2 x active parameters x (prompt tokens computed + output tokens) / (peak FLOP/s x busy time), "
           "dense peak of the arithmetic used; attention not counted"),
    Metric("mbu_ratio", "", "(weights read once per step + context read by decode attention) / (memory bandwidth x busy time)"),
    Metric("compute_bound_tokens_per_s", "1/s",
           "sum over pools of accelerators x dense peak FLOP/s / (2 x active parameters): no engine computes more tokens"),
    Metric("compute_bound_measured_tokens_per_s", "1/s", "the same with the peak that measured matrix products reach"),
    Metric("compute_bound_ratio", "",
           "(prompt tokens computed + output tokens) / simulated_s / compute_bound_tokens_per_s"),
    Metric("batch_mean", "count", "tokens computed / steps"),
    Metric("busy_ratio", "", "time in which a step runs / time, mean over replicas"),
    Metric("kv_used_mean_ratio", "", "mean over samples and replicas of KV blocks in use / capacity",
           {"vllm": "vllm:kv_cache_usage_perc"}),
    Metric("accelerator_hours", "h", "time for which accelerators were paid for, added up"),
    Metric("energy_j", "J", "all accelerators, idle time included"),
    Metric("energy_idle_j", "J",
           "idle power of the accelerators x the time in which no step runs, and model_swap_energy_j: charged to no request"),
    Metric("energy_requests_j", "J", "sum over requests of their share of the steps' energy: energy_j - energy_idle_j"),
    Metric("kv_fragmented_mean_ratio", "", "mean over samples and pools of kv_fragmented_ratio in the fleet table"),
    Metric("gateway_energy_j", "J", "decisions of the gateway: their number x the policy's figure"),
    Metric("host_energy_j", "J",
           "servers around the accelerators: host_busy x busy time + host_idle x idle time + gateway_energy_j"),
    Metric("host_energy_idle_j", "J", "of that, while no step runs"),
    Metric("site_energy_j", "J", "pue x (energy_j + host_energy_j)"),
    Metric("site_energy_idle_j", "J", "pue x (energy_idle_j + host_energy_idle_j): charged to no request"),
    Metric("site_energy_requests_j", "J", "sum over requests of their share: site_energy_j - site_energy_idle_j"),
    Metric("site_energy_per_output_token_j", "J", "site_energy_j / tokens produced"),
    Metric("carbon_g", "g", "site_energy_j in kWh x carbon_intensity, in CO2 equivalents; null without one"),
    Metric("carbon_idle_g", "g", "of site_energy_idle_j"),
    Metric("carbon_requests_g", "g", "sum over requests: carbon_g - carbon_idle_g"),
    Metric("carbon_per_request_mean_g", "g", "mean over finished requests of their share, idle time left out"),
    Metric("carbon_per_million_output_tokens_g", "g", "carbon_g / tokens produced x 1e6"),
    Metric("electricity_cost_usd", "USD", "site_energy_j in kWh x electricity_price; null without one; not part of cost_usd"),
    Metric("energy_per_output_token_j", "J", "energy_j / tokens produced"),
    Metric("energy_per_request_mean_j", "J", "mean over finished requests of their share of the steps' energy"),
    Metric("power_mean_w", "W", "energy_j / time simulated"),
    Metric("power_peak_w", "W", "largest fleet power over the sampling intervals (means over each interval)"),
    Metric("cost_usd", "USD", "price x time simulated, summed over replicas"),
    Metric("cost_per_million_output_tokens_usd", "USD", "cost_usd / tokens produced x 1e6"),
)  # fmt: skip
"""What fleetsim reports. Latencies appear in the summary as ``<name>_mean_s``, ``_p50_s``, ``_p90_s``, ``_p95_s``, ``_p99_s``."""
