"""What every freeze strategy would cost on devices that are not here, by the programs that are compiled for them."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from covidjax import console, files
from covidjax.config import from_json, to_json
from covidjax.freeze.strategies import split_cached
from covidjax.mesh import local_mesh, mesh_of
from covidjax.runs import costs
from covidjax.targets import (
    Compiler,
    Program,
    Target,
    largest_batch,
    predicted_exchange,
    predicted_floor,
    usable_bytes,
)

BUILDER = f"{__name__}:lowered"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one optimizer step of a strategy costs a device of a target, by its program; nothing of it is measured.

    Fields are those of `targets.hlo.Counts` and of the program's memory. collectives: how many of a kind, and their
    bytes. predicted_ms_floor: no step can be faster, of which predicted_ms_exchange is between devices;
    predicted_images_per_s: over all devices at that time, a ceiling. None where the compiler refused the program for
    lack of memory. largest_batch_per_device: None where it was not looked for; largest_batch_bytes and one_more_bytes:
    what the programs of that batch and of one image more need.
    """

    strategy: str
    batch_per_device: int
    flops: int | None
    bytes_accessed: int | None
    temp_bytes: int | None
    argument_bytes: int | None
    needed_bytes: int | None
    all_reduces: int | None
    all_reduce_bytes: int | None
    collectives: dict[str, tuple[int, int]]
    convolutions: int | None
    kernels: int | None
    fits: bool
    predicted_ms_floor: float | None
    predicted_ms_exchange: float | None
    predicted_images_per_s: float | None
    largest_batch_per_device: int | None
    largest_batch_bytes: int | None
    one_more_bytes: int | None
    compile_s: float


def _scaled(value: float | None, scale: float, form: str, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value * scale:{form if not 0 < value * scale < 0.1 else '.2g'}}{unit}"


COLUMNS: dict[str, Callable[[Prediction], str]] = {
    "strategy": lambda found: found.strategy,
    "GFLOP": lambda found: _scaled(found.flops, 1e-9, ",.1f"),
    "moved": lambda found: _scaled(found.bytes_accessed, 1e-9, ",.2f", " GB"),
    "temporary": lambda found: _scaled(found.temp_bytes, 2**-20, ",.0f", " MiB"),
    "arguments": lambda found: _scaled(found.argument_bytes, 2**-20, ",.0f", " MiB"),
    "all-reduces": lambda found: _scaled(found.all_reduces, 1, ",d"),
    "exchanged": lambda found: _scaled(found.all_reduce_bytes, 1e-6, ",.2f", " MB"),
    "fits": lambda found: "yes" if found.fits else "no",
    "predicted floor": lambda found: _scaled(found.predicted_ms_floor, 1, ",.2f", " ms"),
    "predicted images/s": lambda found: _scaled(found.predicted_images_per_s, 1, "<,.0f"),
    "largest batch": lambda found: _scaled(found.largest_batch_per_device, 1, ",d"),
}
WIDTHS = (8, 9, 10, 10, 11, 10, 4, 15, 18, 13)  # of the columns after the first: rows are printed as they come


def lowered(devices: list[Any], config: dict[str, Any], num_classes: int, strategy: str, cached: bool) -> Any:
    """The step of a strategy over devices, before it is optimised; what the compiling process calls."""
    values = from_json(config)
    jax.config.update("jax_enable_x64", values.precision == "float64")
    job = costs.job_of_shapes(values, num_classes, mesh_of(devices, values.mesh))
    return costs.lower_step(costs.job_of_strategy(job, strategy, cached=cached))


def batch_on(target: Target, config: ConfigDict) -> tuple[int, str]:
    """The batch of each device, and a note where it is not a part of `config.batch_size`."""
    size, parts = config.batch_size, target.devices * config.accumulation_steps
    if size % parts == 0:
        return size // target.devices, ""
    note = (
        f"config.batch_size {size} does not divide over {target.devices} devices: it is taken as the batch of each, "
        f"{size * target.devices:,} images together"
    )
    return size, note


