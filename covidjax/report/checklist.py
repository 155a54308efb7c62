"""The items of CLAIM 2024 and TRIPOD+AI, filled as far as a run can, with blanks for its author.

Tejani et al. 2024 (doi 10.1148/ryai.240300) and Collins et al. 2024 (doi 10.1136/bmj-2023-078378); the words are ours.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidjax.report import formats, page, workdir
from covidjax.report.workdir import Run
from covidjax.tasks.base import Task

ITEMS = Path(__file__).with_name("checklist.csv")
NAME = "checklist.html"


def page_of(run: Run, task: Task) -> str:
    """The page, as HTML."""
    answers = answers_of(run, task)
    with ITEMS.open(newline="", encoding="utf-8") as file:
        items = [{**row, "answer": answers.get(row["filled_by"], "")} for row in csv.DictReader(file)]
    guidelines = list(dict.fromkeys(item["guideline"] for item in items))
    return page.render(
        "checklist.html",
        title=f"Checklists: {page.title(run.config)}",
        run=run,
        sections={f"list{number}": name for number, name in enumerate(guidelines)},
        lists={name: _by_section([item for item in items if item["guideline"] == name]) for name in guidelines},
    )


def _by_section(items: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for item in items:
        found.setdefault(item["section"], []).append(item)
    return found


def answers_of(run: Run, task: Task) -> dict[str, str]:
    """What the records of a run answer, by the names in `filled_by`; '' of what it does not tell."""
    config = {"dataset": {}, "model": {}, "optimizer": {}, "loss": {}, "checkpoint": {}, **run.config}
    shown = run.evaluations.get("test") or run.evaluations.get("val") or {}
    return {
        **_of_data(run, config),
        **_of_training(run, config),
        **_of_evaluation(run, task, shown),
    }


def _of_data(run: Run, config: Mapping[str, Any]) -> dict[str, str]:
    dataset, data = config["dataset"], run.run.get("data", {})
    counts = [_counted(name, split) for name, split in data.items()]
    notes = [note for note in run.run.get("notes", []) if "dropped" in note or "ignored" in note]
    square = {"center": "cut to a square", "pad": "filled up to a square", "squash": "squashed to a square"}
    steps = [square.get(dataset.get("crop", ""), ""), f"{dataset.get('image_size')} pixels a side"]
    steps += [f"{dataset.get('channels')} channel(s)", dataset.get("window", "") and f"window {dataset['window']}"]
    steps += ["CLAHE"] if dataset.get("enhancement") == "clahe" else []
    units = {
        name: "patient" if split.get("patients_known") else "image (no patient identifiers)"
        for name, split in data.items()
    }
    loss, oversample = config["loss"], dataset.get("oversample")
    weights = f"class weights {loss.get('class_weights', 'none')}"
    return {
        "source": f"{dataset.get('name')}: {Path(dataset.get('root') or '').name or 'generated'}" if dataset else "",
        "excluded": "; ".join(notes),
        "preprocessing": ", ".join(filter(None, steps)) if dataset else "",
        "subset": f"{dataset['subset']} training images were drawn, patient by patient"
        if dataset.get("subset")
        else "none was made here",
        "classes": "labels: " + ", ".join(data.get("train", {}).get("classes", {})) if data else "",
        "partitions": _partitions(dataset) if dataset else "",
        "disjoint": ", ".join(f"{name} by {unit}" for name, unit in units.items()),
        "numbers": "; ".join(counts),
        "imbalance": f"{weights}, {'oversampling ' + str(oversample) if oversample else 'no oversampling'}"
        if loss
        else "",
        "audit": run.run.get("audit", {}).get("note", ""),
    }


def _counted(name: str, split: Mapping[str, Any]) -> str:
    patients = f" of {split['num_patients']} patients" if split.get("patients_known") else ""
    classes = ", ".join(f"{label} {count}" for label, count in split.get("classes", {}).items())
    return f"{name}: {split.get('num_examples')} images{patients} ({classes})"


def _partitions(dataset: Mapping[str, Any]) -> str:
    if dataset.get("fold", -1) != -1:
        return f"cross-validation, fold {dataset['fold']} as test; an eighth of the rest as validation"
    return f"as the data set has it or, where it has none, drawn with dataset.split_seed {dataset.get('split_seed', 0)}"


def _of_training(run: Run, config: Mapping[str, Any]) -> dict[str, str]:
    dataset, model, optimizer = config["dataset"], config["model"], config["optimizer"]
    parameters, trained = (workdir.most(run, key) for key in ("parameters", "trainable"))
    versions = ", ".join(f"{name} {value}" for name, value in run.run.get("versions", {}).items())
    augment = config.get("augment", {})
    drawn = [f"{key} {value}" for key, value in augment.items() if value and not key.endswith("probability")]
    takes = f"takes {dataset.get('image_size')} pixels a side, {dataset.get('channels')} channel(s)"
    rule = f"{optimizer.get('name')}, learning rate {optimizer.get('learning_rate')}, {optimizer.get('schedule')}"
    plans = (
        f"trained: {formats.short_count(trained)} parameters ({', then '.join(workdir.strategies(run))})"
        if trained
        else ""
    )
    sizes = f", {formats.short_count(parameters)} parameters" if parameters is not None else ""
    kept, which = config["checkpoint"].get("best", "loss"), config["checkpoint"].get("evaluate", "best")
    chosen = "the last checkpoint" if which == "last" else f"the checkpoint with the best validation {kept}"
    epoch = workdir.best_epoch(run)
    members = run.run.get("ensemble", {}).get("members", ())
    return {
        "model": f"{model.get('name')}{sizes}; {takes}; all settings are in config.json",
        "software": versions,
        "initialisation": f"{config.get('pretrained') or 'random'}, seed {config.get('seed')}; {plans}",
        "training": f"{rule}; batches of {config.get('batch_size')}, {config.get('epochs')} epochs; "
        f"loss {config['loss'].get('name')}; augmentation: {', '.join(drawn) or 'none'}; "
        "one network (others that were tried are for the author to tell)",
        "selection": chosen + (f" (epoch {epoch})" if epoch is not None and which != "last" else ""),
        "ensemble": f"mixture of {len(members)} networks" if members else "none",
        "revision": f"covidjax at revision {run.run['git_revision']}" if run.run.get("git_revision") else "",
    }


def _of_evaluation(run: Run, task: Task, shown: Mapping[str, Any]) -> dict[str, str]:
    figures = {key: title for key, title in task.comparison.titles.items() if key != "loss"}
    evaluated = [name for name in run.evaluations if name in ("test", "val")]
    reads = len(run.run.get("test_reads", []))
    others = [name for name in run.evaluations if name not in ("train", "val", "test")]
    calibrated = shown.get("calibrated", {})
    ece = f"calibration error (ECE) {shown['ece']:.3f}" if formats.is_number(shown.get("ece")) else ""
    if calibrated:
        ece += f", {calibrated['ece']:.3f} with the temperature {calibrated['temperature']:.3f} chosen on validation"
    groups = [f"{column}: {len(rows)} groups" for column, rows in shown.get("subgroups", {}).items()]
    split, failures, output = shown.get("split"), "", ""
    if "confusion_matrix" in shown:
        wrong = shown["num_examples"] - sum(row[number] for number, row in enumerate(shown["confusion_matrix"]))
        failures = f"{wrong} of {shown['num_examples']} wrong on {split}; the report shows the most confident ones"
    points = [
        f"{name} at {point.replace('_', ' ')}: "
        + ", ".join(f"{share} {_estimate(found, share)}" for share in ("sensitivity", "specificity"))
        for name, chosen in shown.get("operating_points", {}).items()
        for point, found in (chosen or {}).items()
    ]
    if shown:
        output = f"one of {', '.join(shown['classes'])}"
        output += "; thresholds: validation sensitivity 0.95, and the greatest Youden index" if points else ""
    explained = any((run.folder / f"explanations_{split}.json").exists() for split in run.evaluations)
    return {
        "metrics": ", ".join(figures.values()) if shown else "",
        "uncertainty": "; ".join(f"{what}: {how}" for what, how in shown.get("intervals", {}).items()),
        "subgroups": "; ".join(groups),
        "explanation": "Grad-CAM in the report" if explained else "",
        "internal": f"{', '.join(evaluated)}; readings of the test split: {reads}" if evaluated else "",
        "external": "; ".join(f"{name}: {_performance(run.evaluations[name], figures)}" for name in others),
        "performance": f"{split}: {_performance(shown, figures)}" if shown else "",
        "operating_points": "; ".join(points),
        "failures": failures,
        "calibration": ece,
        "output": output,
    }


def _performance(evaluation: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    told = [f"{title} {_estimate(evaluation, key)}" for key, title in figures.items() if key in evaluation]
    return f"{evaluation['num_examples']} images, {', '.join(told)}"


def _estimate(row: Mapping[str, Any], key: str) -> str:
    return f"{formats.decimal(row.get(key))} {formats.interval(row.get(f'{key}_ci95'))}".rstrip()
