"""A data set from the files that the user has put down: all of it, or nothing."""

import shutil
from pathlib import Path
from typing import Any

from covidjax import files
from covidjax.console import say
from covidjax.data.datasets import BUILDERS
from covidjax.data.extra import import_with_extra
from covidjax.errors import UserError


def prepare(name: str, manual_dir: Path, data_dir: Path) -> Path:
    """Checks the files below manual_dir and writes them as data_dir/NAME[/VARIANT]/VERSION; returns that folder.

    name: of a builder, or of a builder and its variant, such as 'covidx/mini'. A set that is there already is left.
    Raises UserError with every fault of the files; then, and after any other error, data_dir is as it was before.
    """
    builder_class = load_builder(name)
    instructions = builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
    if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        raise UserError(f"--manual_dir: {manual_dir} is no folder with files: {instructions}")
    variant = name.partition("/")[2] or None
    target = Path(builder_class(data_dir=data_dir, config=variant, file_format="array_record").data_dir)
    if target.exists():
        say(f"{name}: {target} is there already; remove it to prepare it anew")
        return target
    with files.new_folder(target) as folder:
        builder = builder_class(data_dir=folder / "data", config=variant, file_format="array_record")
        try:
            listing = builder.check(manual_dir)
        except UserError as error:
            raise UserError(f"{error}; expected: {instructions}") from error
        builder.write(listing, folder / "downloads")
        for path in Path(builder.data_dir).iterdir():
            path.rename(folder / path.name)
        for unused in ("data", "downloads"):
            shutil.rmtree(folder / unused)
    for note in listing.notes:
        say(f"{name}: {note}")
    return target


def load_builder(name: str) -> Any:
    """The class of a builder. Raises UserError for a name or a variant that is not there, or a library that is not."""
    builder, _, variant = name.partition("/")
    if builder not in BUILDERS:
        raise UserError(f"there is no data set {builder!r}: allowed are {', '.join(BUILDERS)}")
    module, class_name = BUILDERS[builder].split(".")
    builder_class = getattr(import_with_extra(f"covidjax.data.datasets.{module}"), class_name)
    variants = [config.name for config in builder_class.BUILDER_CONFIGS]
    if variant and variant not in variants:
        allowed = ", ".join(f"{builder}/{each}" for each in variants) or builder
        raise UserError(f"there is no data set {name!r}: allowed are {allowed}")
    return builder_class


def describe(name: str) -> str:
    """The variants of a builder, what it is, and the files that it needs, in two lines."""
    builder = load_builder(name)
    names = [f"{name}/{config.name}" for config in builder.BUILDER_CONFIGS] or [name]
    text = " ".join(builder.__doc__.split())
    return f"{', '.join(names)}: {text}\n  {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
