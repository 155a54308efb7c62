"""Modules that need the libraries of the extra `data`."""

import importlib
from typing import Any

from covidjax.errors import UserError


def import_with_extra(module: str, what: str = "prepared data sets") -> Any:
    """A module of covidjax that needs the libraries of the extra `data`, for what a person has.

    Raises UserError that says to install them.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == "covidjax":
            raise
        raise UserError(f"{what} need {library}: pip install 'covidjax[data]'") from error
