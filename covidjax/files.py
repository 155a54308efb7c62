"""Files that are either the old ones or the new ones, never half of one."""

import json
import os
from pathlib import Path
from typing import Any

from covidjax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name in the same folder, then renames. Raises UserError where that is not possible."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}: free space or choose another folder") from error


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; a NaN or infinity is an error of the program."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The parsed file. Raises UserError where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: is this the workdir of a run?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
