"""Records of the logger `sona` as one JSON object a line; docs/observe.md lists the events."""

import json
import logging
import math
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "event"}


class JsonFormatter(logging.Formatter):
    """
    A line per record: time (UTC), level, logger, event, message, the fields of the event, and a traceback where there is one.

    Records of other loggers come out the same way, with the event null. Numbers that JSON does not know are null, other objects their text.

    Examples
    --------
    >>> handler = logging.StreamHandler()
    >>> handler.setFormatter(JsonFormatter())
    >>> logging.getLogger("sona").addHandler(handler)

    Thread-safety
    -------------
    Any thread.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", None),
            "message": record.getMessage(),
        }
        line |= {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()}
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
