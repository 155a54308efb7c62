"""The page on a split with findings: the variables of templates/multilabel.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.data.examples import Examples
from covidjax.metrics.multilabel import Predictions, read_predictions
from covidjax.tasks import pictures
from covidjax.tasks.classification_page import recorded_maps

MOST = 6  # images of a kind


def multilabel_page(evaluation: Mapping[str, Any], workdir: Path, examples: Examples | None) -> dict[str, Any]:
    """{'problem': what is wrong with the table of predictions, 'samples', 'points', 'explained'}.

    samples: images by the choice they belong to, None where there are none; points: a row for each operating point.
    Raises UserError where predictions_<split>.csv is damaged.
    """
    points = [
        {"class": name, "point": point, **figures}
        for name, own in evaluation.get("operating_points", {}).items()
        for point, figures in (own or {}).items()
    ]
    path, page = workdir / f"predictions_{evaluation['split']}.csv", {"samples": None, "points": points}
    if not path.is_file():
        return {**page, "problem": "There is no table of predictions, hence no images", "explained": False}
    found, problem = read_predictions(path), ""
    if len(found.names) != evaluation.get("num_examples"):
        problem = f"The table of predictions holds {len(found.names)} examples and is from another evaluation: "
        problem += "run launch/evaluate.py again"
    maps = recorded_maps(workdir, evaluation)
    samples = None if examples is None else _samples(found, examples, maps)
    return {**page, "problem": problem, "samples": samples, "explained": bool(maps)}


def shown(found: Predictions, examples: Examples) -> list[tuple[str, list[tuple[int, int]]]]:
    """Title, and rows of a table with the finding that each is shown for; no image is there twice.

    Of each finding in turn the image where it is absent and likeliest, then where it is present and unlikeliest, then
    where it is present and likeliest.
    """
    known, taken, groups = frozenset(examples.names), set[int](), []
    for title, label, sign in (
        ("Absent findings that are taken for present, the most confident of each", 0, -1),
        ("Present findings that are missed, the most confident of each", 1, 1),
        ("Present findings that are found, the most confident of each", 1, -1),
    ):
        chosen: list[tuple[int, int]] = []
        for f in range(len(found.classes)):
            scores = found.probabilities[:, f]
            called = (scores > 0.5) == (sign < 0)
            able = [
                row
                for row in np.flatnonzero((found.findings[:, f] == label) & called)
                if row not in taken and found.names[row] in known
            ]
            if able and len(chosen) < MOST:
                row = int(min(able, key=lambda row: sign * scores[row]))
                chosen.append((row, f))
                taken.add(row)
        groups.append((title, chosen))
    return groups


def _samples(found: Predictions, examples: Examples, maps: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The images that are shown, with the maps that there are of them."""
    position = {name: index for index, name in enumerate(examples.names)}

    def sample(row: int, f: int) -> dict[str, Any]:
        name = found.names[row]
        image = pictures.beside_heat(examples.images[position[name]], maps.get(name))
        return {
            "name": name,
            "image": image,
            "finding": found.classes[f],
            "present": bool(found.findings[row, f] == 1),
            "probability": float(found.probabilities[row, f]),
        }

    return [(title, [sample(*one) for one in chosen]) for title, chosen in shown(found, examples)]
