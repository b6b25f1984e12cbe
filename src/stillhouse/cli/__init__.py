"""Command line. Each command has a module with two functions: `declare` adds its options, and `run` executes it."""

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import import_module

import stillhouse
from stillhouse.cli.arguments import Parser
from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.interrupt import hold_interrupt

COMMANDS: Mapping[str, tuple[str, str]] = {
    "generate": ("generate", "generate images from prompts"),
    "demo": ("demo", "generate a contact sheet of twelve images with the embedded model"),
    "import": ("import_", "convert a diffusers model to a pipeline that needs no torch"),
    "accelerate": ("accelerate", "measure backends, precisions and samplers on this machine and keep the best"),
    "choose": ("choose", "select again among the candidates that `accelerate` measured"),
    "check": ("check", "check that an accelerated pipeline is still as fast and accurate"),
    "distill": ("distill", "distill a pipeline to fewer steps and evaluate it against its teacher"),
    "serve": ("serve", "serve images over HTTP and gRPC, with a web page"),
    "keys": ("keys", "manage API keys and their limits"),
    "bench-serve": ("bench_serve", "load-test a server and report latency and goodput"),
    "models": ("models", "list the embedded models"),
    "doctor": ("doctor", "show available backends, and install commands of missing ones"),
    "judge": ("judge", "evaluate prompt adherence of a model, alone or against its teacher"),
}
"""Module and description of each command, by the command's name. Only the module of the requested command is imported.
"""

INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and print errors and warnings on standard error.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        the exit code. 0: success. 1: a negative result, such as a regression. 2: an error, which is printed. 130:
        interrupted by Ctrl-C. 141: the reader of standard output has closed the pipe.
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
            # stdout is replaced by os.devnull, because Python flushes stdout at exit, and a flush to the closed pipe
            # would raise the error again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except OSError as error:
            return _print_error(StillhouseError(f"{error.filename or 'the system'}: {error.strerror or error}"))


def parse(argv: Sequence[str]) -> Namespace:
    """Parse the arguments of the program, the name of a command and the command's options, and return the options.

    The attribute `run` of the result is the function that executes the command. InvalidRequest is raised if the command
    is missing or unknown, or its arguments are invalid.
    """
    name = argv[0] if argv else ""
    if name not in COMMANDS and not name.startswith("-"):
        problem = f"there is no command {name!r}" if name else "no command was given"
        raise InvalidRequest(problem, allowed=", ".join(COMMANDS), fix="see stillhouse --help")
    parser = Parser(prog="stillhouse", description="Diffusion models made cheap to serve.")
    parser.add_argument("--version", action="version", version=f"stillhouse {stillhouse.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command_name, (file, purpose) in COMMANDS.items():
        command = commands.add_parser(command_name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if command_name == name:
            with hold_interrupt():
                module = import_module(f"{__name__}.{file}")
            module.declare(command)
            command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def _print_error(error: StillhouseError) -> int:
    parts = (f"error: {error.problem}", f"  allowed: {error.allowed}" if error.allowed else "", f"  {error.fix or ''}")
    print("\n".join(part for part in parts if part.strip()), file=sys.stderr)
    return error.exit_code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
