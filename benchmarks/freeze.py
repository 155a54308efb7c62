"""Measures what a step and an epoch cost under each freeze strategy, beside what the plan predicts and what peers pay.

python benchmarks/freeze.py --model=resnet50 --strategies=none,until:layer3,backbone,cached --peers=torch,keras,flax \
    --json=F --csv=F --plot=F.png

Every implementation is measured against its own step with nothing frozen: its cases run alternately, then comes the
next implementation. 'inference' is the forward pass of the whole network in the same formulation. 'epoch' rows are
epochs over images that live on the device, from pixels and from cached features.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from flax import traverse_util

from benchmarks import command, environment, records, work
from benchmarks.case import Case, offers
from benchmarks.harness import Measurement, measure
from benchmarks.ours import make_variables
from benchmarks.records import Record
from benchmarks.strategies import BUILDER, EPOCH_IMAGES, check
from covidjax.errors import UserError
from covidjax.freeze.strategies import CACHED, default_strategies, split_cached

PEERS = ("torch", "keras", "flax", "flax_norm_logged")
PRECISIONS = ("float32", "bfloat16")
OPS = ("auto", "xla", "native")
BATCHES_PER_EPOCH = 16
COLUMNS = ("implementation", "strategy", "mode", "median ms", "p10", "p90", "of none", "predicted", "of inference")
MORE_COLUMNS = ("GFLOP", "of none", "trained", "optimizer MB", "temporary MB", "peak MB", "compile s", "samples")


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, measures, prints a table, writes the files that were asked for."""
    flags = parse(arguments)
    peers, absent = command.choose_peers(flags.peers, PEERS)
    base = Case(BUILDER, flags.model, "none", flags.precision, flags.batch_size, flags.image_size, width=flags.width)
    base = dataclasses.replace(base, ops=flags.ops)
    jax.config.update("jax_platforms", "cpu")  # of this process, which only looks at shapes; workers have the device
    strategies = _strategies(flags.strategies, base)
    for name in strategies:
        check(dataclasses.replace(base, freeze=name))
    for reason in (*absent.values(), *filter(None, (offers(peer, base) for peer in peers))):
        print(f"left out: {reason}")
    groups = [_own_cases(base, strategies, flags.epoch_images)]
    groups += [_peer_cases(base, peer, strategies) for peer in peers if not offers(peer, base)]
    shared = environment.describe("benchmarks/freeze.py", list(arguments))
    measurements: list[Measurement] = []
    rows: list[Record] = []
    for group in groups:
        measurements += measure(group, command.protocol(flags), _say)
        rows = make_records(measurements, shared)
        _write(flags, rows)  # after each, so that an interruption loses little
    print(table(rows))
    if failed := [row for row in rows if not row["n_samples"]]:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(rows)} cases have no sample, the first {first['impl']} {first['freeze']}: "
            f"{first['error'] or 'others used the cores all the time: wait, or raise --max_foreign_share'}"
        )


