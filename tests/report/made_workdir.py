"""Working folders as a run leaves them, and a reader of the reports written from them."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from covidjax import config as configs
from covidjax.data.examples import Examples
from covidjax.metrics import classification, prediction_table
from covidjax.report import run
from covidjax.runs import costs
from covidjax.train.job import describe_freeze
from tests.support import TINY, small_config

CLASSES = ("normal", "pneumonia", "covid19")
SIDE = 24
NUM_EXAMPLES = 90
EPOCHS, FIRST_PHASE = 40, 15


def make_examples(split: str, images: np.ndarray | None = None, classes: tuple[str, ...] = CLASSES) -> Examples:
    if images is None:
        images = np.random.default_rng(5).integers(0, 255, (NUM_EXAMPLES, SIDE, SIDE, 1), np.uint8)
    count = len(images)
    labels = np.arange(count, dtype=np.int32) % len(classes)
    return Examples(
        split=split,
        images=images,
        labels=labels,
        names=tuple(f"{split}/{classes[label]}/image{index:03d}.png" for index, label in enumerate(labels)),
        patients=tuple(f"patient{index // 2}" for index in range(count)),
        patients_known=True,
        classes=classes,
        fingerprint="0123456789abcdef" * 4,
    )


def predict(examples: Examples, seed: int) -> np.ndarray:
    """Plausible class probabilities: [n, classes], mostly right, sometimes confidently wrong."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.1, (len(examples), len(examples.classes)))
    logits[np.arange(len(examples)), examples.labels] += 2.2
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def write_evaluation(workdir: Path, examples: Examples, seed: int = 0) -> dict[str, Any]:
    """Writes evaluation_<split>.json and predictions_<split>.csv as an evaluation does, with few resamples."""
    probabilities = predict(examples, seed)
    evaluation = classification.classification_report(probabilities, examples, 0.4567, resamples=40)
    evaluation["checkpoint"] = {"step": 31 * 24, "which": "best"}
    (workdir / f"evaluation_{examples.split}.json").write_text(json.dumps(evaluation))
    prediction_table.write_predictions(workdir / f"predictions_{examples.split}.csv", examples, probabilities)
    return evaluation


PHASES = (
    {"epochs": FIRST_PHASE, "freeze": "backbone"},
    {"epochs": EPOCHS - FIRST_PHASE, "freeze": "none", "optimizer": {"learning_rate": 1e-4}},
)


def write_config(workdir: Path) -> None:
    config = small_config("resnet18", seed=3, dataset__name="folder", dataset__root="/data/cxr3", phases=PHASES)
    (workdir / "config.json").write_text(json.dumps(configs.to_json(config)))


def write_metrics(workdir: Path) -> None:
    generator = np.random.default_rng(1)
    lines = []
    for epoch in range(1, EPOCHS + 1):
        phase = int(epoch > FIRST_PHASE)
        done, of = (epoch - FIRST_PHASE, EPOCHS - FIRST_PHASE) if phase else (epoch, FIRST_PHASE)
        train = 0.25 + 0.9 * np.exp(-epoch / 9) + 0.02 * generator.normal()
        val = 0.42 + 0.8 * np.exp(-epoch / 8) + 0.004 * abs(epoch - 31) + 0.01 * generator.normal()
        common = {"step": epoch * 24, "epoch": epoch, "phase": phase}
        rate = (1e-4 if phase else 1e-3) * 0.5 * (1.001 + np.cos(np.pi * done / of))
        lines += [
            {**common, "split": "train", "loss": train, "accuracy": 1 - 0.4 * train, "learning_rate": rate,
             "gradient_norm": 1.2, "images_per_second": 61.0},
            {**common, "split": "val", "loss": val, "accuracy": 1 - 0.4 * val},
        ]  # fmt: skip
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(workdir: Path) -> None:
    job = costs.job_of_shapes(small_config(**TINY, phases=PHASES), len(CLASSES))

    def split(count: int) -> dict[str, Any]:
        return {"num_examples": count, "num_patients": count * 2 // 3, "patients_known": True,
                "fingerprint": "0123456789abcdef" * 4, "classes": dict.fromkeys(CLASSES, count // 3),
                "placement": "device", "bytes": count * 224 * 224}  # fmt: skip

    record = {
        "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "numpy": "2.3.4"},
        "device": "NVIDIA H200",
        "num_devices": 1,
        "git_revision": "3f9c2d1",
        "data": {"train": split(768), "val": split(90), "test": split(90)},
        "notes": ["test: 90 examples are held out and read by evaluate only.", "train: 2 files could not be decoded."],
        "freeze": [describe_freeze(job, phase) for phase in job.phases],
        "timings": {"compile_seconds": 21.4, "train_seconds": 754.2, "data_seconds": 3.1, "images_per_second": 1034.7},
        "test_reads": ["2026-11-20T12:00:00Z"],
    }
    (workdir / "run.json").write_text(json.dumps(record))


class Page(HTMLParser):
    """Reads a report back: its text, tables as lists of rows of cell texts, figures as (image bytes, caption)."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.figures: list[tuple[bytes, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img" and "figure" in self._open:
            source = dict(attrs)["src"] or ""
            self.figures.append((base64.b64decode(source.partition(",")[2]), ""))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        elif "figcaption" in self._open and self.figures:
            self.figures[-1] = (self.figures[-1][0], self.figures[-1][1] + data)

    def table(self, *header: str) -> list[list[str]]:
        """The rows of the first table whose head holds `header`."""
        return next(rows for rows in self.tables if set(header) <= set(rows[0]))


def write_report(workdir: Path, examples: dict[str, Examples] | None = None) -> Page:
    return Page(run.write(workdir, examples or {}).read_text(encoding="utf-8"))


def assert_self_contained(content: str) -> Page:
    """A page that needs nothing outside itself, read."""
    read = Page(content)
    assert not re.search(r"https?://|@import|url\(", content)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] or "" for _, attributes in read.tags if "src" in attributes]
    assert all(source.startswith("data:image/") for source in sources)
    for data, _ in read.figures:
        if b"<svg" in data:
            assert all(target.startswith(b"#") for target in re.findall(rb'href="([^"]*)"', data))
    return read
