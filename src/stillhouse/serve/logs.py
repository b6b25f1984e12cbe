"""Log output: one JSON object or one text line per event. Keys and prompts are never logged."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_RECORD_FIELDS = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
LogStyle = Literal["json", "text"]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **extra_fields(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in extra_fields(record).items() if value != "")
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():<7} {record.getMessage()}  {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a log record that were given as `extra` to the logging call.

    >>> record = logging.makeLogRecord({"msg": "request finished", "request_id": "7"})
    >>> extra_fields(record)
    {'request_id': '7'}
    """
    return {name: value for name, value in record.__dict__.items() if name not in _RECORD_FIELDS}


def configure_logging(style: LogStyle) -> None:
    """Write log records to standard error: stillhouse at level INFO, all other loggers at WARNING."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_Json() if style == "json" else _Text())
    logging.basicConfig(level=logging.WARNING, handlers=[out], force=True)
    logging.getLogger("stillhouse").setLevel(logging.INFO)
