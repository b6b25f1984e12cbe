"""A server, as those see it who ask: an address, a dialect, keys."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stillhouse.errors import StillhouseError
from stillhouse.serve.loadgen.http_client import REFUSED, Message, Place, Reply, exchange, place_of
from stillhouse.serve.loadgen.load_plan import Shot
from stillhouse.serve.loadgen.protocols import Dialect, Name, dialect_of
from stillhouse.serve.loadgen.request_class import Kind


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked, and how.

    Args:
        place: where it is.
        dialect: how it is spoken with.
        keys: API keys; clients take them in turn.
        patience: seconds that one request may take.
    """

    place: Place
    dialect: Dialect
    keys: tuple[str, ...] = ()
    patience: float = 300.0

    async def ask(self, shot: Shot) -> Reply:
        """Send one request and wait for its reply."""
        message = self.dialect.message(shot.kind, shot.prompt)
        return await _sent(self.place, message, self.keys, shot.client, self.patience)


async def server_of(
    url: str, protocol: Name, kinds: Sequence[Kind], keys: tuple[str, ...] = (), patience: float = 300.0
) -> Server:
    """The server at a URL, after what must be known of it was asked; see `dialect_of`.

    Raises:
        InvalidRequest: no URL of HTTP, or a model that does not take what a kind asks for.
        StillhouseError: a host that nobody knows, or a server that does not answer as its protocol wants it.
    """
    place = place_of(url)

    async def ask(message: Message) -> Reply:
        return reached(place, await _sent(place, message, keys, 0, patience))

    return Server(place, await dialect_of(protocol, kinds, ask), keys, patience)


def reached(place: Place, reply: Reply) -> Reply:
    """The reply, if there is somebody at that place.

    Raises:
        StillhouseError: there is nobody.
    """
    if reply.status == REFUSED:
        said = reply.body.decode(errors="replace")
        raise StillhouseError(f"nobody answers at {place.url}: {said}", fix="does the server run, and is --url right?")
    return reply


async def _sent(place: Place, message: Message, keys: Sequence[str], client: int, patience: float) -> Reply:
    if keys:
        headers = {**message.headers, "authorization": f"Bearer {keys[client % len(keys)]}"}
        message = replace(message, headers=headers)
    return await exchange(place, message, client, patience)
