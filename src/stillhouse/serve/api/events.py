"""Server-sent events, as the HTML standard writes them."""


def format_event(name: str, data: str) -> bytes:
    r"""One event; the data has no line breaks, as JSON has none.

    >>> event("done", "{}")
    b'event: done\ndata: {}\n\n'
    """
    return f"event: {name}\ndata: {data}\n\n".encode()


KEEP_ALIVE = b": still there\n\n"
"""A comment, so that nothing between server and client takes the silence for an end."""
KEEP_ALIVE_SECONDS = 15.0
"""Seconds after which whoever listens is told so."""
