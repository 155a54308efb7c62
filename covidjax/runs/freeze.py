"""What every freeze strategy costs for a config, as a table and as JSON."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from covidjax import console, files, tasks
from covidjax.errors import UserError
from covidjax.freeze.table import format_table
from covidjax.runs import costs, targets
from covidjax.runs.costs import Cost, DataFacts
from covidjax.targets import Target
from covidjax.train.job import Job, describe_freeze

EPOCH_WITHOUT_DATA = 1000


def _flops(count: float) -> str:
    for factor, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count / 1e3:.2f} kFLOP"


# Of a cost and the examples of an epoch.
COLUMNS: dict[str, Callable[[Cost, int], str]] = {
    "strategy": lambda cost, epoch: cost.strategy,
    "trainable": lambda cost, epoch: f"{cost.trainable_params:,}",
    "step": lambda cost, epoch: _flops(cost.flops),
    "speed-up": lambda cost, epoch: f"{cost.speedup_vs_none:,.{2 if cost.speedup_vs_none < 100 else 0}f}x",
    "optimizer": lambda cost, epoch: f"{cost.optimizer_bytes / 2**20:,.2f} MiB",
    "temporary": lambda cost, epoch: f"{cost.temp_bytes / 2**20:,.1f} MiB",
    "arguments": lambda cost, epoch: f"{cost.argument_bytes / 2**20:,.1f} MiB",
    "features/image": lambda cost, epoch: f"{cost.feature_bytes / 2**10:,.1f} KiB" if cost.feature_bytes else "-",
    "epoch": lambda cost, epoch: _flops(cost.flops_per_image * epoch),
}

ALIGN = "<>>>>>>>>"
WIDTHS = (11, 13, 8, 12, 12, 11, 14, 13)  # of the columns after the first: rows are printed as they come


def check(config: ConfigDict, num_classes: int | None, num_images: int | None, output: Path | None) -> DataFacts:
    """The facts of the data set, of which the numbers that are given are not counted. Raises UserError."""
    for name, value in (("classes", num_classes), ("images", num_images)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: allowed is 1 and more")
    if output and not output.absolute().parent.is_dir():
        raise UserError(f"--json: there is no folder {output.absolute().parent}: make it, or choose another")
    if num_classes is not None:
        return DataFacts(num_classes, num_images or EPOCH_WITHOUT_DATA, num_images or EPOCH_WITHOUT_DATA)
    masks = tasks.of(config.model.name, config.loss.name).masks
    try:
        found = costs.data_facts(config.dataset, masks=masks)
    except UserError as error:
        raise UserError(f"{error}; or give --classes=N, and the data set is not looked at") from error
    return DataFacts(found.classes, num_images or found.images, num_images or found.epoch)


def run(
    config: ConfigDict,
    strategies: Sequence[str],
    data: DataFacts,
    output: Path | None,
    target: Target | None = None,
    *,
    most: bool = False,
) -> None:
    """Prints the config's own plan and each strategy's costs when they are known; writes them as JSON.

    strategies: texts as `value_of` takes them, or 'all' alone. target: devices that are not here, see `targets.run`,
    as for `most`.
    """
    if target:
        targets.run(config, strategies, data.classes, target, output, most=most)
        return
    device, num_devices = jax.local_devices()[0].device_kind, jax.local_device_count()
    size = config.dataset.image_size
    print(
        f"{config.model.name}, batch {config.batch_size}, {size} px, {config.precision}, {num_devices} x {device}",
        flush=True,
    )
    job = costs.job_of_shapes(config, data.classes)
    names = costs.strategies_of(job) if tuple(strategies) == ("all",) else strategies
    for phase in job.phases:
        table = describe_freeze(job, phase)
        print(f"\nphase {phase.index}, config.freeze {phase.freeze!r}:")
        print(format_table(table["rows"], table["summary"]), flush=True)
    wanted = costs.wanted(job, names)
    widths = (max(map(len, [*wanted, "strategy"])), *WIDTHS)
    print(f"\n{console.format_row(list(COLUMNS), ALIGN, widths)}", flush=True)
    full_flops, found = costs.full_flops(job), []
    for number, (name, (strategy, cached)) in enumerate(wanted.items(), start=1):
        if sys.stderr.isatty():
            print(f"{number} of {len(wanted)}: {name}: compiling its step", end="", file=sys.stderr, flush=True)
        cost = costs.predict(job, strategy, full_flops, cached=cached)
        console.erase()
        print(console.format_row([form(cost, data.epoch) for form in COLUMNS.values()], ALIGN, widths), flush=True)
        found.append(cost)
    print(*_notes(job, found, data.epoch), sep="\n")
    if output:
        content = {
            "model": config.model.name,
            "precision": config.precision,
            "batch_size": config.batch_size,
            "image_size": size,
            "num_classes": data.classes,
            "num_images": data.images,
            "epoch_images": data.epoch,
            "device": device,
            "num_devices": num_devices,
            "strategies": [
                dataclasses.asdict(cost)
                | {
                    "epoch_flops": cost.flops_per_image * data.epoch,
                    "feature_pass_flops": cost.prefix_flops * data.images if cost.frozen_prefix else 0.0,
                }
                for cost in found
            ],
        }
        files.write_json(output, content)


def _notes(job: Job, found: Sequence[Cost], epoch: int) -> list[str]:
    notes = [
        "step, speed-up: FLOPs of forward and backward pass as XLA counts them before optimisation, against 'none'; "
        "seconds follow them as far as the device computes all layers at one rate",
        "temporary, arguments: bytes of the compiled step on each of this machine's devices",
        f"epoch: forward and backward pass of {epoch:,} images",
    ]
    if any(cost.frozen_prefix for cost in found):
        notes.append(
            f"cached: training from the outputs of the frozen stages, which run once for each image (and view) before "
            f"the first epoch; {costs.caching_note(job.config.feature_views, job.recipes[0])}"
        )
    return notes
