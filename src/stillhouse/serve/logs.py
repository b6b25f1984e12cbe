"""Logs: one JSON object a line for programs, or one short line for people. Neither ever holds a key or a prompt."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_RECORD_FIELDS = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
LogStyle = Literal["json", "text"]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **extra_fields(record),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in extra_fields(record).items() if value != "")
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{moment} {record.levelname.lower():<7} {record.getMessage()}  {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """What was told beside the message.

    >>> record = logging.makeLogRecord({"msg": "a job ended", "request_id": "7"})
    >>> extras(record)
    {'request_id': '7'}
    """
    return {name: value for name, value in record.__dict__.items() if name not in _RECORD_FIELDS}


def configure_logging(style: LogStyle) -> None:
    """Write what this program logs to the standard error output, and of others what is at least a warning."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Json() if style == "json" else _Text())
    logging.basicConfig(level=logging.WARNING, handlers=[out], force=True)
    logging.getLogger("stillhouse").setLevel(logging.INFO)
