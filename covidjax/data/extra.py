"""Modules that need the libraries of the extra `data`: TFDS, nibabel, pydicom, openpyxl."""

import importlib
from typing import Any

from covidjax.errors import UserError


def import_with_extra(module: str) -> Any:
    """A module of covidjax that imports such libraries. Raises UserError that says what to install for it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == "covidjax":
            raise
        raise UserError(f"prepared data sets need {library}: pip install 'covidjax[data]'") from error
