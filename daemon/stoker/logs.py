"""Logging set-up: one structured line per event, in a rotating file or on stderr.

Never logged: prompts, answers, keys, tokens, signed URLs. The redactor below is a second line of
defence, not the first. Records of uvicorn and APScheduler pass through the same formatter.
"""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import structlog

LOG_BYTES: Final = 5 * 1024 * 1024  # per file; three files hold weeks of a quiet daemon
LOG_FILES: Final = 3

_SECRET_KEYS: Final = frozenset({"authorization", "token", "key", "api_key", "password", "prompt"})
_SECRET_TEXT: Final = re.compile(r"(?i)\b(bearer\s+|hf_)[A-Za-z0-9._-]{6,}")
_QUERY: Final = re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+")


def configure(level: str, log_file: Path | None) -> None:
    """Send all logging of this process to `log_file`, or to stderr when that is None."""
    handler, refused = _handler(log_file)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared_processors(),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact,
                structlog.processors.KeyValueRenderer(
                    key_order=["timestamp", "level", "logger", "event"], drop_missing=True
                ),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # They log every request or job run at info; the daemon's own events say what matters.
    for chatty in ("uvicorn.access", "apscheduler", "httpx2", "httpcore2", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    if refused is not None:
        logging.getLogger(__name__).warning("the log file cannot be written: %s", refused)


def _handler(log_file: Path | None) -> tuple[logging.Handler, OSError | None]:
    """Where records go, and why that is not the file: a daemon without a log still serves."""
    logging.raiseExceptions = False  # a full disk costs records, not a traceback for each of them
    if log_file is None:
        return logging.StreamHandler(sys.stderr), None
    try:
        handler = _RotatingLog(
            log_file, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8"
        )
    except OSError as error:
        return logging.StreamHandler(sys.stderr), error
    return handler, None


class _RotatingLog(logging.handlers.RotatingFileHandler):
    def doRollover(self) -> None:  # noqa: N802  # the base's name
        """Later, when it cannot be now: Windows renames no file that somebody reads."""
        try:
            super().doRollover()
        except OSError:
            if self.stream is None:
                self.stream = self._open()


def _shared_processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name.lower() in _SECRET_KEYS:
            event[name] = "[hidden]"
        elif isinstance(value, str):
            event[name] = clean(value)
    return event


def clean(text: str) -> str:
    """`text` without credentials and URL queries. The renderer escapes control characters."""
    return _QUERY.sub(r"\1?[hidden]", _SECRET_TEXT.sub("[hidden]", text))
