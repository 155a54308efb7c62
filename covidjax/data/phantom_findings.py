"""Synthetic chest X-rays with several findings each, of which labels are partly unknown.

Any of a lesion, an effusion with its meniscus, an enlarged heart and a device line may be there. Like those of
`covidjax.data.phantom`, these are cartoons: nothing learnt from them says anything about patients.
"""

import hashlib

import numpy as np
from ml_collections import ConfigDict

from covidjax.data.examples import SPLITS, Examples
from covidjax.data.findings import ABSENT, PRESENT, UNKNOWN
from covidjax.data.phantom import CLASSES, Thorax, coordinates, drawn_lesions, edge, exposed
from covidjax.data.picture import equalised

FINDINGS = ("lesion", "effusion", "enlarged heart", "device line")
LIKELY = 0.4  # that a patient has a finding, each for itself
UNKNOWN_SHARE = 0.3  # of the labels
IMAGES_A_PATIENT = 2

_VERSION = "phantom findings 1"  # part of the fingerprint: raise it with any change that alters a pixel or a label
_PLAN, _ANATOMY, _SIGNS, _VIEW = range(10, 14)  # independent random streams, others than those of the classes


def phantom_findings(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The image `index` of a split, [size, size] uint8, and its findings, [findings] bool, in the order of `FINDINGS`.

    The images of a patient have the same anatomy and findings; pose, exposure and noise differ.
    """
    number, first = SPLITS.index(split), index - index % IMAGES_A_PATIENT
    findings = np.random.default_rng([seed, number, _PLAN, first]).random(len(FINDINGS)) < LIKELY
    lesion, effusion, heart, line = findings.tolist()
    view = np.random.default_rng([seed, number, _VIEW, index])
    x, y = coordinates(view, size)
    thorax = Thorax(np.random.default_rng([seed, number, _ANATOMY, first]), x, y, 1.35 if heart else 1.0)
    signs = np.random.default_rng([seed, number, _SIGNS, first])
    lesions, fluid, wire = (
        drawn_lesions(signs, CLASSES.index("pneumonia"), thorax, x, y)[0],
        _effusion(signs, thorax, x, y),
        _device_line(signs, x, y),
    )
    return exposed(view, thorax.attenuation + lesion * lesions + effusion * fluid + line * wire), findings


def load(dataset: ConfigDict, split: str) -> Examples:
    """One split, drawn; a label is unknown with probability `UNKNOWN_SHARE`, whatever it is.

    Reads the same keys of `dataset` as `covidjax.data.phantom.load`.
    """
    count = dataset.num_images if split == "train" else max(1, dataset.num_images // 4)
    drawn = [phantom_findings(dataset.seed, split, index, dataset.image_size) for index in range(count)]
    enhance = equalised if dataset.enhancement == "clahe" else np.asarray
    images = np.repeat(np.stack([enhance(image) for image, _ in drawn])[..., None], dataset.channels, axis=-1)
    hidden = np.stack(
        [
            np.random.default_rng([dataset.seed, SPLITS.index(split), _PLAN, index, 1]).random(len(FINDINGS))
            < UNKNOWN_SHARE
            for index in range(count)
        ]
    )
    findings = np.where(hidden, UNKNOWN, np.where([own for _, own in drawn], PRESENT, ABSENT)).astype(np.int8)
    arguments = (_VERSION, dataset.seed, split, count, dataset.image_size, dataset.channels)
    return Examples(
        split=split,
        images=images,
        labels=np.zeros(count, np.int32),
        names=tuple(f"{split}/{index:06d}" for index in range(count)),
        patients=tuple(f"{split}-{index - index % IMAGES_A_PATIENT:06d}" for index in range(count)),
        patients_known=True,
        classes=FINDINGS,
        fingerprint=hashlib.sha256(repr(arguments).encode() + images.tobytes()).hexdigest(),
        notes=("Synthetic images (phantom): nothing learnt from them says anything about patients.",),
        findings=findings,
    )


def _effusion(random: np.random.Generator, thorax: Thorax, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Added attenuation of fluid above the diaphragm of one side, whose surface climbs towards the ribs."""
    side = int(random.integers(2))
    height = random.uniform(0.2, 0.4)
    outward = np.clip(((2 * side - 1) * x - 0.13) / 0.6, 0.0, 1.0)
    surface = thorax.domes[side] + 0.02 - height * (0.35 + 0.65 * outward**2)
    return random.uniform(0.36, 0.46) * edge(y - surface, 0.1) * thorax.depth * ((2 * side - 1) * x > 0)


def _device_line(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Added attenuation of a catheter from the neck to the right atrium."""
    start, tip = random.uniform(-0.34, -0.2), random.uniform(-0.06, 0.14)
    course = start + (random.uniform(-0.09, -0.05) - start) * edge(y + 0.62, 0.5)
    return random.uniform(0.22, 0.32) * edge(0.022 - np.abs(x - course), 0.03) * edge(tip - y, 0.04)
