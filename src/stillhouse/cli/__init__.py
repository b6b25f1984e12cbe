"""The command line: one file for each command, which says what it takes (`declare`) and does it (`run`)."""

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import import_module

import stillhouse
from stillhouse.cli.arguments import Parser
from stillhouse.errors import InvalidRequest, StillhouseError

COMMANDS: Mapping[str, tuple[str, str]] = {
    "generate": ("generate", "draw pictures from prompts"),
    "demo": ("demo", "draw twelve pictures with the embedded model, on one sheet"),
    "import": ("import_", "turn a diffusers model into a pipeline that needs no torch"),
    "accelerate": ("accelerate", "measure every way to run a model on this machine, and keep the best"),
    "choose": ("choose", "decide again among what `accelerate` measured"),
    "check": ("check", "measure again what was chosen, and say whether it is still as fast and as good"),
    "distill": ("distill", "teach a pipeline to take fewer steps, each measured against its teacher's"),
    "serve": ("serve", "serve pictures over HTTP and gRPC, with a page to try it on"),
    "keys": ("keys", "say who may ask a server, and for how much"),
    "bench-serve": ("bench_serve", "load a server with requests, and measure what it keeps of its promises"),
    "models": ("models", "list the embedded models"),
    "doctor": ("doctor", "show what this machine can run, and what is missing"),
    "judge": ("judge", "measure how well a model draws what it is told, alone or against its teacher"),
}
"""By name: the file in this room, and what the command does. Only the file of the command in use is loaded."""

INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0; 1 where the answer is no; 2 for a mistake that the message explains; 130 for Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            arguments = parse(argv)
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
        except StillhouseError as error:
            return _print_error(error)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            # The reader has gone; without this, Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except OSError as error:
            return _print_error(StillhouseError(f"{error.filename or 'the system'}: {error.strerror or error}"))


def parse(argv: Sequence[str]) -> Namespace:
    """The arguments of one command, with its `run`.

    Raises:
        InvalidRequest: no command, an unknown one, or arguments that it does not take.
    """
    asked = argv[0] if argv else ""
    if asked not in COMMANDS and not asked.startswith("-"):
        given = f"there is no command {asked!r}" if asked else "no command was given"
        raise InvalidRequest(given, allowed=", ".join(COMMANDS), fix="see stillhouse --help")
    parser = Parser(prog="stillhouse", description="Diffusion models made cheap to serve.")
    parser.add_argument("--version", action="version", version=f"stillhouse {stillhouse.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (file, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if name == asked:
            module = import_module(f"{__name__}.{file}")
            module.declare(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def _print_error(error: StillhouseError) -> int:
    parts = (f"error: {error.given}", f"  allowed: {error.allowed}" if error.allowed else "", f"  {error.fix or ''}")
    print("\n".join(part for part in parts if part.strip()), file=sys.stderr)
    return error.exit_code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
