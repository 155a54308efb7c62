"""Whether labels can be told from what is not anatomy: a small classifier a cue, and a permutation test."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covidjax.console import Progress
from covidjax.data.audit.findings import NOTE, SERIOUS, WARNING, Finding
from covidjax.data.audit.reading import SIDE, Image64, Images
from covidjax.data.splits import NUM_FOLDS, draw_folds
from covidjax.errors import UserError

PERMUTATIONS = 999
ALPHA = 0.05  # of all cues together (Holm 1979)
TELLS, DETERMINES = 0.65, 0.9  # AUROC of a class against the rest from which a cue is a warning, and serious
FRAME = 3  # pixels of 64 at each side: the borders
BOX = 0.8  # of both sides: what is blacked out where no mask tells where the lungs are
POOLED = 2  # pixels a side that become one in cues made of pixels
BINS = 10


@dataclasses.dataclass(frozen=True)
class Cue:
    """What an image has beside its anatomy. values: [n, features]; gravest: the seriousness that it can have."""

    name: str
    values: np.ndarray
    gravest: str = SERIOUS


def find(data: Images, permutations: int = PERMUTATIONS) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Findings, and what was measured of every cue, found or not.

    Of the images of train and val: on the test split nothing is scored, not even these.
    """
    images = [image for image in data.good if image.split != "test"]
    labels = np.array([data.classes.index(image.label) for image in images], int) if data.classes else np.zeros(0, int)
    patients = [image.patient for image in images]
    if len(set(labels.tolist())) < 2:
        return [], []
    try:
        folds = np.array(draw_folds(labels.tolist(), patients, NUM_FOLDS))
    except UserError as error:
        return [Finding("unknown", NOTE, f"shortcuts were not looked for: {error}")], []
    cues, drawn = cues_of(images), _permuted(labels, patients, permutations)
    progress, rows = Progress("shortcuts: classifiers of cues", len(cues), patience=5), []
    for number, cue in enumerate(cues):
        rows.append(_measured(cue, drawn, folds, data.classes))
        progress.show(number + 1)
    _correct([row for row in rows if "p" in row])
    return [found for row, cue in zip(rows, cues, strict=True) if (found := _finding(row, cue, images))], rows


