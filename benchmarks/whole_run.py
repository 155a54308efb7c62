"""A whole run of Ljung and others' experiment 3 with cached features, against the same in Keras: wall clock of both.

python benchmarks/whole_run.py --root=FOLDER [--epochs=12] [--batch_size=8] [--image_size=224] [--feature_views=K]

FOLDER: train/ and val/ with a folder a class, and folds.csv (file,label,patient,split). VGG-16 frozen, the same random
weights on both sides, head 1024-1024-classes, Adam 2e-5. Each side is one process, from its start to its end: imports,
decoding, compilation, training and validation of every epoch; ours writes its checkpoints and report.
Without --feature_views nothing is augmented. With it both sides turn and shift as the paper's table 3 says: Keras anew
in every epoch, covidjax in K fixed views of each image, which is less augmentation where K is below the epochs.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.environment import describe
from covidjax import files
from covidjax.errors import UserError
from covidjax.process import path_of

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, runs both, prints the times and the ratio."""
    parser = command.Parser(prog="benchmarks/whole_run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, type=path_of)
    parser.add_argument("--json", type=path_of, help="where the record goes")
    for name, default in (("epochs", 12), ("batch_size", 8), ("image_size", 224), ("feature_views", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args(arguments)
    if not (flags.root / "folds.csv").is_file():
        raise UserError(
            f"--root: there is no {flags.root / 'folds.csv'}: give a folder with train/, val/ and folds.csv"
        )
    sizes = [f"--{name}={getattr(flags, name)}" for name in ("epochs", "batch_size", "image_size")]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vgg16.weights.h5"
        keras = [sys.executable, "-m", "benchmarks.peers.keras_run", *sizes]
        _run([*keras, f"--make_weights={weights}"], folder)
        keras += [f"--root={flags.root}", f"--weights={weights}", *(["--augment"] if flags.feature_views else [])]
        keras_seconds, keras_cpu, printed = _run(keras, folder)
        ours = [sys.executable, "launch/train.py", "--config=configs/cxr3.py:vgg16", f"--workdir={folder}/run"]
        ours += [f"--config.{key}={value}" for key, value in overrides(flags.root, weights, flags).items()]
        our_seconds, our_cpu, _ = _run(ours, folder)
        record = {
            "what": "whole run, VGG-16 frozen, head 1024-1024",
            "epochs": flags.epochs,
            "batch_size": flags.batch_size,
            "image_size": flags.image_size,
            "feature_views": flags.feature_views,
            "keras_seconds": round(keras_seconds, 1),
            "covidjax_seconds": round(our_seconds, 1),
            "ratio": round(keras_seconds / our_seconds, 2),
            "keras_cpu_seconds": round(keras_cpu, 1),
            "covidjax_cpu_seconds": round(our_cpu, 1),
            "cpu_ratio": round(keras_cpu / our_cpu, 2),
            "keras_val_accuracy": json.loads(printed.splitlines()[-1])["val_accuracy"][-1],
            "covidjax_val_accuracy": _last_accuracy(Path(folder) / "run"),
            "features": files.read_json(Path(folder) / "run" / "run.json")["features"],
            **describe("benchmarks/whole_run.py", list(arguments)),
        }
    print(json.dumps(record, indent=1))
    if flags.json:
        files.write_json(flags.json, record)


def overrides(root: Path, weights: Path, flags: object) -> dict[str, object]:
    """The config of the paper's experiment, as overrides of configs/cxr3.py."""
    views = flags.feature_views  # type: ignore[attr-defined]
    still = dict.fromkeys(("rotate", "shift", "scale", "brightness", "contrast"), 0.0)
    augment = still | {"rotate": 10.0, "shift": 0.1} if views else still
    return {
        "dataset.root": root,
        "dataset.image_size": flags.image_size,  # type: ignore[attr-defined]
        "dataset.crop": "squash",
        "model.head": "paper",
        "pretrained": weights,
        "freeze": "backbone",
        "batch_size": flags.batch_size,  # type: ignore[attr-defined]
        "epochs": flags.epochs,  # type: ignore[attr-defined]
        "optimizer.name": "adam",
        "optimizer.learning_rate": 2e-5,
        "optimizer.schedule": "constant",
        "optimizer.weight_decay": 0.0,
        "ema_decay": 0.0,
        "feature_views": views,
        **{f"augment.{name}": value for name, value in augment.items()},
    }


def _run(command_line: list[str], folder: str) -> tuple[float, float, str]:
    """Wall and CPU seconds of a process, with caches of its own, and what it printed.

    CPU seconds, of all its threads, tell less of waiting for other work on the machine.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": f"{folder}/cache"}
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command_line, cwd=ROOT, env=variables, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{command_line[1:3]} failed: {done.stderr.splitlines()[-1:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu_seconds, done.stdout


def _last_accuracy(workdir: Path) -> float:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return float([line for line in lines if line["split"] == "val"][-1]["accuracy"])


if __name__ == "__main__":
    command.run(main)
