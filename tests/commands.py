"""The commands called as from a shell, and the small things that they work on."""

import csv
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from covidjax import command
from covidjax.errors import UserError
from tests.support import TINY

ROOT = Path(__file__).parents[1]
Main = Callable[[Sequence[str]], None]
SPLITS = ("train", "val", "test")
CLASSES = ("healthy", "ill")
IMAGES_PER_CLASS = {"train": 8, "val": 3, "test": 2}


def call(main: Main, *arguments: object) -> int:
    """Runs a command in this process; returns the status that the shell would see."""
    argv = [str(main.__module__), *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), mock.patch.dict(os.environ, {"COVIDJAX_MALLOC": "default"}):
        try:
            command.run(main)
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code
    return 0


def only_error(errors: str) -> str:
    """The message of the one `error:` line on standard error; nothing but progress may stand before it."""
    *before, last = errors.splitlines()
    assert last.startswith("error: "), errors
    assert all(line.startswith(tuple(f"{split}: " for split in (*SPLITS, "other"))) for line in before), errors
    return last.removeprefix("error: ")


def refusal(capfd: pytest.CaptureFixture[str], main: Main, *arguments: object) -> str:
    """Runs a command that has to end with status 2 and one line, and returns the line."""
    capfd.readouterr()
    status = call(main, *arguments)
    message = only_error(capfd.readouterr().err)
    assert status == 2
    return message


def user_error(function: Callable[..., object], *arguments: object, **options: object) -> str:
    """The one line of the UserError that a call ends with."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file by the names of its columns; a first line that is a comment is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return list(csv.DictReader(lines[lines[0].startswith("# ") :]))


def write_image(path: Path, seed: int, size: int = 20) -> None:
    """A gray PNG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)).save(path)


def write_images(root: Path, splits: Iterable[str] = SPLITS) -> Path:
    """A folder data set: root/<split>/<class>/<number>.png, all images different."""
    for split in splits:
        for label, name in enumerate(CLASSES):
            for number in range(IMAGES_PER_CLASS[split]):
                write_image(root / split / name / f"{number}.png", seed=100 * SPLITS.index(split) + 10 * number + label)
    return root


def tiny_config(folder: Path, **changes: Any) -> str:
    """The flag that names a config, written into `folder`: a tiny network on 24 phantoms, and changes.

    changes: as those of `small_config`.
    """
    settings = {**TINY, "epochs": 1, **changes}
    lines = ("from tests.support import small_config", "def get_config():", f"    return small_config(**{settings!r})")
    path = folder / "tiny.py"
    path.write_text("\n".join(lines))
    return f"--config={path}"


def images_of(root: Path) -> list[str]:
    """The flags for a folder data set."""
    return ["--config.dataset.name=folder", f"--config.dataset.root={root}"]