def run(
    config: ConfigDict, strategies: Sequence[str], num_classes: int, target: Target, output: Path | None, *, most: bool
) -> None:
    """Prints what each strategy costs on a target when it is known; writes it as JSON.

    strategies: as `runs.freeze.run` takes them. most: whether to look for the largest batch too.
    Raises UserError where there are no compilers, and as `job_of_shapes`.
    """
    batch, note = batch_on(target, config)
    job = costs.job_of_shapes(config, num_classes, local_mesh(1))
    names = costs.wanted(job, costs.strategies_of(job) if tuple(strategies) == ("all",) else strategies)
    with Compiler(target) as compiler:
        print(
            f"{config.model.name}, batch {batch:,} a device, {config.dataset.image_size} px, {config.precision}, "
            f"{target.devices:,} x {target.name.partition(':')[0]}; figures of one device, nothing is measured"
        )
        columns = dict(list(COLUMNS.items())[: None if most else -1])
        align, widths = "<" + ">" * (len(columns) - 1), (max(map(len, [*names, "strategy"])), *WIDTHS)[: len(columns)]
        print(f"\n{console.format_row(list(columns), align, widths)}", flush=True)
        found, prices = [], []
        for number, name in enumerate(names, start=1):
            say = partial(_say, f"{number} of {len(names)}: {name} for {target.name}")
            compiled = partial(_compiled, compiler, config, num_classes, name, say)
            found.append(predict(name, batch, config.precision, compiled, most=most))
            if config.remat not in ("none", ()):
                plain = from_json({**to_json(config), "remat": "none"})
                compiled = partial(_compiled, compiler, plain, num_classes, name, say)
                prices.append(_price(config.remat, found[-1], predict(name, batch, config.precision, compiled)))
            console.erase()
            print(console.format_row([form(found[-1]) for form in columns.values()], align, widths), flush=True)
    notes = [*prices, *_exchanged(found), *_notes(target, config, most=most)]
    print("", *notes, *filter(None, [note]), sep="\n")
    if output:
        content = {
            "model": config.model.name,
            "precision": config.precision,
            "image_size": config.dataset.image_size,
            "num_classes": num_classes,
            "target": target.name,
            "devices": target.devices,
            "usable_bytes": usable_bytes(target),
            "source": target.chip.source,
            "notes": [*notes, *filter(None, [note])],
            "strategies": [dataclasses.asdict(each) for each in found],
        }
        files.write_json(output, content)


def predict(
    name: str, batch: int, precision: str, compiled: Callable[[int], Program], *, most: bool = False
) -> Prediction:
    """The costs of a strategy. compiled: its program for a batch a device. most: find the largest batch that fits."""
    program = compiled(batch)
    counts = dataclasses.asdict(program.counts) if program.hlo else {}
    floor = predicted_floor(program, precision) if program.hlo else None
    largest = largest_batch(compiled, batch) if most else None
    return Prediction(
        strategy=name,
        batch_per_device=batch,
        **{
            field: counts.get(field)
            for field in ("flops", "bytes_accessed", "all_reduces", "all_reduce_bytes", "convolutions", "kernels")
        },
        collectives=program.counts.by_kind() if program.hlo else {},
        temp_bytes=program.memory.get("temp"),
        argument_bytes=program.memory.get("argument"),
        needed_bytes=program.bytes if program.hlo else None,
        fits=program.fits,
        predicted_ms_floor=floor and floor * 1e3,
        predicted_ms_exchange=predicted_exchange(program) * 1e3 if program.hlo else None,
        predicted_images_per_s=batch * program.target.devices / floor if floor else None,
        largest_batch_per_device=largest.batch if largest else None,
        largest_batch_bytes=largest.needed_bytes if largest else None,
        one_more_bytes=largest.more_bytes if largest else None,
        compile_s=program.seconds,
    )


