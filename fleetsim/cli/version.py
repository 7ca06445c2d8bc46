"""``fleetsim version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

import fleetsim
from fleetsim.cli.console import json_option, print_json

PACKAGES = ("simpy", "numpy", "scipy", "pyarrow", "pydantic", "ruamel.yaml", "click", "rich")


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Versions of fleetsim and of what it stands on."""
    versions = {"fleetsim": fleetsim.__version__, "python": platform.python_version(), "platform": platform.platform()}
    versions |= {name: _version(name) for name in PACKAGES}
    if as_json:
        print_json(versions)
        return
    for name, value in versions.items():
        click.echo(f"{name} {value}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
