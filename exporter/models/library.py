"""What transformers says to programmers, and a user need not read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_library() -> Iterator[None]:
    """Without what transformers, and the code of checkpoints, warn programmers of at load and at each answer."""
    loggers = [logging.getLogger(name) for name in ("transformers", "transformers_modules")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
