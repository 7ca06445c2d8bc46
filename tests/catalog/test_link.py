"""Links: the formula's laws, and its error on measurements that the constants were not fitted to."""

import numpy as np
import pytest

from fleetsim.catalog.data import names
from fleetsim.catalog.link import load_link
from tests.reference import fit_links as fit

measured = pytest.mark.skipif(not fit.OPEN.exists(), reason=f"no measurements at {fit.OPEN}: set FLEETSIM_DATA")


@pytest.mark.parametrize("name", names("link"))
def test_collectives_keep_their_order(name: str) -> None:
    link = load_link(name)
    assert 0 < link.bandwidth_ratio <= 1
    assert 0 < link.send_ratio <= 1
    sizes = [2.0**i for i in range(8, 30, 3)]
    for collective in (link.all_reduce_s, link.all_gather_s, link.all_to_all_s):
        assert collective(1e6, 1) == 0.0
        for ranks in (2, 4, 8):
            times = [collective(size, ranks) for size in sizes]
            assert times == sorted(times)
            assert times[-1] > sizes[-1] * (ranks - 1) / ranks / link.bandwidth_bytes_per_s
    large = 2.0**34
    assert link.all_reduce_s(large, 8) / link.all_gather_s(large, 8) == pytest.approx(2, rel=0.02)
    assert link.send_s(large) > large / link.bandwidth_bytes_per_s
    assert link.start_s(4) == pytest.approx(link.all_reduce_s(0, 4))


def test_one_large_all_reduce_by_hand() -> None:
    """PCIe 5.0 x16 staged: 1 GB on two ranks passes 1 GB at 16 GB/s."""
    link = load_link("pcie5-x16-staged")
    assert link.all_reduce_s(1e9, 2) == pytest.approx(20e-6 + 1e9 / (63e9 * 0.254))


@measured
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("nvlink3", 0.08),
        ("nvlink4", 0.08),
        ("nvlink5", 0.08),
        ("nvlink5-gb200", 0.08),
        ("nvlink5-gb300", 0.08),
        ("pcie4-x16", 0.08),
        ("pcie5-x8", 0.08),
        ("pcie5-x16", 0.10),
    ],
)
def test_all_reduce_on_rows_not_fitted(name: str, bound: float) -> None:
    """256 B to 256 MiB on 2 to 8 accelerators: medAPE 5 to 8 % on NVLink, 6 to 10 % on PCIe."""
    for system, error in fit.errors(fit.collectives(name), load_link(name).all_reduce_s).items():
        assert error < bound, system


@measured
@pytest.mark.parametrize("name", fit.MEASURED)
def test_gathers_on_rows_not_fitted(name: str) -> None:
    """All-gather, reduce-scatter and all-to-all: medAPE 6 to 9 %, 16 % on PCIe 4."""
    bound = 0.18 if name == "pcie4-x16" else 0.10
    for system, error in fit.errors(fit.collectives(name, fit.GATHERS), load_link(name).all_gather_s).items():
        assert error < bound, system


@measured
@pytest.mark.parametrize(("name", "bound"), [("nvlink3", 0.12), ("nvlink4", 0.05), ("infiniband-400", 0.09)])
def test_sends_on_rows_not_fitted(name: str, bound: float) -> None:
    """2 KiB to 64 MiB between two GPUs of a DGX, or of two: medAPE 3 to 11 %."""
    for system, error in fit.send_errors(load_link(name)).items():
        assert error < bound, system


@measured
@pytest.mark.parametrize("name", fit.MEASURED)
def test_files_state_the_fit(name: str) -> None:
    link = load_link(name)
    start = link.all_reduce
    *fitted, contention = fit.all_reduce(name)
    stated = [start.latency_s, start.latency_per_rank_s, start.chunk_s, link.bandwidth_ratio]
    assert stated == pytest.approx(fitted, rel=0.02, abs=2e-9)
    assert link.contention == pytest.approx(contention, rel=0.02, abs=1e-3)
    gather = link.gather
    assert [gather.latency_s, gather.latency_per_rank_s, gather.chunk_s] == pytest.approx(
        fit.gather(name), rel=0.02, abs=2e-9
    )


@measured
@pytest.mark.parametrize("name", fit.SENDS)
def test_files_state_the_fit_of_sends(name: str) -> None:
    link = load_link(name)
    stated = [link.send.latency_s, link.send.chunk_s, link.send_ratio]
    assert stated == pytest.approx(fit.send(name), rel=0.02, abs=2e-9)


@measured
@pytest.mark.parametrize(("name", "node"), [("nvlink3", "a100_dgx"), ("nvlink4", "h100_dgx")])
def test_large_all_reduces_agree_with_another_laboratory(name: str, node: str) -> None:
    """Vidur's NCCL 16 to 64 MiB on a DGX, which nothing was fitted to; small ones there show the host's launches."""
    rows = fit.table("vidur_network")
    rows = rows[(rows.node_type == node) & (rows.collective == "all_reduce") & (rows.message_bytes >= 2**24)]
    rows = rows[rows.num_workers == rows.devices_per_node]
    link = load_link(name)
    guesses = [link.all_reduce_s(size, n) for size, n in zip(rows.message_bytes, rows.num_workers, strict=True)]
    assert float(np.median(np.abs(np.array(guesses) / (rows.latency_ms * 1e-3) - 1))) < 0.15
