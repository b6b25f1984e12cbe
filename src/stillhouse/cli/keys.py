"""`stillhouse keys add|list|revoke`: manage API keys and their limits."""

from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path

from stillhouse.check import check_choice
from stillhouse.cli.arguments import number
from stillhouse.cli.table import format_table
from stillhouse.errors import InvalidRequest
from stillhouse.serve.settings import ServerSettings, read_server_settings
from stillhouse.serve.store.api_keys import LIMITS, ApiKey, add_key, list_keys, revoke_key
from stillhouse.serve.store.database import FILE, connect


def declare(parser: ArgumentParser) -> None:
    """Add the options of `stillhouse keys` to its argument parser."""
    parser.add_argument("action", choices=("add", "list", "revoke"))
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the key to revoke")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file of the server")
    parser.add_argument("--data", metavar="DIR", help="data directory of the server; default: from the settings file")
    parser.add_argument("--tier", metavar="TIER", help="tier of the new key; default: the first tier")
    parser.add_argument("--admin", action="store_true", help="may view and cancel jobs of other keys")
    parser.add_argument("--weight", type=number, metavar="X", help="scheduling weight, overrides the tier's")
    parser.add_argument("--rate", type=number, metavar="N", help="pixel-steps per second, overrides the tier's")
    parser.add_argument("--burst", type=number, metavar="N", help="pixel-steps at once, overrides the tier's")
    parser.add_argument("--daily", type=number, metavar="N", help="pixel-steps per day, overrides the tier's")


def run(arguments: Namespace) -> int:
    """Add an API key, list all keys, or revoke a key, in the server's database; return exit code 0.

    A new key is printed. The key cannot be shown again later, because the database stores only its hash.
    """
    if arguments.action == "revoke" and not arguments.name:
        raise InvalidRequest(
            "`keys revoke` needs the name of a key, but none was given", fix="`stillhouse keys list` shows the names"
        )
    if arguments.name and arguments.action != "revoke":
        raise InvalidRequest(
            f"`keys {arguments.action}` takes no name, but {arguments.name} was given",
            allowed="a name only for `keys revoke`",
            fix="leave the name out; names of new keys are generated",
        )
    settings = read_server_settings(arguments.config) if arguments.config else ServerSettings()
    data = Path(arguments.data or settings.data)
    if arguments.action != "add" and not (data / FILE).is_file():
        key = f"the key {arguments.name!r} does not exist or is already revoked: " if arguments.name else ""
        raise InvalidRequest(
            f"{key}{data} has no {FILE}, so it is no data directory of a server",
            fix="name the server's directory with --data, or its settings file with --config",
        )
    connection = connect(data)
    try:
        if arguments.action == "add":
            tier = arguments.tier or settings.default_tier
            check_choice("tier", tier, settings.tiers)
            limits = {name: getattr(arguments, name) for name in LIMITS}
            print(add_key(connection, tier, is_admin=arguments.admin, **limits))
        elif arguments.action == "revoke":
            revoke_key(connection, arguments.name)
        else:
            head = ["key", "tier", "created", "state", *LIMITS]
            print(format_table(head, [_format_key(key) for key in list_keys(connection)]))
    finally:
        connection.close()
    return 0


def _format_key(key: ApiKey) -> list[str]:
    created = datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d")
    state = "revoked" if key.revoked else "admin" if key.is_admin else "in use"
    limits = [getattr(key, name) for name in LIMITS]
    return [key.name, key.tier, created, state, *("-" if limit is None else f"{limit:g}" for limit in limits)]
