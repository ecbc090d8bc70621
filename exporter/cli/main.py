"""The command `unskill`. Commands import what is heavy when they run, so that --help is fast."""

from __future__ import annotations

import errno
import os
import sys

import click

from exporter.cli.commands.cache import cache_command
from exporter.cli.commands.chat import chat_command
from exporter.cli.commands.evaluate import evaluate_command
from exporter.cli.commands.export import export_command
from exporter.cli.commands.families import families_command
from exporter.cli.commands.inspect import inspect_command
from exporter.cli.commands.onnx import build_ops_command, onnx_command
from exporter.cli.commands.probe import probe_command
from exporter.cli.commands.push import push_command
from exporter.cli.commands.report import report_command
from exporter.cli.commands.restore import restore_command
from exporter.cli.commands.skills import skills_command
from exporter.cli.commands.verify import verify_command
from exporter.common.errors import BadInput, RunFailed, UnskillError
from exporter.common.text import printable
from exporter.common.version import __version__

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of a write to a disk that takes no more; those of files that unskill writes are caught where it does."""


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="unskill")
@click.pass_context
def cli(context: click.Context, /) -> None:
    """Write a checkpoint of a causal language model that no longer shows a skill (arXiv:2503.21730)."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


cli.add_command(export_command)
cli.add_command(skills_command)
cli.add_command(families_command)
cli.add_command(probe_command)
cli.add_command(evaluate_command)
cli.add_command(report_command)
cli.add_command(onnx_command)
cli.add_command(build_ops_command)
cli.add_command(verify_command)
cli.add_command(restore_command)
cli.add_command(inspect_command)
cli.add_command(push_command)
cli.add_command(chat_command)
cli.add_command(cache_command)


def main() -> None:
    """Entry point. Errors are one line; exit 0 done, 1 failed, 2 wrong usage or bad input, 130 on Ctrl-C."""
    if sys.stderr is None:  # closed, as by 2>&-
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        if sys.stdout is None:
            raise RunFailed("stdout is closed: give it a file, or /dev/null")
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`).
        drop_output()
        code = RunFailed.exit_code
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        drop_output()
        click.echo(f"unskill: error: stdout cannot be written ({error.strerror})", err=True)
        code = RunFailed.exit_code
    except click.ClickException as error:
        click.echo(f"unskill: error: {printable(error.format_message())}", err=True)
        code = BadInput.exit_code
    except UnskillError as error:
        click.echo(f"unskill: error: {printable(str(error))}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("unskill: interrupted", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def drop_output() -> None:
    """Let nothing that is still in the buffer of stdout fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
