"""Folders of many image files: seconds of CPU to list, decode, train, evaluate and predict them, by their number."""

import contextlib
import functools
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from covidjax import files
from covidjax.config import default_config
from covidjax.data import sources
from covidjax.data.datasets.prepare import load_builder
from covidjax.errors import UserError

ROOT = Path(__file__).parents[1]
CLASSES, SIDE, DECODED, FOLDS = ("a", "b"), 40, 32, 5
SMALLEST = 40  # images: with fewer a split lacks a class
TRAINING = [f"--config.dataset.image_size={DECODED}", "--config.model.num_blocks=2", "--config.epochs=1"]


def table(counts: list[int]) -> str:
    """A row of Markdown for each piece of work: seconds for each number of images, and the last over the first."""
    found = [dict(measured(count)) for count in counts]
    head = ["", *(f"{count:,}" for count in counts), "ratio"]
    rows = [
        [name, *(f"{own[name]:.3g}" for own in found), f"{found[-1][name] / found[0][name]:.2g}"] for name in found[0]
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def measured(count: int) -> Iterator[tuple[str, float]]:
    """Each piece of work with its seconds, of all processes, on a new folder of so many images."""
    if count < SMALLEST:
        raise UserError(f"--files has {count}: {SMALLEST} are the least")
    with tempfile.TemporaryDirectory() as folder:
        root, own = Path(folder) / "images", Path(folder)
        make(root, count)
        dataset = default_config().dataset
        dataset.update(name="folder", root=str(root), image_size=DECODED, cache_dir=str(own / "cache"))
        fold = ConfigDict(dataset.to_dict() | {"fold": 0})
        yield "list the training split", seconds(lambda: sources.listed(dataset, "train"))
        yield "list a fold, with its eighth by patient", seconds(lambda: sources.listed(fold, "train"))
        yield "list, read and decode the training split", seconds(lambda: sources.load(dataset, "train"))
        yield "the same again, from the cache", seconds(lambda: sources.load(dataset, "train"))
        test = sources.load(dataset, "test")
        yield "look for copies of the test images", seconds(lambda: sources.copies_elsewhere(dataset, test))
        builder = load_builder("csv")(data_dir=own, config="labels", file_format="array_record")
        yield "check a set for `launch/prepare.py`", seconds(lambda: builder.check(root))
        data = ["--config=configs/cxr3.py:cnn", f"--config.dataset.root={root}", f"--config.dataset.cache_dir={own}"]
        workdir = f"--workdir={own / 'run'}"
        images = [f"--images={root}", f"--output={own / 'predictions.csv'}"]
        for name, command in (
            ("`launch/train.py`, one epoch", ["train", *data, *TRAINING, workdir]),
            ("`launch/evaluate.py --split=test`", ["evaluate", workdir, "--split=test"]),
            ("`launch/predict.py` of all images", ["predict", workdir, *images]),
        ):
            yield name, seconds(functools.partial(run, *command))


def make(root: Path, count: int) -> None:
    """Gray PNG files of noise in train, val and test, eight to one to one, each of a patient of its own, and tables."""
    random, folds, paths = np.random.default_rng(0), [], []
    for number in range(count):
        split, label = ("train",) * 8 + ("val", "test"), CLASSES[number % 2]
        own, name = split[number // 2 % 10], f"{number}.png"
        path = root / own / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE), np.uint8)).save(path)
        folds.append((name, label, f"p{number}", own, number // 2 % FOLDS))
        paths.append((f"{own}/{label}/{name}", label, f"p{number}", own))
    files.write_csv(root / "folds.csv", ("file", "label", "patient", "split", "fold"), folds)
    files.write_csv(root / "images.csv", ("path", "label", "patient", "split"), paths)


def seconds(work: Callable[[], object]) -> float:
    """Of CPU, of this process and of those that it starts."""
    before = _used()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    return _used() - before


def run(command: str, *arguments: str) -> None:
    """A command of launch/. Raises UserError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, f"launch/{command}.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"launch/{command}.py ended with status {done.returncode}: {done.stderr.splitlines()[-1:]}")


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
