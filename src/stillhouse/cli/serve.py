"""`stillhouse serve [TIER=PIPELINE...]`: pictures over HTTP and gRPC, and a page to try it on."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.cli.arguments import integer, positive_integer
from stillhouse.cli.opening import compile_cache
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.logs import configure_logging
from stillhouse.serve.run import Addresses
from stillhouse.serve.run import run_server as serve
from stillhouse.serve.settings import ServerSettings, read_server_settings, replace_pipelines

_SETTINGS_OPTIONS = ("host", "port", "data", "policy", "memory", "backend", "precision", "threads")


def declare(parser: ArgumentParser) -> None:
    """The options of `serve`; they go before what the file says."""
    parser.add_argument(
        "tiers",
        nargs="*",
        type=parse_tier,
        metavar="TIER=PIPELINE",
        help="who is served with what; default: free=shapes-3 pro=shapes",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="stillhouse.toml")
    parser.add_argument("--host", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=integer, metavar="N", help="of HTTP; 0: any; default: 8000")
    parser.add_argument("--grpc-port", type=integer, metavar="N", help="0: any; -1: none; default: 8001")
    parser.add_argument("--data", metavar="DIR", help="keys, jobs and their pictures; default: stillhouse-data")
    parser.add_argument("--keys", action="store_true", default=None, help="only with a key, see stillhouse keys")
    parser.add_argument("--policy", choices=sorted(POLICIES), help="who goes first; default: slack")
    parser.add_argument("--memory", metavar="SIZE", help="for all open pipelines together; default: 8GiB")
    parser.add_argument("--backend", metavar="NAME", help="engine, see stillhouse doctor; default: the pipelines' own")
    parser.add_argument("--precision", metavar="NAME", help="of the U-Nets; default: the pipelines' own")
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="at most so many; default: the engine decides"
    )
    parser.add_argument("--log", choices=("json", "text"), help="default: text at a terminal, json elsewhere")


def run(arguments: Namespace) -> int:
    """Serve until it is ended by a signal."""
    configure_logging(arguments.log or ("text" if sys.stderr.isatty() else "json"))
    serve(make_server_settings(arguments), compile_cache(), _print_addresses)
    return 0


def make_server_settings(arguments: Namespace) -> ServerSettings:
    """What the file says, and the command line before it."""
    settings = read_server_settings(arguments.config) if arguments.config else ServerSettings()
    said: dict[str, Any] = {name: getattr(arguments, name) for name in (*_SETTINGS_OPTIONS, "keys")}
    settings = replace(settings, **{name: value for name, value in said.items() if value is not None})
    if arguments.grpc_port is not None:
        settings = replace(settings, grpc_port=None if arguments.grpc_port < 0 else arguments.grpc_port)
    return replace_pipelines(settings, dict(arguments.tiers)) if arguments.tiers else settings


def parse_tier(text: str) -> tuple[str, str]:
    """A tier and its pipeline; one that is not named is called "model".

    >>> tier("pro=./my-model"), tier("shapes")
    (('pro', './my-model'), ('model', 'shapes'))
    """
    name, equals, pipeline = text.partition("=")
    if not equals:
        return "model", text
    if not name.isidentifier() or not pipeline:
        raise ArgumentTypeError(f"{text!r}; allowed: TIER=PIPELINE, for example pro=./my-model")
    return name, pipeline


def _print_addresses(addresses: Addresses) -> None:
    print(f"studio and API: {addresses.http}   (OpenAPI: {addresses.http}/docs)", flush=True)
    if addresses.grpc:
        print(f"KServe v2 over gRPC: {addresses.grpc}", flush=True)
