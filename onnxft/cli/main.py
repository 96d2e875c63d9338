"""The `onnxft` command: subcommands load when they are called, errors become messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from onnxft import __version__
from onnxft.errors import ExitStatus, OnnxftError, near

COMMANDS = {
    # name: (module with a command of that name, line in --help)
    "export": ("onnxft.cli.export", "Export a model as a training artifact."),
    "train": ("onnxft.cli.train", "Fine-tune an artifact."),
    "bench": ("onnxft.cli.bench", "Measure the training step on providers and baselines."),
    "inspect": ("onnxft.cli.inspect", "Show what an artifact or a model holds."),
    "setup": ("onnxft.cli.setup", "Make the environment of onnxruntime-training."),
    "doctor": ("onnxft.cli.doctor", "Show which providers really run here."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed; `--help` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click, with the nearest names for a typo."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command '{args[0]}'.{near(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from `COMMANDS` alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxft")
def cli() -> None:
    """Fine-tune models through ONNX on whatever hardware ONNX Runtime can reach."""


def main() -> None:
    """Entry point: errors of onnxft are one message on stderr and the exit code of their kind."""
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(ExitStatus.INTERRUPTED)
    except OnnxftError as err:
        if not err.told:
            click.echo(f"Error: {err}", err=True)
        sys.exit(err.exit_status)
    sys.exit(status if isinstance(status, int) else ExitStatus.OK)
