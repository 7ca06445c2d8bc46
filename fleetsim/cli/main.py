"""The command ``fleetsim``: commands by name, imported when used; the one place that turns errors into exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

import fleetsim
from fleetsim.errors import FleetsimError, InputError

OK, FAILED, BAD_INPUT, SLO_MISSED, TERMINATED, INTERRUPTED = 0, 1, 2, 3, 143, 130

COMMANDS = {
    "run": "Simulate a scenario and say whether the fleet keeps up.",
    "sweep": "Run a scenario with every combination of some values, several times each.",
    "optimise": "Search over values of a scenario for the best trade-offs between its figures.",
    "report": "One HTML page that shows results.",
    "plan": "The cheapest fleet for a workload and its SLO, proved by simulation.",
    "find-rate": "Highest request rate at which a fleet keeps its SLO.",
    "find-fleet": "Cheapest fleet whose simulation keeps the SLO.",
    "compare": "What differs between systems, how surely, and which settings.",
    "query": "Ask the tables of runs a question in SQL.",
    "export": "Write runs as other tools write theirs.",
    "import": "Make a result folder of a run that another tool measured.",
    "validate": "Check scenario files without running them.",
    "init": "Write a commented scenario to start from.",
    "show": "Memory, limits and physical floors of a model, a chip or a pool.",
    "list": "What can be named in a scenario.",
    "trace": "Describe, convert, generate and fetch request traces.",
    "calibrate": "Fit the physics to measurements of your own server or accelerator.",
    "profile": "Measure this machine's accelerators for `calibrate`.",
    "accuracy": "Errors of the physics against published measurements.",
    "reproduce": "Published figures of policies beside ours.",
    "arena": "Policies against each other on a fixed suite of scenarios.",
    "bench": "Speed of the simulator on this machine.",
    "docs": "Write pages about policies, scenario fields, tables and commands.",
    "schema": "JSON Schema of scenario files, for editors.",
    "version": "Versions of fleetsim and of what it stands on.",
}
"""Commands in the order of use, each a module of this package with a click command `command`, and their help."""


class Commands(click.Group):
    """Group that imports a command only when it is called, and reports every error in a line or two."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"fleetsim.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Command to run; a mistyped one is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from fleetsim.errors import nearest

            ctx.fail(f'no command "{args[0][:60]}". {nearest(args[0], COMMANDS, "commands")}')
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; the process ends with one of the documented exit codes."""
        del standalone_mode
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except (KeyboardInterrupt, click.exceptions.Abort):
            _leave(INTERRUPTED, "interrupted")
        except click.ClickException as error:
            error.show(sys.stderr)
            sys.exit(BAD_INPUT)
        except InputError as error:
            from fleetsim.cli.console import print_findings

            print_findings(error.findings)
            sys.exit(BAD_INPUT)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(FAILED)
        except Exception as error:
            _failed(error)
        sys.exit(code if isinstance(code, int) else OK)


def _failed(error: Exception) -> NoReturn:
    if os.environ.get("FLEETSIM_DEBUG"):
        import traceback

        traceback.print_exc()
        sys.exit(FAILED)
    if isinstance(error, FleetsimError):
        _leave(error.exit_code, f"error: {error}")
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        _leave(FAILED, f"error: {name}{error.strerror or error}")
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    _leave(FAILED, f"internal error: {what}\n    FLEETSIM_DEBUG=1 shows where; please report it with the scenario")


def _leave(code: int, message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise SystemExit(TERMINATED)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`fleetsim run` without a file runs a small example. Results go to stdout, everything else to stderr.",
)
@click.version_option(fleetsim.__version__, "-V", "--version", message="fleetsim %(version)s")
def cli() -> None:
    """Simulate fleets that serve language models: latency, goodput, cost and energy under real traces."""


def main() -> NoReturn:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminated)
    cli.main()
    raise AssertionError("the command group ends the process")
