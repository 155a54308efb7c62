"""Files that are either the old ones or the new ones, never half of one."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from covidjax.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

MOST_BYTES = 200  # of a name that is made up here: file systems allow 255, and temporary names are longer
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: controls, halves of characters, separators of lines


def printable(name: str) -> str:
    """A name that every text can hold and that has one spelling: UTF-8, composed (NFC), in one line.

    Bytes that are no UTF-8, which Python holds as surrogates, and control characters become escapes that are seen.
    """
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in UNPRINTABLE else char
        for char in unicodedata.normalize("NFC", text)
    )


def shortened(name: str, most: int = MOST_BYTES) -> str:
    """The name itself or, where it has more bytes than `most`, its beginning and a digest of the whole."""
    content = name.encode("utf-8", "surrogateescape")
    if len(content) <= most:
        return name
    ending = f"-{hashlib.sha256(content).hexdigest()[:12]}"
    return content[: most - len(ending)].decode("utf-8", "ignore") + ending


def temporary(path: Path) -> Path:
    """Where this process writes what becomes `path` in one move."""
    return path.with_name(f".{shortened(path.name)}.{os.getpid()}.tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes to a temporary name in the same folder, then renames. Raises UserError where that is not possible."""
    part = temporary(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}: free space or choose another folder") from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8; what UTF-8 cannot hold, such as bytes in the name of a folder, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_csv(path: Path, header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a header; folders above it are made. A float has the digits that give it back exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    csv.writer(table).writerows([header, *rows])
    write_text(path, table.getvalue())


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


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of one a line, none where there is no file, and how many lines are cut or hold none."""
    found: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    filled = [line for line in lines if line.strip()]
    for line in filled:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            found += [value] if isinstance(value, dict) else []
    return found, len(filled) - len(found)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def entry(path: Path, *keys: str) -> Any:
    """The value below some keys of a JSON file. Raises UserError as `read_json`, and where a key is missing."""
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{path} lacks {'.'.join(keys)}: it is damaged, or of another version of covidjax")
        value = value[key]
    return value


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[str]:
    """Within it no other process has the lock of a folder, or of a file, which is made.

    Yields why there is no lock, on disks that know none (some network disks): what follows then goes on without one.
    wait: until the other one is done; else raises BlockingIOError. Raises OSError where `path` cannot be opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor, refused = os.open(path, flags, 0o666), ""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            refused = f"the disk of {path} knows no locks ({error.strerror})"
        yield refused
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder under a temporary name, which becomes `path` if all within goes well, and is removed if not.

    Folders above are made, and what a killed process left under such a name is removed. Raises UserError where `path`
    is a file or a folder that is not empty, or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already: remove it or choose another name")
    missing = [folder for folder in path.parents if not folder.exists()]
    part = temporary(path)
    try:
        _remove_abandoned(path)
        part.mkdir(parents=True)
        yield part
        os.replace(part, path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror}: free space or choose another folder") from error
        raise


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary folders of `path` whose processes are gone."""
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        match = re.fullmatch(rf"\.{re.escape(shortened(path.name))}\.(\d{{1,9}})\.tmp", found.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(found, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal, only the question
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True
