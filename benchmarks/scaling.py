"""Times the train step over 1, 2, 4 .. devices: one batch divided among them (strong), or one batch each (weak).

python benchmarks/scaling.py --model=resnet50 --batch_size=256 --precision=bfloat16 --devices=1,2,4,8 --json=F.json

On a CPU the devices are forced: they share its cores, so the figures show that it works and what the engines cost, not
how it scales; the records say so.
"""

import argparse
import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import charts, command, environment, harness, records, work
from benchmarks.case import Case
from covidjax.errors import UserError

BUILDER = "benchmarks.scaled:build"
ENGINES = ("jit", "fsdp", "processes", "pmap", "pmap_local")
KINDS = ("strong", "weak")
FORCED = "forced host devices, which share the cores of one CPU: proof of correctness, not of scaling"


def main(arguments: list[str]) -> None:
    """Measures each engine and kind over all numbers of devices, prints and writes what came out."""
    flags = parse(arguments)
    settings, shared = command.protocol(flags), environment.describe("benchmarks/scaling.py", arguments)
    rows: list[records.Record] = []
    for kind, engine in itertools.product(flags.kind, flags.engine):
        cases = [case_of(flags, kind, engine, count) for count in flags.devices]
        found = harness.measure(cases, settings, lambda line: print(line, flush=True))
        rows += make_records(found, kind, engine, shared)
        print(f"\n{table(rows[-len(cases) :])}\n", flush=True)
        if flags.json is not None:
            records.write_json(flags.json, rows)
        if flags.csv is not None:
            records.write_csv(flags.csv, rows)
        if flags.plot is not None:
            charts.scaling(flags.plot, rows)
    if failed := [row for row in rows if row["error"]]:
        raise UserError(f"{failed[0]['engine']} on {failed[0]['devices']} was not measured: {failed[0]['error']}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags. Raises UserError for what cannot be measured."""
    parser = command.Parser(prog="benchmarks/scaling.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="resnet50", help=f"of {', '.join(work.NETWORKS)}")
    add("--batch_size", type=command.positive, default=64, help="of all devices together (strong), or of each (weak)")
    add("--image_size", type=command.positive, default=224, help="pixels a side")
    add("--precision", default="float32", choices=("float32", "bfloat16"))
    add("--width", type=int, default=0, help="features of the first stage of cnn and unet; 0: the model's own")
    add("--devices", type=command.numbers, default=(1, 2, 4, 8), help="a list")
    add("--engine", type=command.listed, default=("jit", "pmap"), help=f"of {', '.join(ENGINES)}; a list")
    add("--kind", type=command.listed, default=KINDS, help=f"of {', '.join(KINDS)}; a list")
    command.add_protocol(parser)
    flags = parser.parse_args(arguments)
    for name, values, allowed in (("engine", flags.engine, ENGINES), ("kind", flags.kind, KINDS)):
        for value in values:
            if value not in allowed:
                raise UserError(f"--{name} is {value!r}: allowed are {', '.join(allowed)}")
    for count in flags.devices:
        if "strong" in flags.kind and flags.batch_size % count:
            raise UserError(f"--batch_size {flags.batch_size} does not divide over {count} devices: take a multiple")
    work.check(case_of(flags, "weak", "jit", 1))
    command.check_writable(flags.json, flags.csv, flags.plot)
    return flags


def case_of(flags: argparse.Namespace, kind: str, engine: str, count: int) -> Case:
    """The case of an engine on so many devices."""
    own = 1 if engine == "processes" else count
    forced = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={own}".strip()
    return Case(
        BUILDER,
        flags.model,
        precision=flags.precision,
        batch_size=flags.batch_size * (count if kind == "weak" else 1),
        image_size=flags.image_size,
        width=flags.width,
        options=(("devices", count), ("engine", engine)),
        environment=(("XLA_FLAGS", forced),),
    )


def make_records(
    found: list[harness.Measurement], kind: str, engine: str, shared: dict[str, Any]
) -> list[records.Record]:
    """The records, with the rate of each beside that of the first, per device, and their first losses."""
    named = [dataclasses.replace(m, case=dataclasses.replace(m.case, implementation="covidjax")) for m in found]
    rows = records.make(named, {}, shared)
    for row, measurement in zip(rows, named, strict=True):
        rates = row["images_per_s"], rows[0]["images_per_s"]
        row["kind"] = kind
        row["speedup"] = rates[0] / rates[1] * rows[0]["devices"] if all(rates) else None
        row["efficiency"] = row["speedup"] / row["devices"] if row["speedup"] else None
        row["first_loss"] = measurement.facts.get("first_loss")
        row["note"] = FORCED if measurement.facts.get("platform") == "cpu" and row["devices"] > 1 else ""
    return rows


def table(rows: list[records.Record]) -> str:
    """The records of one kind and engine as text."""
    first = rows[0]
    lines = [
        f"{first['model']}, {first['kind']} scaling, {first['engine']}, {first['precision']}, {first['image_size']} px",
        "devices  batch   median ms     images/s   speed-up  efficiency   first loss  samples",
    ]
    for row in rows:
        if not row["images_per_s"]:
            lines.append(f"{row['devices']:7d}  {row['error'] or 'no clean sample'}")
            continue
        cells = (
            f"{row['devices']:7d}  {row['batch_size']:5d}  {row['step_ms_median']:10.1f}",
            f"{row['images_per_s']:11.1f}  {row['speedup'] or 0:8.2f}x  {row['efficiency'] or 0:9.0%}",
            f"{row['first_loss']:11.6f}  {row['n_samples']} (-{row['dropped']})",
        )
        lines.append("  ".join(cells))
    return "\n".join([*lines, *dict.fromkeys(row["note"] for row in rows if row["note"])])


if __name__ == "__main__":
    command.run(main)
