"""A worker process for tests: it does what each message says."""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from stillhouse.workers.channel import Channel, TransportClosed
from stillhouse.workers.process import connect_to_parent


def answer(channel: Channel[Any, Any], message: str) -> object:
    """Return the reply to a message, or end as it says."""
    match message.split():
        case ["exit", code]:
            print("the last words", flush=True)
            sys.exit(int(code))
        case ["crash"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["hang"]:
            threading.Event().wait()
        case ["disconnect"]:
            channel.transport.close()
            threading.Event().wait()
        case ["child"]:
            return subprocess.Popen(["sleep", "600"]).pid
        case ["environment", name]:
            return os.environ.get(name, "")
        case ["group"]:
            return os.getpgid(0)
    return message


def main() -> None:
    """Answer until the parent is gone."""
    channel = connect_to_parent(str)
    try:
        while True:
            channel.send(answer(channel, channel.receive()))
    except TransportClosed:
        return


if __name__ == "__main__":
    main()
