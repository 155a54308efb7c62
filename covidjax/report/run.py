"""One self-contained page about a run: figures with intervals, errors, curves, costs, data and config."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covidjax import config as configuration
from covidjax import files
from covidjax.data.examples import Examples
from covidjax.models import SEGMENTATION
from covidjax.report import batch, ensemble, figures, page, segmentation, workdir
from covidjax.report.classification import split_section
from covidjax.report.page import Html, element
from covidjax.report.workdir import Run

NOT_EVALUATED = "not evaluated yet"
SPLIT_TITLES = {"test": "Test split", "val": "Validation split"}
HEADLINE = (("accuracy", "accuracy"), ("Balanced accuracy", "balanced_accuracy"), ("Macro AUROC", "macro_auroc"))
HEADLINE_OF_MASKS = (("Dice", "dice"), ("IoU", "iou"), ("Dice, pooled", "dice_pooled"))
CURVES = (("loss", "Loss"), ("dice", "Dice"), ("accuracy", "Accuracy"), ("learning_rate", "Learning rate"))


def write(workdir_path: Path, examples: Mapping[str, Examples]) -> Path:
    """Writes `report.html` from what the workdir holds; images only of the splits in `examples`.

    Raises UserError where the workdir has no config.json, holds a damaged record or cannot be written; an older
    report then stays as it is.
    """
    run = workdir.read(workdir_path)
    content = page.document(f"{_title(run)}, {_subject(run)[0]}", _body(run, examples))
    target = workdir_path / "report.html"
    files.write_text(target, content)
    return target


def _body(run: Run, examples: Mapping[str, Examples]) -> list[Html]:
    splits = list(dict.fromkeys((*SPLIT_TITLES, *run.evaluations)))
    sections = [(split, SPLIT_TITLES.get(split, f"Split {split}"), _results(run, split, examples)) for split in splits]
    sections += _training(run)
    sections += [
        ("data", "Data", _data(run)),
        ("configuration", "Configuration", _configuration(run)),
        ("versions", "Versions and timings", _versions(run)),
    ]
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in sections]
    return [
        element("h1", _title(run)),
        element("p", _subject(run)[1], class_="subtitle"),
        element("p", "Research use only \N{EN DASH} not for clinical decisions.", class_="warning"),
        ensemble.banner(run) or Html(),
        _headline(run),
        element("nav", *links),
        *(element("section", element("h2", title), *parts, id=anchor) for anchor, title, parts in sections),
    ]


def _training(run: Run) -> list[tuple[str, str, list[Html]]]:
    if ensemble.is_ensemble(run):
        return [("ensemble", "Ensemble", ensemble.section(run))]
    return [
        ("curves", "Learning curves", _curves(run)),
        ("freezing", "Freezing and cost", _freezing(run)),
        ("batch", "First batch", _batch(run)),
    ]


def _title(run: Run) -> str:
    model, dataset = (run.config.get(key, {}) for key in ("model", "dataset"))
    root = Path(dataset.get("root", "")).name if dataset.get("name") == "folder" else ""
    return f"{model.get('name', 'unnamed model')} on {root or dataset.get('name', 'unnamed data')}"


def _strategy(run: Run) -> str:
    return ", then ".join(workdir.strategies(run))


def _subject(run: Run) -> tuple[str, str]:
    """The end of the title, and the sentence below it."""
    if ensemble.is_ensemble(run):
        return "mixture", ensemble.subtitle(run)
    pretrained = run.config.get("pretrained") or "random weights"
    origin = f"Started from {pretrained}, seed {run.config.get('seed', page.MISSING)}, workdir {run.name}."
    return f"freeze: {_strategy(run)}", f"Freeze strategy: {_strategy(run)}. {origin}"


def _of_masks(run: Run) -> bool:
    """Whether the network answers with masks."""
    return run.config.get("model", {}).get("name", "") in SEGMENTATION


def _headline(run: Run) -> Html:
    split = next((split for split in SPLIT_TITLES if split in run.evaluations), None)
    evaluation: Mapping[str, Any] = run.evaluations.get(split or "", {})
    note = NOT_EVALUATED if split is None else f"{split} split"

    def cell(name: str, shown: str, below: str | None) -> Html:
        return element("div", element("dt", name), element("dd", shown, element("small", below or "")))

    def measured(name: str, key: str) -> Html:
        return cell(name, page.decimal(evaluation.get(key)), page.interval(evaluation.get(f"{key}_ci95")) or note)

    first, *others = HEADLINE_OF_MASKS if _of_masks(run) else HEADLINE
    own = ensemble.headline(run, evaluation) if ensemble.is_ensemble(run) else _costs(run)
    return element(
        "dl",
        measured(f"{(split or 'test').capitalize()} {first[0]}", first[1]),
        *(measured(*each) for each in others),
        *(cell(*each) for each in own),
        class_="headline",
    )


def _costs(run: Run) -> list[tuple[str, str, str | None]]:
    """Name, value and note of the figures of the headline that tell what the training took."""
    timings, rate = run.run.get("timings", {}), _images_per_second(run)
    apart = {"compilation": timings.get("compile_seconds"), "features": timings.get("feature_seconds") or None}
    beside = ", ".join(f"{name} {page.duration(value)}" for name, value in apart.items() if page.is_number(value))
    return [
        ("Training time", page.duration(timings.get("train_seconds")), beside or None),
        ("Images per second", page.MISSING if rate is None else page.rate(rate), run.run.get("device")),
        ("Trained / all parameters", *_parameters(run)),
    ]


def _images_per_second(run: Run) -> float | None:
    """The recorded rate, else the median over the epochs, which the first one with its warm-up does not move."""
    recorded = run.run.get("timings", {}).get("images_per_second")
    epochs = [rate for rate in workdir.values(run, "train", "images_per_second")[1] if page.is_number(rate)]
    return recorded if page.is_number(recorded) else statistics.median(epochs) if epochs else None


def _parameters(run: Run) -> tuple[str, str | None]:
    phases = [(_sum(phase, "trainable"), _sum(phase, "parameters")) for phase in run.run.get("freeze", [])]
    if not phases:
        return page.MISSING, None
    trained, total = phases[-1]
    note = f"in the last of {len(phases)} phases" if len(phases) > 1 else None
    if len(phases) == 2:
        note = f"phase 0: {page.short_count(phases[0][0])} trained"
    return f"{page.short_count(trained)} / {page.short_count(total)}", note


def _sum(phase: Mapping[str, Any], key: str) -> float:
    return sum(row[key] for row in phase.get("rows", []) if page.is_number(row.get(key)))


def _results(run: Run, split: str, examples: Mapping[str, Examples]) -> list[Html]:
    if split not in run.evaluations:
        return [element("p", f"{NOT_EVALUATED.capitalize()}: run launch/evaluate.py with --split={split}.")]
    if "per_image" in run.evaluations[split]:
        masks = run.folder / f"masks_{split}"
        return segmentation.split_section(run.evaluations[split], masks, examples.get(split))
    evaluation = run.evaluations[split]
    compared = ensemble.comparison(run, evaluation) if "members" in evaluation else []
    return [*compared, *split_section(evaluation, run.predictions.get(split), examples.get(split))]


def _curves(run: Run) -> list[Html]:
    if not run.metrics:
        return [element("p", "No epoch has finished yet.")]
    names = workdir.strategies(run)
    spans = [
        figures.PhaseSpan(phase, names[phase] if phase < len(names) else "", first, last)
        for phase, first, last in workdir.phase_spans(run)
    ]
    best = workdir.best_epoch(run)
    plots = []
    for key, title in CURVES:
        if key == "accuracy" and _of_masks(run):
            continue  # the background makes it near 1 for any network
        curves = [figures.Curve(split, *workdir.values(run, split, key)) for split in figures.COLORS]
        curves = [curve for curve in curves if curve.epochs]
        if curves:
            svg = figures.learning_curve(curves, spans, best_epoch=best, log_scale=key == "learning_rate")
            shown = page.image(svg, "image/svg+xml", f"{title} against epoch", "plot")
            plots.append(element("figure", element("figcaption", title), shown))
    kept = run.config.get("checkpoint", {}).get("best", "loss")
    notes = [f"Best epoch, by validation {kept}: {best}."] if best is not None else []
    gaps = sum(
        isinstance(value, float) and not page.is_number(value) for line in run.metrics for value in line.values()
    )
    notes += [f"Values that are not finite, left as gaps: {gaps}."] if gaps else []
    if run.unreadable_lines:
        notes.append(f"Lines of metrics.jsonl that could not be read, left out: {run.unreadable_lines}.")
    return [element("p", " ".join(notes), class_="muted"), element("div", *plots, class_="curves")]


def _freezing(run: Run) -> list[Html]:
    header = ("Stage", "Parameters", "Trained", "Optimizer state", "Forward, GFLOP", "Backward, GFLOP", "BatchNorm")
    built = []
    phases = run.run.get("freeze", [])
    for number, phase in enumerate(phases):
        strategy = phase.get("strategy", page.MISSING)

        def cells(stage: str, row: Mapping[str, Any], batch_norm: str) -> tuple[str, ...]:
            return (
                stage,
                page.integer(row.get("parameters")),
                page.integer(row.get("trainable")),
                page.byte_size(row.get("optimizer_bytes")),
                page.gigaflops(row.get("forward_flops")),
                page.gigaflops(row.get("backward_flops")),
                batch_norm,
            )

        rows = phase.get("rows", [])
        summed = ("parameters", "trainable", "optimizer_bytes", "forward_flops", "backward_flops")
        total = cells("all stages", {key: _sum(phase, key) for key in summed}, "")
        body = [cells(row.get("stage", ""), row, row.get("batch_norm", "-")) for row in rows]
        built += [
            element("h3", f"Phase {number}: {strategy if isinstance(strategy, str) else ', '.join(strategy)}"),
            element("div", page.table(header, body, "lrrrrrl", total), class_="wide even"),
            element("p", f"{phase['summary'].rstrip('.')}.") if phase.get("summary") else Html(),
            *_cached_features(phase, run.run.get("memory", {}).get(str(number))),
        ]
    if not built:
        return [element("p", "No freeze table was recorded yet.")]
    return [element("p", "FLOPs of one training step over the whole batch.", class_="muted"), *built]


def _cached_features(phase: Mapping[str, Any], memory: Mapping[str, int] | None) -> list[Html]:
    """What became of the features of the frozen prefix, and the memory of the phase's program."""
    note = phase.get("features", {}).get("note", "")
    found = [f"{note[0].upper()}{note[1:].rstrip('.')}."] if note else []
    if memory:
        found.append(f"The compiled step takes {page.byte_size(memory['temporary'])} of temporary memory.")
    return [element("p", " ".join(found))] if found else []


