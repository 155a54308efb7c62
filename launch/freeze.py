"""Prints what every freeze strategy would cost for a config, without training and without reading an image.

python launch/freeze.py --config=configs/cxr3.py:resnet18 [--strategies=none,until:layer3] [--json=costs.json]
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from covidjax import command, files, models
from covidjax.config.flags import parse_with_config
from covidjax.errors import UserError
from covidjax.freeze.strategies import ALLOWED, split_cached
from covidjax.freeze.table import format_table
from covidjax.process import prepare_process
from covidjax.runs import costs
from covidjax.runs.costs import Cost, Setting

NOT_READ = "(not read)"
EPOCH_WITHOUT_DATA = 1000
COLUMNS = (
    "strategy",
    "trainable",
    "step",
    "speed-up",
    "optimizer",
    "temporary",
    "arguments",
    "features/image",
    "epoch",
)


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, prints the config's own plan, compiles each strategy's step, prints the table."""
    parser = command.Parser(prog="launch/freeze.py", description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default="all", help="all (default), or names of config.freeze between commas")
    parser.add_argument("--classes", type=int, help="number of classes; default: counted in the data set's folders")
    parser.add_argument("--images", type=int, help="training images of an epoch; default: counted like the classes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    if any(argument.split("=")[0] == "--classes" for argument in arguments):
        arguments = [*arguments, f"--config.dataset.root={NOT_READ}"]
    flags, config = parse_with_config(parser, arguments)
    for name in ("classes", "images"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise UserError(f"--{name} is {getattr(flags, name)}: allowed is 1 and more")
    if flags.json and not flags.json.absolute().parent.is_dir():
        raise UserError(f"--json: there is no folder {flags.json.absolute().parent}: make it, or choose another")
    num_classes, num_images, epoch = _data_facts(config, flags.classes, flags.images)
    prepare_process(config.precision)
    setting = costs.make_setting(config, num_classes)
    names = setting.default_strategies() if flags.strategies == "all" else _names(flags.strategies)
    _print_plan(setting)
    found = list(_predict_all(setting, names))
    print(format_costs(found, epoch))
    print(_notes(setting, found, epoch))
    if flags.json:
        files.write_json(flags.json, _as_json(setting, found, num_classes, num_images, epoch))


def _data_facts(config: ConfigDict, num_classes: int | None, num_images: int | None) -> tuple[int, int, int]:
    """Number of classes, of training images, and of examples in an epoch, in which `--images` count once."""
    if num_classes is not None:
        return num_classes, num_images or EPOCH_WITHOUT_DATA, num_images or EPOCH_WITHOUT_DATA
    try:
        classes, images, epoch = costs.data_facts(config.dataset, models.task(config.model.name))
    except UserError as error:
        raise UserError(f"{error}; or give --classes=N, and the data set is not looked at") from error
    return classes, num_images or images, num_images or epoch


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError(f"--strategies is empty: allowed are all, {', '.join(ALLOWED)}")
    return tuple(dict.fromkeys(names))


def _print_plan(setting: Setting) -> None:
    config = setting.config
    where = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    print(
        f"{config.model.name}, batch {config.batch_size}, {config.dataset.image_size} px, {config.precision}, {where}"
    )
    for phase in setting.phases():
        table = format_table(*setting.table(setting.recipe(phase)))
        print(f"\nphase {phase.index}, config.freeze {phase.freeze!r}:\n{table}")
    print()


def _predict_all(setting: Setting, names: Sequence[str]) -> Iterator[Cost]:
    """Each named strategy, and behind it the same from cached features where its first stages are frozen."""
    full_flops, done = costs.full_flops(setting), set()
    wanted = [split_cached(name) for name in names]
    for number, (strategy, cached) in enumerate(wanted, start=1):
        _progress(f"{number} of {len(names)}: {names[number - 1]}: compiling its step")
        for from_features in (True,) if cached else (False, True):
            if (strategy, from_features) in done:
                continue
            if from_features and not cached and not setting.recipe_of(strategy).plan.frozen_prefix:
                continue
            done.add((strategy, from_features))
            yield costs.predict(setting, strategy, full_flops, cached=from_features)
    _progress("")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def format_costs(found: Sequence[Cost], epoch: int) -> str:
    """The table for a terminal. epoch: examples in one."""
    lines = [COLUMNS]
    for cost in found:
        lines.append(
            (
                cost.strategy,
                f"{cost.trainable_params:,}",
                _flops(cost.flops),
                f"{cost.speedup_vs_none:,.2f}x" if cost.speedup_vs_none < 100 else f"{cost.speedup_vs_none:,.0f}x",
                f"{cost.optimizer_bytes / 2**20:,.2f} MiB",
                f"{cost.temp_bytes / 2**20:,.1f} MiB",
                f"{cost.argument_bytes / 2**20:,.1f} MiB",
                f"{cost.feature_bytes / 2**10:,.1f} KiB" if cost.feature_bytes else "-",
                _flops(cost.flops_per_image * epoch),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _flops(count: float) -> str:
    for factor, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count / 1e3:.2f} kFLOP"


def _notes(setting: Setting, found: Sequence[Cost], epoch: int) -> str:
    notes = [
        "step, speed-up: FLOPs of forward and backward pass as XLA counts them before optimisation, against 'none'; "
        "seconds follow them as far as the device computes all layers at one rate",
        "temporary, arguments: bytes of the compiled step on each of this machine's devices",
        f"epoch: forward and backward pass of {epoch:,} images",
    ]
    if any(cost.frozen_prefix for cost in found):
        recipe = setting.recipe_of(next(cost.strategy for cost in found if cost.frozen_prefix).removeprefix("cached:"))
        notes.append(
            f"cached: training from the outputs of the frozen stages, which run once for each image (and view) before "
            f"the first epoch; {costs.caching_note(setting.config, recipe)}"
        )
    return "\n".join(notes)


def _as_json(
    setting: Setting, found: Sequence[Cost], num_classes: int, num_images: int, epoch: int
) -> dict[str, object]:
    config = setting.config
    return {
        "model": config.model.name,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "image_size": config.dataset.image_size,
        "num_classes": num_classes,
        "num_images": num_images,
        "epoch_images": epoch,
        "device": jax.local_devices()[0].device_kind,
        "num_devices": jax.local_device_count(),
        "strategies": [
            dataclasses.asdict(cost)
            | {
                "epoch_flops": cost.flops_per_image * epoch,
                "feature_pass_flops": cost.prefix_flops * num_images if cost.frozen_prefix else 0.0,
            }
            for cost in found
        ],
    }


if __name__ == "__main__":
    command.run(main)
