"""Manifests of finished checkpoints: `manifests/<step>.json` has the SHA-256 of every file in `<step>/`, and facts."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.errors import UserError

FACTS = frozenset({"metric", "leaves", "files"})


class DamageError(UserError):
    """A checkpoint is not what its manifest says; `reason` is the bare finding, such as "file x is missing"."""

    def __init__(self, folder: Path, reason: str) -> None:
        where = f"checkpoint {folder.name} in {folder.parent}"
        super().__init__(f"{where} is damaged ({reason}): name another one or put back a copy")
        self.reason = reason


def finished_steps(directory: Path) -> list[int]:
    """Steps that have both a folder and a manifest, ascending."""
    names = (path.stem for path in (directory / "manifests").glob("*.json"))
    return sorted(int(name) for name in names if name.isdecimal() and (directory / name).is_dir())


def best(directory: Path, higher_is_better: bool) -> tuple[float, int] | None:
    """The best metric that a checkpoint was ever saved with, and the step; None where none had a finite one.

    Manifests tell of themselves and of the best one before them, so that it is known when its folder is gone. Raises
    DamageError for an unreadable one of a step that is there.
    """
    known: list[tuple[float, int]] = []
    for path in (directory / "manifests").glob("*.json"):
        if not path.stem.isdecimal():
            continue
        step = int(path.stem)
        try:
            facts = read(directory, step)
        except DamageError:
            if step in finished_steps(directory):
                raise
            continue  # one that is being retired
        if facts["metric"] is not None:
            known.append((facts["metric"], step))
        if facts.get("best"):
            known.append((facts["best"][0], facts["best"][1]))
    return max(known, key=lambda each: (each[0] if higher_is_better else -each[0], each[1]), default=None)


def lost_best(directory: Path, higher_is_better: bool) -> str:
    """A sentence where the best checkpoint that was ever saved is gone; empty where it is there, or none was."""
    found = best(directory, higher_is_better)
    while found and found[1] not in (steps := finished_steps(directory)):
        last, found = found, best(directory, higher_is_better)
        if found == last:  # else another process has retired it for a better one meanwhile
            other = f"; or take another: --checkpoint=latest (step {steps[-1]})" if steps else ""
            return f"the best checkpoint, step {found[1]}, is gone from {directory}: put it back{other}"
    return ""


def write(directory: Path, step: int, facts: dict[str, Any]) -> None:
    """Writes the manifest of a step, with `facts` (JSON) in it, once the step's files have reached the disk.

    It is absent or complete at every instant. Raises OSError.
    """
    path, folder = _paths(directory, step)
    path.parent.mkdir(exist_ok=True)
    for written in (*folder.rglob("*"), folder, directory):
        _sync(written)
    content = {**facts, "files": _digest_files(folder)}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"content": content, "sha256": _digest_json(content)}, indent=1))
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def read(directory: Path, step: int) -> dict[str, Any]:
    """Returns the facts and, under "files", name -> SHA-256; raises DamageError if it is not what `write` wrote."""
    path, folder = _paths(directory, step)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_bytes())
        if stored["sha256"] == _digest_json(stored["content"]):
            if not stored["content"].keys() >= FACTS:
                raise DamageError(folder, "its manifest is of another version")
            return stored["content"]
    raise DamageError(folder, "its manifest is unreadable")


def verify(directory: Path, step: int) -> dict[str, Any]:
    """Reads the manifest; raises DamageError unless the step has the files listed there, byte by byte, and no other."""
    content, folder = read(directory, step), _paths(directory, step)[1]
    listed = content["files"]
    try:
        found = _digest_files(folder)
    except OSError as error:
        raise DamageError(folder, f"file {error.filename} cannot be read: {error.strerror}") from error
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            raise DamageError(folder, f"file {name} is missing")
        if name not in listed:
            raise DamageError(folder, f"file {name} is not in its manifest")
        if listed[name] != found[name]:
            raise DamageError(folder, f"file {name} differs from its manifest")
    return content


def remove_stale(directory: Path) -> None:
    """Removes manifests, also half written ones, of steps that are gone."""
    for path in list((directory / "manifests").glob("*")):
        if path.stem.isdecimal() and not (directory / path.stem).is_dir():
            path.unlink()


def _paths(directory: Path, step: int) -> tuple[Path, Path]:
    return directory / "manifests" / f"{step}.json", directory / str(step)


def _digest_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): files.digest(path) for path in folder.rglob("*") if path.is_file()}


def _digest_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def retire(directory: Path, keep: int, higher_is_better: bool) -> None:
    """Removes all finished checkpoints but the latest `keep` and the best, and leftovers. Raises OSError."""
    steps, found = finished_steps(directory), best(directory, higher_is_better)
    for step in steps[:-keep]:
        if found is None or step != found[1]:
            (directory / "deleted").mkdir(exist_ok=True)
            os.replace(directory / str(step), directory / "deleted" / str(step))
    clear_leftovers(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_leftovers(directory: Path, damaged: Collection[int] = ()) -> None:
    """Removes temporary folders, retired steps and interrupted saves; sets aside what may be of value.

    An unfinished step above all finished ones is an interrupted save; another one may have lost its manifest.
    """
    shutil.rmtree(directory / "deleted", ignore_errors=True)
    finished = [step for step in finished_steps(directory) if step not in damaged]
    for path in list(directory.iterdir()):
        if re.fullmatch(r"\d+\.orbax-checkpoint-tmp.*", path.name):
            shutil.rmtree(path)
        elif path.name.isdecimal() and (step := int(path.name)) not in finished:
            if finished and step > finished[-1] and step not in damaged:
                shutil.rmtree(path)
            else:
                target = directory / "damaged" / path.name
                while target.exists():
                    target = target.with_name(target.name + "+")
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)
    remove_stale(directory)