def _batch(run: Run) -> list[Html]:
    found = batch.read_batch(run.folder)
    if found is None:
        return [element("p", "No picture of it was kept.")]
    content, description = found
    return [element("p", description, class_="muted"), page.image(content, "image/jpeg", description, "batch")]


def _data(run: Run) -> list[Html]:
    data: Mapping[str, Mapping[str, Any]] = run.run.get("data", {})
    if not data:
        return [element("p", "Nothing was recorded about the data yet.")]
    header = ("Split", "Examples", "Patients", "Split by", "Placement", "Size", "Fingerprint")
    rows = []
    for name, split in data.items():
        known = bool(split.get("patients_known"))
        rows.append(
            (
                name,
                page.integer(split.get("num_examples")),
                page.integer(split.get("num_patients")) if known else "unknown",
                "patient" if known else "image (no patient ids)",
                split.get("placement", page.MISSING),
                page.byte_size(split.get("bytes")),
                element("code", split.get("fingerprint", "")[:12] or page.MISSING),
            )
        )
    classes = list(dict.fromkeys(name for split in data.values() for name in split.get("classes", {})))
    counts = [
        (name, *(page.integer(split.get("classes", {}).get(name, 0)) for split in data.values())) for name in classes
    ]
    reads = run.run.get("test_reads", [])
    times = f"{len(reads)} time{'s' if len(reads) > 1 else ''}: {', '.join(reads)}." if reads else "never."
    placements = [split["note"] for split in data.values() if split.get("note")]
    notes = dict.fromkeys([*placements, *run.run.get("notes", [])])
    return [
        element("div", page.table(header, rows, "lrrllrl"), class_="wide"),
        page.table((f"{'Pixels' if _of_masks(run) else 'Examples'} of class", *data), counts, "l" + "r" * len(data)),
        element("p", f"The test split was read {times}"),
        element("ul", *(element("li", note) for note in notes)) if notes else Html(),
    ]


