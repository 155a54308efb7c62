"""Times the train step, or inference, of covidjax beside its peers; `docs/benchmarks.md` says how.

python benchmarks/train_step.py --model=resnet50 --batch_size=8 --image_size=224 --peers=torch,keras,flax --json=F.json
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import charts, command, environment, harness, operations, records, work
from benchmarks.case import Case, missing, offers
from covidjax.errors import UserError
from covidjax.process import path_of

PEERS = ("flax", "keras", "torch", "torch_compile")
PRECISIONS = ("float32", "bfloat16")
OPS = ("xla", "auto", "native")


def main(arguments: list[str]) -> None:
    """Measures each piece of work with all who do it, prints and writes what came out."""
    flags = parse(arguments)
    peers, absent = command.choose_peers(flags.peers, PEERS)
    for reason in absent.values():
        print(f"left out: {reason}")
    settings, shared = command.protocol(flags), environment.describe("benchmarks/train_step.py", arguments)
    rows: list[records.Record] = []
    for number, first in enumerate(pieces(flags)):
        cases = [*cases_of(first, flags.ops, peers), *products(first, peers)]
        folder = None if flags.profile is None else flags.profile / f"{number}_{first.model}_{first.precision}"
        found = harness.measure(cases, settings, lambda line: print(line, flush=True), folder)
        steps, ceilings = records.split_ceilings(found)
        own = records.make(steps, ceilings, shared)
        own += [records.absent(dataclasses.replace(first, implementation=p), why, shared) for p, why in absent.items()]
        print(f"\n{records.table(own)}\n", flush=True)
        show_profiles(steps)
        rows += own
        write(flags.json, flags.csv, flags.plot, rows)  # after each, so that an interruption loses little
    if all(row["step_ms_median"] is None for row in rows if row["impl"] == "covidjax"):
        raise UserError(f"covidjax was not measured: {next(r['error'] for r in rows if r['impl'] == 'covidjax')}")


def parse(arguments: list[str]) -> "command.argparse.Namespace":
    """The flags. Raises UserError for what cannot be measured."""
    parser = command.Parser(prog="benchmarks/train_step.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=command.listed, default=("resnet50",), help=f"of {', '.join(work.NETWORKS)}; a list")
    add("--batch_size", type=command.numbers, default=(8,), help="a list")
    add("--image_size", type=command.numbers, default=(224,), help="pixels a side; a list")
    add("--precision", type=command.listed, default=("float32",), help=f"of {', '.join(PRECISIONS)}; a list")
    add("--freeze", type=command.listed, default=("none",), help="none, backbone, until:<stage>; a list")
    add("--mode", type=command.listed, default=("train",), help="train, inference; a list")
    add("--ops", type=command.listed, default=("auto",), help=f"of {', '.join(OPS)}: covidjax's operations; a list")
    add("--width", type=int, default=0, help="features of the first stage of cnn and unet; 0: the model's own")
    add("--peers", type=command.listed, help=f"a list, or '' for none; without it {', '.join(PEERS)}, if installed")
    add("--profile", type=path_of, metavar="DIR", help="leave a trace of each, and print the ten dearest operations")
    command.add_protocol(parser)
    flags = parser.parse_args(arguments)
    for name, values, allowed in (("precision", flags.precision, PRECISIONS), ("ops", flags.ops, OPS)):
        for value in values:
            if value not in allowed:
                raise UserError(f"--{name} is {value!r}: allowed are {', '.join(allowed)}")
    for case in pieces(flags):
        work.check(case)
        work.frozen_stages(case)
    command.check_writable(flags.json, flags.csv, flags.plot)
    return flags


def pieces(flags: "command.argparse.Namespace") -> Iterator[Case]:
    """The pieces of work, each as the case of covidjax. All that do one are alive together, so each is a run.

    Inference is the same whatever is frozen, and comes once.
    """
    axes = (flags.model, flags.precision, flags.image_size, flags.batch_size, flags.mode)
    for model, precision, image_size, batch_size, mode in itertools.product(*axes):
        for freeze in flags.freeze if mode == "train" else ("none",):
            yield Case("covidjax", model, freeze, precision, batch_size, image_size, mode, flags.width)


def cases_of(first: Case, ops: tuple[str, ...], peers: tuple[str, ...]) -> list[Case]:
    """All who do a piece of work."""
    cases = [dataclasses.replace(first, ops=choice) for choice in ops]
    for peer in peers:
        if reason := offers(peer, first):
            print(f"left out: {reason}")
        else:
            cases.append(dataclasses.replace(first, implementation=peer))
    return cases


def products(first: Case, peers: tuple[str, ...]) -> list[Case]:
    """The matrix products that are the ceiling; that of PyTorch only where it is there for comparison."""
    wanted = ["matmul_jax", *(["matmul_torch"] if any(peer.startswith("torch") for peer in peers) else [])]
    return [Case(name, "matmul", precision=first.precision) for name in wanted if not missing(name)]


def show_profiles(found: list[harness.Measurement]) -> None:
    """The ten most expensive operations of each that left a trace."""
    for measurement in found:
        folder = measurement.facts.get("profile")
        if folder is not None and (Path(folder) / operations.FILE_NAME).exists():
            print(f"{measurement.case.title()}: {folder}\n{operations.table(operations.read(Path(folder)))}\n")


def write(json: Path | None, csv: Path | None, plot: Path | None, rows: list[records.Record]) -> None:
    """Writes the records where they are wanted."""
    if json is not None:
        records.write_json(json, rows)
    if csv is not None:
        records.write_csv(csv, rows)
    if plot is not None:
        charts.bars(plot, rows)


if __name__ == "__main__":
    command.run(main)
