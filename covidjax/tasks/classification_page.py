"""The page on a split whose images were labelled: the variables of templates/classification.html."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidjax import files
from covidjax.data.examples import Examples
from covidjax.metrics.curves import Curve, curves
from covidjax.metrics.prediction_table import Predictions, read_predictions
from covidjax.tasks import pictures

MAX_WRONG, MAX_RIGHT = 12, 6
MAX_CURVES = 7  # as many as there are colours to tell them apart


def classification_page(evaluation: Mapping[str, Any], workdir: Path, examples: Examples | None) -> dict[str, Any]:
    """{'problem': what is wrong with the table of predictions, 'reliability', 'curves', 'samples'}, None where none is.

    reliability: probabilities of the predicted classes, [n] float, and whether they were right, [n] bool; curves: of
    `metrics.curves.curves` by class, of the `MAX_CURVES` classes with the most examples.
    Raises UserError where predictions_<split>.csv is damaged.
    """
    path = workdir / f"predictions_{evaluation['split']}.csv"
    if not path.is_file():
        problem = "There is no table of predictions, hence no reliability diagram"
        return {"problem": problem, "reliability": None, "curves": {}, "samples": None, "explained": False}
    found = read_predictions(path)
    maps = recorded_maps(workdir, evaluation)
    count, problem = len(found.names), ""
    if count != evaluation.get("num_examples"):
        problem = f"The table of predictions holds {count} examples and is from another evaluation: "
        problem += "run launch/evaluate.py again"
    return {
        "problem": problem,
        "reliability": (found.probabilities.max(axis=-1), found.predicted == found.labels) if count else None,
        "curves": _curves(found),
        "samples": None if examples is None else _samples(found, examples, maps),
        "explained": bool(maps),
    }


def _curves(found: Predictions) -> dict[str, tuple[Curve, Curve]]:
    supports = np.bincount(found.labels, minlength=len(found.classes))
    chosen = sorted(np.argsort(-supports, kind="stable")[:MAX_CURVES].tolist())
    both = {found.classes[index]: curves(found, index) for index in chosen}
    return {name: pair for name, pair in both.items() if pair is not None}


def shown(found: Predictions, examples: Examples) -> list[tuple[str, list[int], int]]:
    """Rows of a table by confidence, wrong ones, and right ones of each class in turn: title, the first, how many."""
    known = frozenset(examples.names)
    turns: Counter[int] = Counter()
    wrong, right = [], []
    for index in map(int, np.argsort(-found.probabilities.max(axis=-1), kind="stable")):
        label, predicted, name = found.labels[index], found.predicted[index], found.names[index]
        if name not in known:
            continue
        if predicted != label:
            wrong.append(index)
        else:
            right.append((turns[label], label, index))
            turns[label] += 1
    return [
        (title, chosen[:most], len(chosen))
        for title, chosen, most in (
            ("Wrong predictions, the most confident first", wrong, MAX_WRONG),
            ("Right predictions, each class in turn", [index for *_, index in sorted(right)], MAX_RIGHT),
        )
    ]


def maps_path(workdir: Path, split: str) -> Path:
    """Where an evaluation leaves Grad-CAM of the images that its page shows, by their names, and its checkpoint."""
    return workdir / f"explanations_{split}.json"


def recorded_maps(workdir: Path, evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The maps of `maps_path`, by the names of the images; none where they are of another checkpoint."""
    path = maps_path(workdir, evaluation["split"])
    recorded = files.read_json(path) if path.is_file() else {}
    found: Mapping[str, Any] = (
        recorded["maps"] if recorded.get("checkpoint") == evaluation.get("checkpoint", {}) else {}
    )
    return found


def _samples(
    found: Predictions, examples: Examples, maps: Mapping[str, Any]
) -> list[tuple[str, list[dict[str, Any]], int]]:
    """The images that are shown, with the maps that there are of them."""
    position = {name: index for index, name in enumerate(examples.names)}

    def sample(index: int) -> dict[str, Any]:
        name, predicted = found.names[index], found.predicted[index]
        return {
            "name": name,
            "image": pictures.beside_heat(examples.images[position[name]], maps.get(name)),
            "true": found.classes[found.labels[index]],
            "predicted": found.classes[predicted],
            "probability": float(found.probabilities[index, predicted]),
        }

    return [(title, [sample(index) for index in chosen], total) for title, chosen, total in shown(found, examples)]