def _configuration(run: Run) -> list[Html]:
    rows = [
        (element("code", key), element("code", json.dumps(value, ensure_ascii=False)))
        for key, value in _flat(run.config)
    ]
    listing = page.table(("Key", "Value"), rows, "ll")
    return [element("details", element("summary", f"All {len(rows)} keys, as in config.json"), listing)]


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in configuration.flatten(config):
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            for index, part in enumerate(value):
                yield from configuration.flatten(part, f"{key}[{index}].")
        else:
            yield key, value


def _versions(run: Run) -> list[Html]:
    machine = [
        (key.replace("_", " "), str(run.run[key]))
        for key in ("device", "platform", "num_devices", "git_revision")
        if key in run.run
    ]
    for key, value in run.run.get("timings", {}).items():
        if key.endswith("_seconds"):
            machine.append((key.removesuffix("_seconds").replace("_", " "), page.duration(value)))
        else:
            machine.append((key.replace("_", " "), page.rate(value)))
    versions = [(name, str(version)) for name, version in sorted(run.run.get("versions", {}).items())]
    tables = [
        page.table(header, rows, "ll")
        for header, rows in ((("Package", "Version"), versions), (("Run", ""), machine))
        if rows
    ]
    return [element("div", *tables, class_="row near")] if tables else [element("p", "Nothing was recorded yet.")]
