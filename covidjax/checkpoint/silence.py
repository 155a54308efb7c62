"""Lines that orbax and TensorStore print by themselves, kept off standard error: what they tell is raised as well."""

import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any


def silence_orbax() -> None:
    """Drops the log records of orbax, and what is left to say of the other writes once one has failed.

    Filters on the loggers 'absl' and 'asyncio' and on one warning, and a hook on `sys.unraisablehook`; all else passes.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)
    warnings.filterwarnings("ignore", "coroutine '(async_serialize_from_host|Store._get_array_meta)", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _LateWritesDropped):
        sys.unraisablehook = _LateWritesDropped(sys.unraisablehook)


@dataclasses.dataclass(frozen=True)
class _LateWritesDropped:
    """TensorStore reports a write that ends after orbax, on an error, has closed the event loop that waited for it."""

    former: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
        if not (late and unraisable.object is None):
            self.former(unraisable)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    text = logging.Formatter().format(record)  # with the traceback: the message alone need not name orbax
    never_retrieved = "exception was never retrieved" in text and "orbax" in text
    return not never_retrieved and f"{os.sep}orbax{os.sep}" not in record.pathname
