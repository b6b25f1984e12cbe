"""`stillhouse bench-serve --class NAME=SHARE...`: send requests to a server, and report its latency and goodput.

Goodput counts only requests that are answered within their latency target.
"""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from stillhouse.cli.arguments import as_argument, duration, integer, number, positive_integer
from stillhouse.cli.progress import show_progress
from stillhouse.cli.table import format_table
from stillhouse.images.files import write_file
from stillhouse.serve.loadgen.benchmark import PROTOCOLS, LoadTest, run_benchmark
from stillhouse.serve.loadgen.load_report import LoadReport, LoadReportRow
from stillhouse.serve.loadgen.request_class import RequestClass, parse_flood, parse_request_class

DEFAULT_CLASSES = (RequestClass("free", 0.8, "free"), RequestClass("pro", 0.2, "pro"))
"""Default classes of requests: 80 % for the tier "free" and 20 % for "pro", the default tiers of `stillhouse serve`."""
NONE_ANSWERED = 1
_HEADINGS = ("class", "sent", "answered", "rejected", "p50", "p90", "p99", "target", "in time", "in time/s", "errors")


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse bench-serve` to its argument parser."""
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="URL of the server; default: http://127.0.0.1:8000",
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="openai", help="protocol of the server; default: openai"
    )
    parser.add_argument(
        "--key", action="append", default=[], metavar="KEY", help="API key; repeatable, assigned to clients in turn"
    )
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        type=as_argument(parse_request_class),
        metavar="NAME=SHARE[:FIELD=VALUE...]",
        help="class of requests; repeatable, for example pro=0.2:steps=35; "
        "fields: steps, guidance, sampler, size, seed, model (default: "
        "the name), isolated (its isolated latency in seconds; default: measured); default: free=0.8 and pro=0.2",
    )
    rate_options = parser.add_mutually_exclusive_group()
    rate_options.add_argument(
        "--load",
        type=number,
        default=0.7,
        metavar="X",
        help="offered load relative to sequential throughput; default: 0.7",
    )
    rate_options.add_argument("--rate", type=number, metavar="X", help="requests per second")
    length_options = parser.add_mutually_exclusive_group()
    length_options.add_argument("--seconds", type=duration, default=60.0, metavar="TIME", help="duration; default: 60s")
    length_options.add_argument("--count", type=positive_integer, metavar="N", help="number of requests")
    parser.add_argument("--burst", type=positive_integer, default=1, metavar="N", help="requests per burst; default: 1")
    parser.add_argument(
        "--flood", type=as_argument(parse_flood), metavar="N@TIME:CLASS", help="extra requests at one time"
    )
    parser.add_argument(
        "--clients", type=positive_integer, default=20, metavar="N", help="number of clients; default: 20"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="prompt; repeatable; default: captions"
    )
    parser.add_argument(
        "--slo",
        type=number,
        default=3.0,
        metavar="X",
        help="latency target as a multiple of the isolated latency; default: 3",
    )
    parser.add_argument(
        "--timeout", type=duration, default=300.0, metavar="TIME", help="timeout of a request; default: 5m"
    )
    parser.add_argument("--seed", type=integer, default=0, metavar="S", help="seed of the arrival times; default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")


def run(arguments: Namespace) -> int:
    """Load-test a server, print the report, and write it as JSON if requested.

    Returns:
        the exit code: 1 if no request was answered, else 0.
    """
    test = make_load_test(arguments)
    with show_progress() as on_progress:
        report = run_benchmark(test, on_progress)
    print(format_load_report(report, test.slo))
    if arguments.json:
        write_file(arguments.json, (json.dumps(asdict(report), indent=1) + "\n").encode())
    return 0 if report.rows[-1].answered else NONE_ANSWERED


def make_load_test(arguments: Namespace) -> LoadTest:
    """Return the settings of a load test from the options of the command line."""
    return LoadTest(
        url=arguments.url,
        classes=tuple(arguments.classes) or DEFAULT_CLASSES,
        protocol=arguments.protocol,
        keys=tuple(arguments.key),
        load=arguments.load,
        rate=arguments.rate,
        count=arguments.count,
        seconds=None if arguments.count else arguments.seconds,
        burst=arguments.burst,
        clients=arguments.clients,
        seed=arguments.seed,
        flood=arguments.flood,
        prompts=tuple(arguments.prompt),
        slo=arguments.slo,
        timeout=arguments.timeout,
    )


def format_load_report(report: LoadReport, slo: float) -> str:
    """Return the report of a load test as text for a terminal, with a table of a row for each class of requests.

    Args:
        slo: latency target as a multiple of the isolated latency, which one request has without load.
    """
    isolated = ", ".join(f"{name} {_format_seconds(seconds)}" for name, seconds in report.isolated_seconds.items())
    lines = [
        f"{report.url}: {report.rate:.3g} requests per second, {report.load:.0%} of the sequential throughput; "
        f"finished after {report.seconds:.1f} s",
        f"isolated latency: {isolated}; in time: answered within {slo:g} times that",
        "",
        format_table(_HEADINGS, [_format_row(row) for row in report.rows]),
        "",
        f"sent {1000 * report.send_delay_mean:.1f} ms late on average, {1000 * report.send_delay_max:.0f} ms at most; "
        f"sending took {report.cpu_share:.1%} of a core",
        *(f"response {status}: {body}" for status, body in report.error_bodies.items() if body),
        *(f"warning: {warning}" for warning in report.warnings),
    ]
    return "\n".join(lines)


def _format_row(row: LoadReportRow) -> list[str]:
    return [
        row.request_class,
        str(row.sent),
        str(row.answered),
        str(row.rejected),
        *(_format_seconds(value) for value in (row.p50, row.p90, row.p99, row.latency_target)),
        f"{row.goodput:.1%}",
        f"{row.goodput_per_second:.2f}",
        ", ".join(f"{status}: {count}" for status, count in row.errors.items()),
    ]


def _format_seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