def _compiled(
    compiler: Compiler, config: ConfigDict, num_classes: int, name: str, say: Callable[[int, float], None], batch: int
) -> Program:
    strategy, cached = split_cached(name)

    def with_remat(remat: Any) -> Program:
        own = {**to_json(config), "batch_size": batch * compiler.target.devices, "remat": remat}
        arguments = {"config": own, "num_classes": num_classes, "strategy": strategy, "cached": cached}
        return compiler.program(BUILDER, partial(say, batch), **arguments)

    if config.remat != "auto":
        return with_remat(to_json(config)["remat"])
    program = with_remat("none")
    return program if program.fits else with_remat("lean")


def _say(text: str, batch: int, seconds: float) -> None:
    if sys.stderr.isatty():
        console.erase()
        print(f"{text}, batch {batch} a device: compiling, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
    elif seconds and not seconds % 60:
        console.say(f"{text}, batch {batch} a device: compiling for {seconds:.0f} s")


def _price(remat: str | Sequence[str], own: Prediction, plain: Prediction) -> str:
    """What config.remat saves and what it costs. plain: the same without it."""
    words = f"remat of {remat if isinstance(remat, str) else ', '.join(remat)}, {own.strategy}: "
    if own.temp_bytes is None or own.bytes_accessed is None or plain.temp_bytes is None or plain.bytes_accessed is None:
        return f"{words}the compiler refused the program {'with' if own.temp_bytes is None else 'without'} it"
    saved, moved = (plain.temp_bytes - own.temp_bytes) / 2**20, own.bytes_accessed - plain.bytes_accessed
    fits = "" if plain.fits else "; without it the program does not fit"
    return (
        f"{words}{saved:,.0f} of {plain.temp_bytes / 2**20:,.0f} MiB of temporary memory less, and "
        f"{moved / 1e9:,.2f} GB ({moved / plain.bytes_accessed:.0%}) more through memory{fits}"
    )


def _exchanged(found: Sequence[Prediction]) -> list[str]:
    """What devices exchange in a step of each strategy, by kind of collective; nothing where there is one device."""
    return [
        f"exchanged by {each.strategy}: "
        + ", ".join(f"{count:,} {kind} of {moved / 1e6:,.3g} MB" for kind, (count, moved) in each.collectives.items())
        for each in found
        if each.collectives
    ]


def _notes(target: Target, config: ConfigDict, *, most: bool) -> list[str]:
    chip, usable = target.chip, usable_bytes(target)
    share = ", the part that JAX takes by itself, or that XLA_PYTHON_CLIENT_MEM_FRACTION names" * (
        chip.platform == "cuda"
    )
    peak = chip.peak_flops.get(config.precision)
    terms = [
        f"FLOPs at {peak / 1e12:,.0f} TFLOP/s" if peak else "",
        f"bytes at {chip.memory_bandwidth / 1e9:,.0f} GB/s",
    ]
    links = (
        f", and what is exchanged at {chip.link_bandwidth / 1e9:,.0f} GB/s"
        if chip.link_bandwidth and target.devices > 1
        else ""
    )
    notes = [
        "GFLOP: of convolutions and matrix products. moved: operands and results of all operations, through "
        + ("HBM" if chip.platform == "tpu" else "HBM and L2, which are not told apart"),
        f"fits: in {usable / 1e9:,.1f} GB of a device{share}; what else runs there is not counted",
        f"predicted floor: the larger of {' and '.join(filter(None, terms))}{links} (published by {chip.source}); no "
        "step can be faster, and images/s over all devices are a ceiling: neither is a measurement",
    ]
    if not peak:
        notes.append(f"no peak of {config.precision} is published: the floor is of bytes alone")
    if most:
        notes.append("largest batch: a device's; of one image more the program does not fit")
    return notes
