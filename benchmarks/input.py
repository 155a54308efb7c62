"""Times training with images on the device, streamed, and decoded on the way, against the step alone.

python benchmarks/input.py --config=configs/cxr3.py:resnet18 --json=F.json [--config.key=value ...]
python benchmarks/input.py --files=5000,20000    # folders of so many images: listed, decoded, trained, predicted
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ml_collections import ConfigDict

from benchmarks import charts, command, environment, folders, harness, records
from benchmarks.case import Case
from covidjax import config as configs
from covidjax.config.flags import parse_with_config
from covidjax.errors import UserError

SOURCES = ("synthetic", "augmented", "resident", "stream", "stream_files")
BUILDER = "benchmarks.feeding:build"


def main(arguments: list[str]) -> None:
    """Measures the training of a config from each source, prints and writes what came out."""
    parser = command.Parser(prog="benchmarks/input.py", description=__doc__.splitlines()[0])
    if any(argument.startswith("--files") for argument in arguments):
        parser.add_argument(
            "--files", type=command.numbers, required=True, help="numbers of images, such as 5000,20000"
        )
        print(folders.table(list(parser.parse_args(arguments).files)))
        return
    parser.add_argument("--sources", type=command.listed, default=SOURCES, help=f"of {', '.join(SOURCES)}")
    parser.add_argument("--whole_epochs", action="store_true", help="samples of the loops begin and end with an epoch")
    command.add_protocol(parser)
    flags, config = parse_with_config(parser, arguments)
    settings = command.protocol(flags)
    command.check_writable(flags.json, flags.csv, flags.plot)
    found = harness.measure(
        cases_of(flags.sources, config, flags.whole_epochs), settings, lambda line: print(line, flush=True)
    )
    rows = make_records(found, environment.describe("benchmarks/input.py", arguments))
    print(f"\n{records.table(rows)}\n\n{summary(rows)}")
    write(flags, rows)
    if failed := [row for row in rows if row["error"]]:
        raise UserError(f"{failed[0]['impl']} was not measured: {failed[0]['error']}")


def cases_of(sources: tuple[str, ...], config: ConfigDict, whole_epochs: bool) -> list[Case]:
    """One a source. Raises UserError for an unknown source."""
    for source in sources:
        if source not in SOURCES:
            raise UserError(f"--sources has {source!r}: allowed are {', '.join(SOURCES)}")
    if config.dataset.name != "folder" and "stream_files" in sources:
        print("left out: stream_files, since the config has no image files")
        sources = tuple(source for source in sources if source != "stream_files")
    text = json.dumps(configs.to_json(config))
    return [
        Case(
            BUILDER,
            config.model.name,
            freeze=str(config.freeze),
            precision=config.precision,
            batch_size=config.batch_size,
            image_size=config.dataset.image_size,
            options=(("config", text), ("source", source), ("whole_epochs", whole_epochs)),
        )
        for source in sources
    ]


def make_records(found: list[harness.Measurement], shared: dict[str, Any]) -> list[records.Record]:
    """The records, each named by its source, with their shares of the rate of the step alone."""
    named = [
        dataclasses.replace(
            measurement,
            case=dataclasses.replace(
                measurement.case, implementation=dict(measurement.case.options)["source"], options=()
            ),
        )
        for measurement in found
    ]
    rows = records.make(named, {}, shared)
    alone = next((row["images_per_s"] for row in rows if row["impl"] == "synthetic"), None)
    for row, measurement in zip(rows, named, strict=True):
        rate = row["images_per_s"]
        row["share_of_synthetic"] = rate / alone if rate and alone else None
        row["steps_per_call"] = measurement.facts.get("steps_per_call", 1)
        row["num_images"] = measurement.facts.get("num_images")
    return rows


def summary(rows: list[records.Record]) -> str:
    """One line a source: what share of the step's own rate it reaches."""
    return "\n".join(
        f"{row['impl']:<13} {row['images_per_s']:10.1f} images/s"
        + (f", {row['share_of_synthetic']:.3f} of the step alone" if row["share_of_synthetic"] else "")
        for row in rows
        if row["images_per_s"]
    )


def write(flags: argparse.Namespace, rows: list[records.Record]) -> None:
    """Writes the records where they are wanted."""
    if flags.json is not None:
        records.write_json(flags.json, rows)
    if flags.csv is not None:
        records.write_csv(flags.csv, rows)
    if flags.plot is not None:
        charts.bars(flags.plot, rows)


if __name__ == "__main__":
    command.run(main)
