"""Warnings that a subcommand keeps from the terminal, because it says the same in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger

from transformers.utils import logging

OURS = __name__.partition(".")[0]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let this package and Transformers say nothing less than errors for the length of a block, without bars."""
    ours = getLogger(OURS)
    level, verbosity, bars = ours.level, logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        ours.setLevel(ERROR)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        ours.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
