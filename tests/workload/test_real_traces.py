"""Public traces as they are: figures from the collection's manifest and from independent counts."""

import pytest

from fleetsim.workload.convert import convert_trace
from fleetsim.workload.describe import describe_trace
from fleetsim.workload.formats import detect_format
from tests.workload.conftest import trace

OPEN = "traces/open"
CONV = f"{OPEN}/chat/AzureLLMInferenceTrace_conv_first40min.csv.gz"
MOONCAKE = f"{OPEN}/prefix/mooncake_conversation_first40min.jsonl.gz"


@pytest.mark.parametrize(
    ("path", "form", "requests", "prompt_mean", "output_mean", "rate"),
    [
        (CONV, "azure", 14_176, 1195.1, 201.5, 5.907),
        (f"{OPEN}/chat/AzureLLMInferenceTrace_code_first40min.csv.gz", "azure", 7491, 2040.1, 27.58, 3.131),
        (MOONCAKE, "mooncake", 7851, 12_428, 347.1, 3.275),
        (f"{OPEN}/prefix/mooncake_synthetic_trace.jsonl.gz", "mooncake", 3993, 15_325, 149.1, 3.907),
        (f"{OPEN}/chat/burstgpt3_slice_first188rows.csv", "burstgpt", 187, 790.5, 185.4, 0.005167),
        (f"{OPEN}/chat/llmservingsim_sharegpt-llama-3.1-8b-300-sps10.jsonl.gz", "sharegpt", 300, 857.5, 652.5, 10.3),
        (f"{OPEN}/parquet/azure2023_conv_first40min.parquet", "parquet", 14_176, 1195.1, 201.5, 5.907),
        (f"{OPEN}/parquet/mooncake_conversation_first40min.parquet", "parquet", 7851, 12_428, 347.1, 3.275),
        (f"{OPEN}/parquet/lmsys_arena_27models_first7min.parquet", "parquet", 1004, 139.8, 252.3, 2.395),
    ],
)
def test_counts_and_means(data_dir, path, form, requests, prompt_mean, output_mean, rate):
    found = describe_trace(data_dir / path)
    assert (found["format"], found["requests"]) == (form, requests)
    assert found["prompt_tokens"]["mean"] == pytest.approx(prompt_mean, rel=2e-3)
    assert found["output_tokens"]["mean"] == pytest.approx(output_mean, rel=2e-3)
    assert found["rate_per_s"] == pytest.approx(rate, rel=0.01)


def test_burstiness_of_azure(data_dir):
    found = describe_trace(data_dir / CONV)
    assert found["gap_cv"] == pytest.approx(1.078, abs=1e-3)
    assert found["dispersion"]["1s"] == pytest.approx(1.335, rel=0.01)


def test_reuse_of_mooncake(data_dir):
    found = describe_trace(data_dir / MOONCAKE)["prefix"]
    assert found["hit_ratio"] == pytest.approx(0.3575, abs=0.0005)


def test_mooncake_and_its_parquet_twin_are_the_same_workload(data_dir):
    twin = f"{OPEN}/parquet/mooncake_conversation_first40min.parquet"
    first = trace(data_dir, format="mooncake", path=MOONCAKE).requests()
    second = trace(data_dir, format="parquet", path=twin).requests()
    for a, b in zip(first, second, strict=True):
        assert (a.arrival_s, a.prompt_tokens, a.output_tokens) == (b.arrival_s, b.prompt_tokens, b.output_tokens)
        assert a.content.hashes == b.content.hashes


def test_real_token_ids_hash_to_the_published_reuse_pattern(data_dir):
    """Our block hashes of the ShareGPT token ids are equal exactly where those of the vLLM run's file are."""
    own = trace(data_dir, format="sharegpt", path=f"{OPEN}/chat/llmservingsim_sharegpt-llama-3.1-8b-300-sps10.jsonl.gz")
    other_file = data_dir.parent / "acceptance/data/vllm-rtx4090-llama-3.1-8b.parquet"
    if not other_file.exists():
        pytest.skip(f"no {other_file.name} beside the evaluation data")
    other = trace(data_dir, format="parquet", path=str(other_file))
    mine, theirs = {}, {}
    for a, b in zip(own.requests(), other.requests(), strict=True):
        assert a.prompt_tokens == b.prompt_tokens
        known_a, known_b = (c.content.hashes if c.content else () for c in (a, b))
        for x, y in zip(known_a, known_b, strict=False):
            assert mine.setdefault(x, y) == y
            assert theirs.setdefault(y, x) == x


def test_rows_of_two_recorders_are_put_in_order(data_dir):
    path = data_dir.parent / "acceptance/data/vllm-rtxpro6000-qwen3-30b-a3b.parquet"
    if not path.exists():
        pytest.skip(f"no {path.name} beside the evaluation data")
    found = list(trace(data_dir, format="parquet", path=str(path)).requests())
    assert sorted(r.id for r in found) == list(range(300))
    assert [r.arrival_s for r in found] == sorted(r.arrival_s for r in found)
    assert describe_trace(path)["late_rows"] == 29


def test_mooncake_export_is_the_original(data_dir, tmp_path):
    import gzip

    convert_trace(data_dir / MOONCAKE, tmp_path / "t.parquet")
    convert_trace(tmp_path / "t.parquet", tmp_path / "t.jsonl", to_format="mooncake")
    assert (tmp_path / "t.jsonl").read_bytes() == gzip.decompress((data_dir / MOONCAKE).read_bytes())


def test_every_open_trace_is_recognised_or_told_apart(data_dir):
    for path in sorted((data_dir / OPEN / "parquet").glob("*.parquet")):
        assert detect_format(path) == "parquet"
    assert detect_format(data_dir / OPEN / "chat/burstgpt1_aggregates_minute_hour_day.json") is None


def test_session_hashes_of_agents(data_dir):
    found = describe_trace(data_dir / OPEN / "parquet/lmcache_agent_traces.parquet")
    assert found["prefix"]["hit_ratio"] > 0.8
    assert found["sessions"]["sessions"] > 30
