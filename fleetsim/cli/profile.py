"""``fleetsim profile``."""

from __future__ import annotations

from pathlib import Path

import click

OPS = ("gemm", "prefill_attention", "decode_attention", "copy", "all_reduce", "power")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("kernels.parquet"),
    show_default=True,
    help="Table to write, .parquet or .csv.",
)
@click.option("--quick", is_flag=True, help="About a quarter of the kernels: enough for every fit.")
@click.option("--only", multiple=True, type=click.Choice(OPS), help="Measure this only; repeatable.")
@click.option("--force", is_flag=True, help="Replace the table if it exists.")
def command(out: Path, quick: bool, only: tuple[str, ...], force: bool) -> None:
    """Measure this machine's GPU in a few minutes, for `fleetsim calibrate`.

    Matrix products in 16 bits (and 8, where the chip has them), attention over prompts and in decoding, copies, all-reduce
    over the machine's GPUs, and power at rest and under load. Needs torch: pip install "fleetsim[gpu]". Nothing else should
    run on the GPU meanwhile.
    """
    from fleetsim.calibration.gpu_profile import catalogue_name, profile, require_gpu, write_table
    from fleetsim.errors import Finding, InputError

    if out.suffix not in (".parquet", ".csv"):
        raise InputError(Finding("a table ends in .parquet or .csv", file=str(out)))
    if out.exists() and not force:
        raise InputError(Finding("exists already: choose another --out, or --force", file=str(out)))
    torch = require_gpu()
    rows, failed = profile(torch, quick, only or OPS, lambda line: click.echo(line, err=True))
    for line in failed:
        click.echo(f"not measured: {line}", err=True)
    if not rows:
        raise InputError("nothing could be measured")
    write_table(rows, out)
    gpu = str(rows[0]["gpu"])
    click.echo(f"{out}: {len(rows)} rows of {gpu}")
    name = catalogue_name(gpu) or "NAME"
    click.echo(f"next: fleetsim calibrate {out} --accelerator {name}", err=True)
    if name == "NAME":
        click.echo("NAME is that of the chip in `fleetsim list accelerators`", err=True)
