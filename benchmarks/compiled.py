"""Compiles train steps for devices that are not here, and counts what the programs compute, move and keep.

python benchmarks/compiled.py --model=resnet50 --target=v5e:2x2,h200 --strategies=none,backbone --peers=flax --json=F

Times are predicted: no step can be faster than what it must compute, move and exchange. `make targets` installs the
compilers. The figures are of one device; programs are kept, so that a second call only counts.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import charts, command, environment, records, strategies, work
from benchmarks.case import Case, offers
from benchmarks.programs import BUILDERS
from benchmarks.records import Record
from covidjax.console import format_table, say
from covidjax.errors import UserError
from covidjax.process import path_of
from covidjax.targets import hlo
from covidjax.targets.catalog import Target, target_of
from covidjax.targets.compiler import Compiler
from covidjax.targets.program import Program, predicted_exchange, predicted_floor

PEERS = ("flax", "flax_norm_logged")
# Of covidjax: less kept for the backward pass; BatchNorm by each device's own part of the batch.
# fsdp: the state in parts, see `programs.covidjax`.
VARIANTS = {
    "covidjax_lean": ("remat", "lean"),
    "covidjax_own_statistics": ("sync_batch_norm", False),
    "covidjax_fsdp4": ("fsdp", 4),
}
ALLOWED = (*VARIANTS, *list(BUILDERS)[1:])  # of --peers
PRECISIONS = ("bfloat16", "float32")
PROFILED = 10  # operations


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, compiles, prints a table, writes the files that were asked for."""
    flags = parse(arguments)
    shared = environment.describe("benchmarks/compiled.py", list(arguments))
    rows: list[Record] = []
    cases = cases_of(flags)
    for target in flags.target:
        with Compiler(target) as compiler:
            for one in cases:
                case = dataclasses.replace(one, batch_size=one.batch_size * target.devices)
                say(f"{len(rows) + 1} of {len(cases) * len(flags.target)}: {case.title()} on {target.name}")
                program = compile_case(compiler, case)
                rows.append({**make_record(case, target, program), **shared})
                if flags.profile:
                    print(f"{case.title()} on {target.name}\n{profile(program)}\n", flush=True)
                if flags.json:
                    records.write_json(flags.json, rows)
                if flags.csv:
                    records.write_csv(flags.csv, rows)
    if flags.plot:
        charts.compiled(flags.plot, rows)
    print(table(rows))


def cases_of(flags: Any) -> list[Case]:
    """What is compiled for each target, with the batch of one device; prints what implementations have not.

    Raises UserError for a strategy that does not fit the network.
    """
    found = []
    for model, strategy, name in itertools.product(flags.model, flags.strategies, ("covidjax", *flags.peers)):
        case = Case(name, model, strategy, flags.precision, flags.batch_per_device, flags.image_size)
        if name == "covidjax" or name in VARIANTS:
            options = (VARIANTS[name],) if name in VARIANTS else ()
            case = dataclasses.replace(case, implementation="covidjax", options=options)
            strategies.check(case)
        elif lacks := offers(name, case) or missing_strategy(case):
            say(f"left out: {lacks}")
            continue
        found.append(case)
    return found


def name_of(case: Case) -> str:
    """The implementation of a case, with the variant."""
    return next((name for name, option in VARIANTS.items() if option in case.options), case.implementation)


def missing_strategy(case: Case) -> str:
    """Why a peer has no such strategy, in one line; empty if it has."""
    try:
        work.frozen_stages(case)
    except UserError as error:
        return f"{case.implementation} {case.model}: {error}"
    return ""