def parse(arguments: Sequence[str]) -> Any:
    """The flags. Raises UserError for what cannot be measured."""
    parser = command.Parser(prog="benchmarks/freeze.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="resnet50", choices=work.NETWORKS, metavar="NAME", help=", ".join(work.NETWORKS))
    add("--batch_size", type=command.positive, default=8)
    add("--image_size", type=command.positive, default=224, help="pixels a side")
    add("--width", type=int, default=0, help="of the first stage of cnn and unet; 0: the model's own")
    add("--precision", default="float32", choices=PRECISIONS)
    add("--ops", default="auto", choices=OPS, help="covidjax's operations")
    add("--strategies", type=command.listed, help="a list of names of config.freeze, and cached:<name>; without it all")
    add("--peers", type=command.listed, help=f"a list, or '' for none; without it {', '.join(PEERS)}, if installed")
    add("--epoch_images", type=int, help=f"of an epoch; 0: measure no epochs; without it {BATCHES_PER_EPOCH} batches")
    command.add_protocol(parser)
    flags = parser.parse_args(arguments)
    if flags.epoch_images is None:
        flags.epoch_images = BATCHES_PER_EPOCH * flags.batch_size
    if flags.epoch_images < 0 or flags.epoch_images % flags.batch_size:
        raise UserError(
            f"--epoch_images is {flags.epoch_images}: allowed are 0 and multiples of --batch_size {flags.batch_size}"
        )
    command.check_writable(flags.json, flags.csv, flags.plot)
    return flags


def _strategies(asked: tuple[str, ...] | None, base: Case) -> tuple[str, ...]:
    """The names asked for, with 'none', to which all are compared, in front."""
    if asked is not None:
        return tuple(dict.fromkeys(("none", *asked)))
    params = jax.eval_shape(lambda: make_variables(base))["params"]
    paths, network = traverse_util.flatten_dict(params, sep="/"), work.network(base.model)
    cached = f"{CACHED}:until:{network.encoder}" if network.encoder else CACHED
    return (*default_strategies(network.stages, paths), cached)


def _write(flags: Any, rows: Sequence[Record]) -> None:
    if flags.json:
        records.write_json(flags.json, rows)
    if flags.csv:
        records.write_csv(flags.csv, rows)
    if flags.plot and any(row["time_ratio_vs_none"] for row in rows):
        from benchmarks import staircase  # noqa: PLC0415 - measuring needs no matplotlib

        staircase.write(flags.plot, rows)


def _own_cases(base: Case, strategies: Sequence[str], epoch_images: int) -> list[Case]:
    cases = [dataclasses.replace(base, freeze=name) for name in strategies]
    cases.append(dataclasses.replace(base, mode="inference"))
    epochs = [name for name in strategies if split_cached(name)[1]] if epoch_images else []
    for name in dict.fromkeys(each for cached in epochs for each in (split_cached(cached)[0], cached)):
        cases.append(dataclasses.replace(base, freeze=name, options=((EPOCH_IMAGES, epoch_images),)))
    return cases


def _peer_cases(base: Case, peer: str, strategies: Sequence[str]) -> list[Case]:
    """What a peer has: leading stages frozen, and inference, which logging a norm does not change."""
    names = [name for name in strategies if name in ("none", "backbone") or name.startswith("until:")]
    cases = [dataclasses.replace(base, implementation=peer, freeze=name, ops="xla") for name in names]
    if peer != "flax_norm_logged":
        cases.append(dataclasses.replace(base, implementation=peer, mode="inference", ops="xla"))
    return cases


def make_records(measurements: Sequence[Measurement], shared: dict[str, Any]) -> list[Record]:
    """`records.make` with the ratios of this benchmark.

    time_ratio_vs_none, _p10, _p90: of medians, and of the percentiles to the median of 'none'; for an inference too.
    predicted_flops, predicted_flops_ratio: by the plan table, of covidjax. time_ratio_vs_inference: of medians.
    Rows of mode 'epoch': step_ms_* and images_per_s are of whole epochs, speedup_vs_uncached: against the same
    strategy from pixels; feature_pass_seconds: what the cache cost once, for as many images.
    """
    named = [dataclasses.replace(measurement, case=_as_ours(measurement.case)) for measurement in measurements]
    rows = records.make(named, {}, shared)
    for row, measurement in zip(rows, named, strict=True):
        row.pop("covidjax_speedup")  # implementations are not driven alternately
        row.pop("temp_bytes_ratio_to_covidjax")
        row["predicted_flops"] = measurement.facts.get("predicted_flops")
        row["feature_bytes"] = measurement.facts.get("feature_bytes")
        row["feature_pass_seconds"] = measurement.facts.get("feature_pass_seconds")
        if row.setdefault(EPOCH_IMAGES, 0):
            row["mode"] = "epoch"
            for name in ("flops_per_step", "flops_per_second", "share_of_matmul_ceiling", "flops_ratio_vs_none"):
                row[name] = None  # XLA counts the body of a loop once
            row["images_per_s"] = row[EPOCH_IMAGES] / row["step_ms_median"] * 1e3 if row["step_ms_median"] else None
    for row in rows:
        steps = _find(rows, row, mode="train", freeze="none")
        for suffix in ("median", "p10", "p90"):
            name = "time_ratio_vs_none" if suffix == "median" else f"time_ratio_{suffix}"
            own = None if row["mode"] == "epoch" else row[f"step_ms_{suffix}"]
            row[name] = _ratio(own, steps.get("step_ms_median"))
        row["speedup_vs_none"] = _ratio(1.0, row["time_ratio_vs_none"])
        if row["mode"] != "epoch":
            row["flops_ratio_vs_none"] = _ratio(row["flops_per_step"], steps.get("flops_per_step"))
        row["predicted_flops_ratio"] = _ratio(row["predicted_flops"], steps.get("predicted_flops"))
        inference = _find(rows, row, mode="inference", freeze="none")
        trains = row["mode"] == "train"
        row["time_ratio_vs_inference"] = (
            _ratio(row["step_ms_median"], inference.get("step_ms_median")) if trains else None
        )
        strategy, cached = split_cached(row["freeze"])
        plain = _find(rows, row, mode=row["mode"], freeze=strategy) if cached else {}
        row["speedup_vs_uncached"] = _ratio(plain.get("step_ms_median"), row["step_ms_median"])
    return rows


def _as_ours(case: Case) -> Case:
    if case.implementation != BUILDER:
        return case
    strategy, cached = split_cached(case.freeze)
    return dataclasses.replace(case, implementation="covidjax", freeze=f"cached:{strategy}" if cached else strategy)


def _find(rows: Sequence[Record], like: Record, **wanted: Any) -> Record:
    """The row of the same implementation with these fields; empty without one."""
    fields = {"impl": like["impl"], **wanted}
    return next((row for row in rows if all(row[name] == value for name, value in fields.items())), {})


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator and denominator else None


def table(rows: Sequence[Record]) -> str:
    """The records as text."""
    lines = [(*COLUMNS, *MORE_COLUMNS)]
    for row in rows:
        lines.append(
            (
                row["impl"],
                row["freeze"],
                row["mode"],
                *(_text(row[f"step_ms_{name}"], ",.2f") for name in ("median", "p10", "p90")),
                _text(row["time_ratio_vs_none"], ".3g"),
                _text(row["predicted_flops_ratio"], ".3g"),
                _text(row["time_ratio_vs_inference"], ".3g"),
                _text(row["flops_per_step"], ",.3g", 1e-9),
                _text(row["flops_ratio_vs_none"], ".3g"),
                _text(row["trainable_params"], ",.0f"),
                *(_text(row[name], ",.1f", 1e-6) for name in ("optimizer_bytes", "temp_bytes", "peak_bytes")),
                _text(row["compile_s"], ".1f"),
                f"{row['n_samples']}" + (f" (-{row['dropped']})" if row["dropped"] else ""),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(f"{cell:{'<' if place < 3 else '>'}{width}}" for place, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    first = rows[0]
    title = (
        f"{first['model']}, batch {first['batch_size']}, {first['image_size']} px, {first['precision']}, "
        f"{first['device']}"
    )
    cached = [
        f"{row['freeze']}: an epoch of {row[EPOCH_IMAGES]} images is {row['speedup_vs_uncached']:,.1f} times as fast "
        f"as from pixels; its features took {row['feature_pass_seconds']:.2f} s, {row['feature_bytes'] / 1e6:,.1f} MB"
        for row in rows
        if row["mode"] == "epoch" and row["speedup_vs_uncached"]
    ]
    return "\n".join([title, *text, *cached])


def _text(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:{form}}"


def _say(text: str) -> None:
    print(text.replace(BUILDER, "covidjax"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
