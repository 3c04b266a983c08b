"""The table of commands, and what becomes of a command that fails.

Imports no command before it is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

COMMANDS = {
    "run": ("run", "Answer a prompt, or chat."),
    "chat": ("run", "Chat with a model."),
    "image": ("image", "Draw a picture."),
    "embed": ("embed", "Turn texts into vectors."),
    "score": ("score", "Say how likely texts are behind a prompt."),
    "tokenize": ("tokenize", "Show the tokens of a text."),
    "pull": ("models", "Fetch a model into the store."),
    "import": ("models", "Bring in a GGUF file, an MLX or Hugging Face directory, an adapter."),
    "list": ("models", "List the models of the store."),
    "show": ("models", "Show one model."),
    "cp": ("models", "Give a model a second name."),
    "rm": ("models", "Remove models from the store."),
    "verify": ("upkeep", "Read models and find what is damaged."),
    "gc": ("upkeep", "Remove what belongs to no model."),
    "serve": ("serve", "Run a controller."),
    "ps": ("runners", "List the loaded models."),
    "load": ("runners", "Load a model."),
    "stop": ("runners", "Unload models."),
    "top": ("top", "Show live what models and runners do."),
    "logs": ("logs", "Show log lines of controllers and runners."),
    "trace": ("trace", "Draw a trace with its log lines."),
    "health": ("health", "Say whether a server is ready, for probes."),
    "token": ("tokens", "Make, list and revoke tokens for a server."),
    "cert": ("certificates", "Make certificates to try TLS with."),
    "doctor": ("doctor", "Look at this machine and say what would help."),
    "version": ("about", "Show the version."),
    "completion": ("about", "Print the completion script of a shell."),
}
"""By name: the module with the command (a function `<name>_command`), and its line of help."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"headrace.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            nearest = get_close_matches(args[0], COMMANDS, 1)
            if not nearest:
                raise
            raise click.UsageError(f"{error.message} Did you mean {nearest[0]}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Out of the table: help must not import every command.
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Environment:
  HEADRACE_HOST   where the controller listens (default 127.0.0.1:50151; unix:/path; https://host)
  HEADRACE_TOKEN  what it knows you by, where it asks for that
  HEADRACE_HOME   where models are kept (default ~/.headrace)

\b
Exit codes:
  0  done            1  failed          2  wrong usage or invalid request
  3  not found       4  unavailable     5  not allowed
  130  interrupted""",
)
@click.version_option(
    None, "-V", "--version", package_name="headrace", message="headrace %(version)s"
)
def cli() -> None:
    """Run models for text, images and embeddings with MLX, over gRPC."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command and gives its exit code; errors are told on stderr."""
    # Click asks no more than whether there is a terminal.
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    color = False if plain else None
    with click.Context(cli, color=color):  # for what is told of errors, after the command's own
        return _run(arguments, color)


def _run(arguments: Sequence[str], color: bool | None) -> int:
    try:
        result = cli.main(list(arguments), prog_name="headrace", standalone_mode=False, color=color)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader is gone, as in `headrace list | head`; nor can the exit flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {place}{error.strerror or error}", err=True)
        # What could not be written must not be tried again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        from headrace.cli.failures import exit_code, report
        from headrace.errors import HeadraceError

        if not isinstance(error, HeadraceError):
            raise
        report(error)
        return exit_code(error)