def parse(arguments: Sequence[str]) -> Any:
    """The flags. Raises UserError for what cannot be compiled."""
    parser = command.Parser(prog="benchmarks/compiled.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=command.listed, default=("resnet50",), help=f"a list of {', '.join(work.NETWORKS)}")
    add("--target", type=command.listed, required=True, help="a list such as h200,v5e:2x2,v5p:8x8x8")
    add("--strategies", type=command.listed, default=("none", "backbone"), help="a list of names of config.freeze")
    add("--peers", type=command.listed, default=PEERS, help=f"a list of {', '.join(ALLOWED)}, or ''")
    add("--batch_per_device", type=command.positive, default=128)
    add("--image_size", type=command.positive, default=224, help="pixels a side")
    add("--precision", default="bfloat16", choices=PRECISIONS)
    add("--profile", action="store_true", help=f"print the {PROFILED} operations of each program that move most bytes")
    add("--json", type=path_of, metavar="FILE", help="the records")
    add("--csv", type=path_of, metavar="FILE", help="the records, under the command as a comment")
    add("--plot", type=path_of, metavar="FILE.png", help="a chart of bytes and memory")
    flags = parser.parse_args(arguments)
    flags.target = tuple(map(target_of, flags.target))
    for peer in flags.peers:
        if peer not in ALLOWED:
            raise UserError(f"there is no peer {peer!r}: allowed are {', '.join(ALLOWED)}")
    for model in flags.model:
        work.check(Case("covidjax", model, image_size=flags.image_size))
    command.check_writable(flags.json, flags.csv, flags.plot)
    return flags


def compile_case(compiler: Compiler, case: Case) -> Program:
    """The program of a case's step."""
    return compiler.program(BUILDERS[case.implementation], lambda seconds: None, **dataclasses.asdict(case))


def make_record(case: Case, target: Target, program: Program) -> Record:
    """The row of a program; figures of one device.

    predicted_ms_floor: no step can be faster; predicted_ms_exchange: its part between devices.
    """
    counts = program.counts if program.hlo else None
    floor = predicted_floor(program, case.precision) if counts else None
    return {
        "model": case.model,
        "impl": name_of(case),
        "freeze": case.freeze,
        "precision": case.precision,
        "batch_per_device": case.batch_size // target.devices,
        "image_size": case.image_size,
        "target": target.name,
        "devices": target.devices,
        "flops": counts and counts.flops,
        "bytes_accessed": counts and counts.bytes_accessed,
        "temp_bytes": program.memory.get("temp"),
        "argument_bytes": program.memory.get("argument"),
        "all_reduces": counts and counts.all_reduces,
        "all_reduce_bytes": counts and counts.all_reduce_bytes,
        "convolutions": counts and counts.convolutions,
        "kernels": counts and counts.kernels,
        "fits": program.fits,
        "compile_s": program.seconds,
        "predicted_ms_floor": floor and floor * 1e3,
        "predicted_ms_exchange": predicted_exchange(program) * 1e3 if counts else None,
    }


def profile(program: Program) -> str:
    """The operations that move most bytes, as text."""
    costs = sorted(hlo.costs(hlo.parse(program.hlo)), key=lambda cost: cost.times * cost.bytes, reverse=True)
    lines = [
        (f"{cost.times * cost.bytes / 1e6:,.0f} MB", cost.instruction.name, cost.instruction.origin)
        for cost in costs[:PROFILED]
    ]
    return format_table([("moves", "operation", "of"), *lines], "><<")


def table(rows: Sequence[Record]) -> str:
    """The records as text."""
    head = ("target", "model", "freeze", "implementation", "GFLOP", "GB moved", "temporary MB", "arguments MB")
    more = (
        "all-reduces",
        "MB reduced",
        "convolutions",
        "kernels",
        "fits",
        "predicted floor ms",
        "of it exchange",
        "compile s",
    )
    scaled = (("flops", 1e-9), ("bytes_accessed", 1e-9), ("temp_bytes", 1e-6), ("argument_bytes", 1e-6))
    lines = [
        (
            *(row[name] for name in ("target", "model", "freeze", "impl")),
            *(_text(row[name], scale, ",.1f") for name, scale in scaled),
            _text(row["all_reduces"]),
            _text(row["all_reduce_bytes"], 1e-6, ",.2f"),
            _text(row["convolutions"]),
            _text(row["kernels"]),
            "yes" if row["fits"] else "no",
            _text(row["predicted_ms_floor"], 1, ",.2f"),
            _text(row["predicted_ms_exchange"], 1, ",.2f"),
            _text(row["compile_s"], 1, ".0f"),
        )
        for row in rows
    ]
    return format_table([(*head, *more), *lines], "<" * 4 + ">" * 12)


def _text(value: float | None, scale: float = 1, form: str = ",.0f") -> str:
    return "-" if value is None else f"{value * scale:{form}}"


if __name__ == "__main__":
    command.run(main)
