"""`stillhouse serve [TIER=PIPELINE...]`: serve images over HTTP and gRPC, with a web page."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.cache_directory import cache_directory
from stillhouse.cli.arguments import integer, positive_integer
from stillhouse.cli.opening import COMPILED
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.logs import configure_logging
from stillhouse.serve.run import Addresses, run_server
from stillhouse.serve.settings import ServerSettings, read_server_settings, replace_pipelines

_SETTINGS_OPTIONS = ("host", "port", "data", "policy", "memory", "backend", "precision", "threads")


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse serve`, which override values of the settings file, to its argument parser."""
    parser.add_argument(
        "tiers",
        nargs="*",
        type=parse_tier,
        metavar="TIER=PIPELINE",
        help="pipeline of each tier; default: free=shapes-3 pro=shapes",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file, stillhouse.toml")
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on; default: 127.0.0.1")
    parser.add_argument("--port", type=integer, metavar="N", help="HTTP port; 0: any free port; default: 8000")
    parser.add_argument(
        "--grpc-port", type=integer, metavar="N", help="gRPC port; 0: any free port; -1: no gRPC; default: 8001"
    )
    parser.add_argument("--data", metavar="DIR", help="directory of keys, jobs and images; default: stillhouse-data")
    parser.add_argument("--keys", action="store_true", default=None, help="require an API key, see stillhouse keys")
    parser.add_argument("--policy", choices=sorted(POLICIES), help="scheduling policy; default: slack")
    parser.add_argument("--memory", metavar="SIZE", help="memory budget of loaded pipelines; default: 8GiB")
    parser.add_argument("--backend", metavar="NAME", help="see stillhouse doctor; default: the pipelines' own")
    parser.add_argument("--precision", metavar="NAME", help="precision of the denoisers; default: the pipelines' own")
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="number of threads; default: the backend decides"
    )
    parser.add_argument("--log", choices=("json", "text"), help="log format; default: text on a terminal, else json")


def run(arguments: Namespace) -> int:
    """Run the server until the signal SIGINT or SIGTERM arrives, then return exit code 0."""
    configure_logging(arguments.log or ("text" if sys.stderr.isatty() else "json"))
    run_server(make_server_settings(arguments), cache_directory(COMPILED), _print_addresses)
    return 0


def make_server_settings(arguments: Namespace) -> ServerSettings:
    """Return the server's settings: those of the file --config, in which options of the command line replace values."""
    settings = read_server_settings(arguments.config) if arguments.config else ServerSettings()
    options: dict[str, Any] = {name: getattr(arguments, name) for name in (*_SETTINGS_OPTIONS, "keys")}
    settings = replace(settings, **{name: value for name, value in options.items() if value is not None})
    if arguments.grpc_port is not None:
        settings = replace(settings, grpc_port=max(-1, arguments.grpc_port))
    return replace_pipelines(settings, dict(arguments.tiers)) if arguments.tiers else settings


def parse_tier(text: str) -> tuple[str, str]:
    """Parse TIER=PIPELINE, and return the name of the tier (model name that clients request) and its pipeline.

    Without `TIER=`, the name of the tier is "model".

    >>> parse_tier("pro=./my-model"), parse_tier("shapes")
    (('pro', './my-model'), ('model', 'shapes'))
    """
    name, equals, pipeline = text.partition("=")
    if not equals:
        return "model", text
    if not name.isidentifier() or not pipeline:
        raise ArgumentTypeError(
            f"{text!r} is not a tier with a pipeline; allowed: TIER=PIPELINE, for example pro=./my-model"
        )
    return name, pipeline


def _print_addresses(addresses: Addresses) -> None:
    print(f"studio and API: {addresses.http}   (OpenAPI: {addresses.http}/docs)", flush=True)
    if addresses.grpc:
        print(f"KServe v2 over gRPC: {addresses.grpc}", flush=True)
