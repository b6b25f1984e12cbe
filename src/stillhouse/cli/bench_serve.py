"""`stillhouse bench-serve --kind NAME=SHARE...`: what a server keeps of its promises under load."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from stillhouse.cli.arguments import as_argument, duration, integer, number, positive_integer
from stillhouse.cli.progress import show_progress
from stillhouse.cli.table import format_table
from stillhouse.images.png import write_file
from stillhouse.serve.loadgen.benchmark import PROTOCOLS, LoadTest
from stillhouse.serve.loadgen.benchmark import run_benchmark as load
from stillhouse.serve.loadgen.load_report import LoadReport, LoadReportRow
from stillhouse.serve.loadgen.request_class import RequestClass, parse_flood, parse_request_class

DEFAULT_CLASSES = (RequestClass("free", 0.8, "free"), RequestClass("pro", 0.2, "pro"))
"""What `stillhouse serve` serves where it is told nothing."""
NONE_ANSWERED = 1
_HEADINGS = ("kind", "sent", "answered", "rejected", "p50", "p90", "p99", "within", "kept", "good/s", "errors")


def declare(parser: ArgumentParser) -> None:
    """The options of `bench-serve`; requests come whether or not earlier ones were answered."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", metavar="URL", help="default: http://127.0.0.1:8000")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="openai", help="default: openai")
    parser.add_argument("--key", action="append", default=[], metavar="KEY", help="repeatable: clients take turns")
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        type=as_argument(parse_request_class),
        metavar="NAME=SHARE[:FIELD=VALUE...]",
        help="repeatable, for example pro=0.2:steps=35; fields: steps, guidance, sampler, size, seed, model (default: "
        "the name), alone (its seconds alone, where they need not be measured); default: free=0.8 and pro=0.2",
    )
    much = parser.add_mutually_exclusive_group()
    much.add_argument(
        "--load", type=number, default=0.7, metavar="X", help="of what the server does, one by one; default: 0.7"
    )
    much.add_argument("--rate", type=number, metavar="X", help="requests in a second")
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--seconds", type=duration, default=60.0, metavar="TIME", help="default: 60s")
    long.add_argument("--count", type=positive_integer, metavar="N", help="of requests")
    parser.add_argument(
        "--burst", type=positive_integer, default=1, metavar="N", help="so many come at one moment; default: 1"
    )
    parser.add_argument(
        "--flood", type=as_argument(parse_flood), metavar="N@TIME:KIND", help="so many more, all at one moment"
    )
    parser.add_argument(
        "--clients", type=positive_integer, default=20, metavar="N", help="ask, the flood one more; default: 20"
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeatable; default: captions")
    parser.add_argument("--slo", type=number, default=3.0, metavar="X", help="times the seconds alone; default: 3")
    parser.add_argument("--timeout", type=duration, default=300.0, metavar="TIME", help="of a request; default: 5m")
    parser.add_argument("--seed", type=integer, default=0, metavar="S", help="of the requests' times; default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")


def run(arguments: Namespace) -> int:
    """Load the server, print what became of the requests, and keep it where that was asked for.

    Exit code 1 where none was answered.
    """
    asked = make_load_test(arguments)
    with show_progress() as tell:
        report = load(asked, tell)
    print(format_load_report(report, asked.slo))
    if arguments.json:
        write_file(arguments.json, (json.dumps(asdict(report), indent=1) + "\n").encode())
    return 0 if report.rows[-1].answered else NONE_ANSWERED


def make_load_test(arguments: Namespace) -> LoadTest:
    """What the options say."""
    return LoadTest(
        url=arguments.url,
        classes=tuple(arguments.kind) or DEFAULT_CLASSES,
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
    """The report for people."""
    alone = ", ".join(f"{name} {_format_seconds(seconds)}" for name, seconds in report.alone.items())
    lines = [
        f"{report.url}: {report.rate:.3g} requests a second, {report.load:.0%} of what it does one by one; "
        f"over after {report.seconds:.1f} s",
        f"alone: {alone}; kept: answered within {slo:g} times as long",
        "",
        format_table(_HEADINGS, [_format_row(row) for row in report.rows]),
        "",
        f"sent {1000 * report.late_mean:.1f} ms late in the mean, {1000 * report.late_most:.0f} ms at most; "
        f"sending took {report.processor:.1%} of a core",
        *(f"answer {status}: {said}" for status, said in report.said.items() if said),
        *(f"in doubt: {doubt}" for doubt in report.doubts),
    ]
    return "\n".join(lines)


def _format_row(row: LoadReportRow) -> list[str]:
    return [
        row.kind,
        str(row.sent),
        str(row.answered),
        str(row.rejected),
        *(_format_seconds(value) for value in (row.p50, row.p90, row.p99, row.promise)),
        f"{row.goodput:.1%}",
        f"{row.good_per_second:.2f}",
        ", ".join(f"{status}: {count}" for status, count in row.errors.items()),
    ]


def _format_seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