def cues_of(images: Sequence[Image64]) -> list[Cue]:
    """Everything that is looked at, also what is the same in all images."""
    sides = [np.array([image.width for image in images]), np.array([image.height for image in images])]
    cues = [
        Cue("file format", _coded([image.format for image in images])),
        Cue("size", np.hstack([_binned(side) for side in sides])),
        Cue("aspect ratio", _binned(sides[0] / sides[1])),
        Cue("bit depth", _coded([f"{image.bits} {image.channels}" for image in images])),
        Cue("JPEG quality", _binned(np.array([image.quality for image in images]))),
        *(
            Cue(fact, _coded([image.facts.get(fact, "") for image in images]))
            for fact in ("source", "view", "spacing")
            if any(image.facts.get(fact) for image in images)
        ),
    ]
    if any(image.patient != image.name for image in images):
        cues.append(Cue("collection", _coded([collection(image.patient) for image in images]), WARNING))
    grays = np.stack([image.gray for image in images])
    border = np.ones((SIDE, SIDE), bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    cues.append(Cue("borders", grays[:, border]))
    masked = all(image.lungs is not None for image in images)
    outside = np.stack([_outside(image) for image in images])
    name, gravest = ("lungs blacked out", SERIOUS) if masked else ("centre blacked out", WARNING)
    return [*cues, Cue(name, _pooled(np.where(outside, grays, 0)), gravest)]


def collection(patient: str) -> str:
    """The letters before the first digit of a patient's identifier, by which collections are told apart."""
    return re.match(r"\D*", patient)[0]  # type: ignore[index]  # it matches every text


def _outside(image: Image64) -> np.ndarray:
    if image.lungs is not None:
        return ~image.lungs
    outside, edge = np.ones((SIDE, SIDE), bool), round(SIDE * (1 - BOX) / 2)
    outside[edge:-edge, edge:-edge] = False
    return outside


def _pooled(grays: np.ndarray) -> np.ndarray:
    side = SIDE // POOLED
    return grays.reshape(len(grays), side, POOLED, side, POOLED).mean((2, 4)).reshape(len(grays), -1)


def _coded(texts: Sequence[str]) -> np.ndarray:
    """A column for each text, the rare ones together: [n, texts]."""
    known, codes, counts = np.unique(list(texts), return_inverse=True, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:BINS]
    return np.stack([codes == code for code in common], axis=1).astype(float)[:, : len(known)]


def _binned(values: np.ndarray) -> np.ndarray:
    """A column for each tenth of the values, and for each value that bounds one: [n, bins]."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1), method="nearest"))
    return _coded(
        [str(a + b) for a, b in zip(*(np.searchsorted(edges, values, side) for side in ("left", "right")), strict=True)]
    )


def _permuted(labels: np.ndarray, patients: Sequence[str], permutations: int) -> np.ndarray:
    """Labels as they are, then with the patients' places changed: [1 + permutations, n]."""
    members = [np.flatnonzero(np.asarray(patients) == patient) for patient in dict.fromkeys(patients)]
    places, random = np.concatenate(members), np.random.default_rng(0)
    drawn = np.tile(labels, (permutations + 1, 1))
    for row in drawn[1:]:
        order = random.permutation(len(members))
        row[places] = labels[np.concatenate([members[number] for number in order])]
    return drawn


def _measured(cue: Cue, drawn: np.ndarray, folds: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The figures of a cue: accuracy beside the majority rate, AUROC of the class it tells best, p by permutation."""
    labels, number = drawn[0], len(classes)
    majority = float(np.bincount(labels).max() / len(labels))
    row: dict[str, Any] = {"cue": cue.name, "num_images": len(labels), "majority_rate": round(majority, 4)}
    if (cue.values == cue.values[0]).all():
        return {**row, "same_in_all": True}
    wanted = drawn[..., None] == np.arange(number)  # [draws, n, classes]
    columns = wanted.transpose(1, 0, 2).reshape(len(labels), -1).astype(np.float32)
    scores = np.zeros_like(columns)
    values = cue.values.astype(np.float32)
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        model = make_pipeline(StandardScaler(), Ridge(alpha=float(values.shape[1])))
        scores[held] = model.fit(values[rest], columns[rest]).predict(values[held]).reshape(held.sum(), -1)
    ranks = stats.rankdata(np.round(scores, 6), axis=0).reshape(len(labels), -1, number)
    positive = wanted.transpose(1, 0, 2)
    counts = positive.sum(axis=0)
    sums = (ranks * positive).sum(axis=0) - counts * (counts + 1) / 2
    areas = np.where(counts > 0, sums / np.maximum(counts * (len(labels) - counts), 1), 0.5)  # Mann and Whitney's
    best = areas.max(axis=1)
    accuracy = (scores.reshape(len(labels), -1, number)[:, 0].argmax(axis=1) == labels).mean()
    return {
        **row,
        "accuracy": round(float(accuracy), 4),
        "class": classes[int(areas[0].argmax())],
        "auroc": round(float(best[0]), 4),
        "p": float((best >= best[0]).mean()),
    }


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Writes p_holm beside each p (Holm 1979)."""
    highest = 0.0
    for rank, row in enumerate(sorted(rows, key=lambda row: row["p"])):
        highest = max(highest, min(1.0, row["p"] * (len(rows) - rank)))
        row["p_holm"] = round(highest, 4)


def _finding(row: Mapping[str, Any], cue: Cue, images: Sequence[Image64]) -> Finding | None:
    if row.get("p_holm", 1.0) > ALPHA or row["auroc"] < TELLS:
        return None
    seriousness = SERIOUS if row["auroc"] >= DETERMINES and cue.gravest == SERIOUS else WARNING
    text = (
        f"{cue.name} tells {row['class']} from the rest with an AUROC of {row['auroc']:.3f}; all classes by it alone: "
        f"accuracy {row['accuracy']:.3f}, majority rate {row['majority_rate']:.3f}, p {row['p_holm']:.2g}"
    )
    examples = {
        "size": lambda one: f"{one.width} x {one.height}",
        "aspect ratio": lambda one: f"{one.width / one.height:.2f}",
    }
    if cue.name in examples:
        text += f" ({_spread(images, row['class'], examples[cue.name])})"
    if cue.name == "collection":
        text += " (collections by the letters of patients' identifiers, which classes may have named)"
    if cue.name == "centre blacked out":
        text += f" (the inner {BOX:.0%} of both sides is black: parts of the body are still seen)"
    return Finding("shortcut", seriousness, text, dict(row))


def _spread(images: Sequence[Image64], label: str, told: Any) -> str:
    """The commonest value of the class and of the rest, with its share."""
    parts = []
    for name, own in (
        (label, [one for one in images if one.label == label]),
        ("the rest", [one for one in images if one.label != label]),
    ):
        values, counts = np.unique([told(one) for one in own], return_counts=True)
        parts.append(f"{name}: {values[counts.argmax()]} in {counts.max() / len(own):.0%}")
    return ", ".join(parts)
