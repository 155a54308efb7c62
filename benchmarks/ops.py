"""Times every operation of a network in XLA's plain formulation and in covidjax's own, which have to earn their place.

python benchmarks/ops.py --model=resnet50 --batch_size=8 --image_size=224 --json=F.json --csv=F.csv

Both run in this process, alternately, on random arrays. Rows are directions of an operation at a shape; 'count' says
how often the network has it. Only what differs is timed: where covidjax takes the plain formulation there is no row.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covidjax.ops.choose import choose

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from benchmarks import command, environment, records, work
from benchmarks.case import Case
from benchmarks.formulations import Function, Pair, pairs
from benchmarks.harness import Protocol
from benchmarks.records import Record
from benchmarks.worker import timed
from covidjax.command import check_backend
from covidjax.process import keep_memory

SAMPLE_SECONDS = 0.15


def main(arguments: list[str]) -> None:
    """Parses the arguments, measures pair by pair, prints a table, writes the files that were asked for."""
    parser = command.Parser(prog="benchmarks/ops.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", choices=work.NETWORKS, metavar="NAME")
    parser.add_argument("--batch_size", type=command.positive, default=8)
    parser.add_argument("--image_size", type=command.positive, default=224, help="pixels a side")
    parser.add_argument("--width", type=int, default=0, help="of the first stage of cnn and unet; 0: the model's own")
    parser.add_argument("--ops", default="xla", choices=("xla", "native"), help="covidjax's operations")
    command.add_protocol(parser)
    parser.set_defaults(min_sample_seconds=SAMPLE_SECONDS)
    flags = parser.parse_args(arguments)
    command.check_writable(flags.json, flags.csv)
    check_backend()
    protocol = command.protocol(flags)
    choose(flags.ops)
    sizes: dict[str, Any] = {"batch_size": flags.batch_size, "image_size": flags.image_size, "width": flags.width}
    case = Case("flax", flags.model, ops=flags.ops, **sizes)
    work.check(case)
    shared = {**environment.describe("benchmarks/ops.py", arguments), "allocator": keep_memory()}
    shared |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "model": flags.model}
    rows: list[Record] = []
    for pair in pairs(case):
        if pair.chosen != "plain":
            rows.append({**measure(pair, protocol), **shared})
            print(line(rows[-1]), flush=True)
    print(summary(rows))
    if flags.json:
        records.write_json(flags.json, rows)
    if flags.csv:
        records.write_csv(flags.csv, rows)


def measure(pair: Pair, protocol: Protocol) -> Record:
    """Medians of clean samples, taken alternately; speedup: the plain median by ours, None without a sample."""
    functions = {"plain": pair.plain, "ours": pair.ours}
    calls = {name: _calls(function, pair.arrays, protocol) for name, function in functions.items()}
    seconds: dict[str, list[float]] = defaultdict(list)
    dropped = 0
    for _ in range(protocol.max_rounds or 4 * protocol.samples):
        for name, function in functions.items():
            if len(seconds[name]) < protocol.samples:
                taken, foreign_share = _sample(function, pair.arrays, calls[name])
                clean = foreign_share is None or foreign_share <= protocol.max_foreign_share
                seconds[name] += [taken / calls[name]] if clean else []
                dropped += not clean
    medians = {name: statistics.median(taken) * 1e3 if taken else None for name, taken in seconds.items()}
    plain, ours = medians["plain"], medians["ours"]
    return {
        "operation": pair.operation,
        "shape": pair.shape,
        "direction": pair.direction,
        "count": pair.count,
        "formulation": pair.chosen,
        "plain_ms": plain,
        "ours_ms": ours,
        "speedup": plain / ours if plain and ours else None,
        "samples": min(map(len, seconds.values())),
        "dropped": dropped,
    }


def _calls(function: Function, arrays: Any, protocol: Protocol) -> int:
    """How many calls fill a sample; compiles and warms up."""
    for _ in range(1 + protocol.warm_up_steps):
        began = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        seconds = time.perf_counter() - began
    return max(1, round(protocol.min_sample_seconds / seconds))


def _sample(function: Function, arrays: Any, calls: int) -> tuple[float, float | None]:
    """Seconds of so many calls, and the share of the cores that others used meanwhile."""

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(function(*arrays))

    return timed(run, jax.default_backend())


def line(row: Record) -> str:
    """A row as text."""
    figures = (
        "  no clean sample"
        if row["speedup"] is None
        else (f"{row['plain_ms']:9.3f} ms plain {row['ours_ms']:9.3f} ms ours {row['speedup']:7.2f}x")
    )
    what = f"{row['count']:2d} {row['operation']:11s} {row['shape']:44s} {row['direction']:15s} {row['formulation']:8s}"
    return f"{what} {figures} {row['samples']:3d} (-{row['dropped']})"


def summary(rows: Sequence[Record]) -> str:
    """What all of a network's operations of a kind take together, by direction and formulation."""
    sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        if row["speedup"] is not None:
            total = sums[row["operation"], row["direction"], row["formulation"]]
            total[0] += row["count"] * row["plain_ms"]
            total[1] += row["count"] * row["ours_ms"]
    text = [
        f"{' '.join(key):40s} {plain:9.1f} ms plain {ours:9.1f} ms ours {plain / ours:7.2f}x"
        for key, (plain, ours) in sums.items()
    ]
    return "\n".join(["", "of the whole network:", *text])


if __name__ == "__main__":
    command.run(main)
