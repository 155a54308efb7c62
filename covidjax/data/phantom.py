"""Synthetic chest X-rays: a test bed without patients.

A cartoon of a frontal radiograph, drawn from a seed: body, lungs, heart, ribs, spine, clavicles, diaphragm, and lesions
for two of the three classes. It exists so that training, freezing and reporting can be tried and tested anywhere,
without a download. Nothing learnt from it says anything about patients, about COVID-19 or about real radiographs.

Everything is a pure function of (seed, split, index, size). An image never depends on how many are asked for. Another
kind of processor may round a rare pixel to the next grey level, which changes the fingerprint but no label or patient.
"""

import dataclasses
import hashlib
import math

import ml_collections
import numpy as np

from covidjax.data.examples import SPLITS, Examples
from covidjax.data.picture import equalised

CLASSES = ("covid19", "normal", "pneumonia")
MASK_CLASSES = ("background", "lung", "lesion")

_COVID19, _NORMAL, _PNEUMONIA = range(3)
_VERSION = "phantom 1"  # part of the fingerprint: raise it with any change that alters a pixel
_BLOCK = 20  # images among which patients are dealt out; a multiple of five
_PLAN, _ANATOMY, _LESIONS, _VIEW = range(4)  # independent random streams
_SIDES = (-1.0, 1.0)  # the patient's right lung is on the left of the image

_Array = np.ndarray
_Random = np.random.Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic radiograph with its ground truth.

    image: [size, size] uint8, bright is dense
    lungs: [size, size] uint8, 1 inside the lung fields (heart and mediastinum excluded, lesions included)
    lesions: [size, size] uint8, 1 inside a lesion, always a subset of `lungs`, empty for the class 'normal'
    label: index into `CLASSES`
    patient: identifier, unique over all splits of one seed
    """

    image: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    label: int
    patient: str


def phantom(seed: int, split: str, index: int, size: int) -> Phantom:
    """The image `index` of a split, `size` pixels square.

    A patient has 1 to 4 images, all with the same anatomy, class and lesions; pose, severity, exposure and noise differ
    from image to image. Another `size` draws the same scene at another resolution.
    size: 16 and more.
    """
    split_number = SPLITS.index(split)
    label, first = _patient(seed, split_number, index)

    view = np.random.default_rng([seed, split_number, _VIEW, index])
    x, y = coordinates(view, size)
    severity = view.uniform(0.8, 1.15)
    thorax = Thorax(np.random.default_rng([seed, split_number, _ANATOMY, first]), x, y)
    lesion_random = np.random.default_rng([seed, split_number, _LESIONS, first])
    opacity, lesions = drawn_lesions(lesion_random, label, thorax, x, y)
    image = exposed(view, thorax.attenuation + severity * opacity)
    return Phantom(image, thorax.lungs.astype(np.uint8), lesions.astype(np.uint8), label, f"{split}-{first:06d}")


def load(dataset: ml_collections.ConfigDict, split: str) -> Examples:
    """One split, drawn.

    dataset: reads `seed`, `image_size`, `channels` (1, or 3 equal ones), `enhancement` and `num_images`, the size of
        the split 'train'; 'val' and 'test' have a quarter of it each
    Masks hold ids of `MASK_CLASSES`.
    """
    count = dataset.num_images if split == "train" else max(1, dataset.num_images // 4)
    drawn = [phantom(dataset.seed, split, index, dataset.image_size) for index in range(count)]
    enhance = equalised if dataset.enhancement == "clahe" else np.asarray
    images = np.repeat(np.stack([enhance(one.image) for one in drawn])[..., None], dataset.channels, axis=-1)
    arguments = (_VERSION, dataset.seed, split, count, dataset.image_size, dataset.channels)
    return Examples(
        split=split,
        images=images,
        labels=np.array([one.label for one in drawn], np.int32),
        names=tuple(f"{split}/{index:06d}" for index in range(count)),
        patients=tuple(one.patient for one in drawn),
        patients_known=True,
        classes=CLASSES,
        fingerprint=hashlib.sha256(repr(arguments).encode() + images.tobytes()).hexdigest(),
        notes=("Synthetic images (phantom): nothing learnt from them says anything about patients.",),
        masks=np.stack([one.lungs + one.lesions for one in drawn]),
    )


def training_counts(dataset: ml_collections.ConfigDict) -> dict[str, int]:
    """The training images of each class, without drawing one."""
    labels = [_patient(dataset.seed, SPLITS.index("train"), index)[0] for index in range(dataset.num_images)]
    return dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True))


def _patient(seed: int, split_number: int, index: int) -> tuple[int, int]:
    """The label of an image and the index of its patient's first image.

    Every five images hold two normal, two pneumonia and one covid19, and the first three of them one of each class, so
    that the balance holds for any number of images. Patients live within a block of `_BLOCK` images.
    """
    block, place = divmod(index, _BLOCK)
    random = np.random.default_rng([seed, split_number, _PLAN, block])
    fives = [(random.permutation(3), random.permutation([_NORMAL, _PNEUMONIA])) for _ in range(_BLOCK // 5)]
    labels = np.concatenate([part for five in fives for part in five])
    label = int(labels[place])
    places = np.flatnonzero(labels == label)
    images_per_patient = random.integers(1, 5, (len(CLASSES), _BLOCK))[label]
    starts = np.concatenate([[0], np.cumsum(images_per_patient)])
    rank = np.searchsorted(places, place)
    start = starts[np.searchsorted(starts, rank, side="right") - 1]
    return label, block * _BLOCK + int(places[start])


def coordinates(random: _Random, size: int) -> tuple[_Array, _Array]:
    """Body coordinates of every pixel under a random pose; the frame is about [-1, 1] squared, y points down."""
    angle = math.radians(random.normal(0.0, 2.5))
    scale = random.uniform(0.93, 1.07)
    shift_x, shift_y = random.normal(0.0, 0.05), random.normal(0.0, 0.05)
    steps = ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    row, column = (steps[:, None] - shift_y) / scale, (steps[None, :] - shift_x) / scale
    return math.cos(angle) * column + math.sin(angle) * row, math.cos(angle) * row - math.sin(angle) * column


def edge(distance: _Array, width: float) -> _Array:
    """Smooth step from 0 to 1 over `width`, centred where `distance` is 0."""
    ramp = np.clip(distance / width + 0.5, 0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def _clouds(random: _Random, x: _Array, y: _Array, frequency: float) -> _Array:
    """Smooth random texture of mean 0 and standard deviation about 0.5: a sum of plane waves."""
    waves = 6
    total = np.zeros_like(x)
    for _ in range(waves):
        direction, phase = random.uniform(0.0, 2.0 * math.pi), random.uniform(0.0, 2.0 * math.pi)
        k = frequency * random.uniform(0.6, 1.4)
        total += np.cos(k * math.cos(direction) * x + k * math.sin(direction) * y + phase)
    return total * (0.5 * math.sqrt(2.0 / waves))


class Thorax:
    """A healthy chest: drawn once from the patient's random stream, so the same for each of the patient's images.

    heart_size: factor on the length and the width of the ventricles, 1 for a healthy heart

    attenuation: [size, size] float32, about 0 for air to 1 for bone
    depth: [size, size] float32, air along the ray, 0 outside the lungs to 1
    lungs: [size, size] bool
    domes: heights of the diaphragm below both lungs, the right one first; y points down
    """

    def __init__(self, random: _Random, x: _Array, y: _Array, heart_size: float = 1.0) -> None:
        self.centre = random.uniform(0.40, 0.44)
        self.width = random.uniform(0.30, 0.35)
        self.height = random.uniform(0.76, 0.86)
        right_dome = random.uniform(0.36, 0.50)
        self.domes = (right_dome, right_dome + random.uniform(0.02, 0.08))

        heart = self._heart(random, x, y, heart_size)
        mediastinum = edge(random.uniform(0.10, 0.14) + 0.05 * (y + 0.2) ** 2 - np.abs(x - 0.02), 0.10)
        distances = np.stack([self._lung(side, x, y) for side in (0, 1)])
        distance = np.minimum(distances.max(axis=0), -heart)
        self.lungs = distance > 0.0
        self.depth = np.clip(distance / 0.20, 0.0, 1.0) ** 0.6

        trunk, neck, shoulder = random.uniform(0.88, 1.0), random.uniform(0.24, 0.30), random.uniform(-0.95, -0.85)
        half_width = neck + (trunk - neck) * edge(y - shoulder, 0.6) - 0.05 * edge(y + 0.15, 0.8)
        body = np.sqrt(np.clip(1.0 - (x / half_width) ** 2, 0.0, 1.0))
        inside = edge(half_width - np.abs(x), 0.06)

        self.attenuation = (
            0.42 * inside + 0.24 * body - random.uniform(0.46, 0.54) * self.depth
            + 0.10 * edge(heart, 0.10) + 0.10 * mediastinum
            + self._bones(random, x, y) * inside
            + self._vessels(random, x, y) * self.depth
            + self._soft_tissue(random, x, y)
        ).astype(np.float32)  # fmt: skip

    def lateral(self, y: float) -> float:
        """Distance from the midline to the outer border of the lung at height y."""
        bulge = max(0.0, 1.0 - abs((y - 0.05) / self.height) ** 2.3)
        return self.centre + 0.08 * y + self.width * bulge ** (1.0 / 2.3)

    def _lung(self, side: int, x: _Array, y: _Array) -> _Array:
        """Signed distance, roughly: the rib cage, cut by the diaphragm below and by the mediastinum."""
        s = _SIDES[side] * x
        cage = np.abs((s - self.centre - 0.08 * y) / self.width) ** 2.3 + np.abs((y - 0.05) / self.height) ** 2.3
        base = self.domes[side] + 1.3 * (s - 0.34) ** 2 - y
        return np.minimum(np.minimum((1.0 - cage) * self.width * 0.45, base * 0.9), s - 0.13)

    def _heart(self, random: _Random, x: _Array, y: _Array, size: float) -> _Array:
        """Signed distance, positive inside: apex towards the right of the image, aortic knob above."""
        tilt, long, short = random.uniform(0.3, 0.6), random.uniform(0.34, 0.42), random.uniform(0.23, 0.29)
        long, short = size * long, size * short
        u, v = x - 0.12, y - (self.domes[1] - 0.17)
        along, across = math.cos(tilt) * u + math.sin(tilt) * v, math.cos(tilt) * v - math.sin(tilt) * u
        ventricles = (1.0 - np.hypot(along / long, across / short)) * short
        atrium = (1.0 - np.hypot((x + 0.02) / 0.17, (v + 0.04) / 0.24)) * 0.17
        knob = random.uniform(0.08, 0.11) - np.hypot(x - 0.12, y + 0.28)
        return np.maximum(np.maximum(ventricles, atrium), knob)

    def _bones(self, random: _Random, x: _Array, y: _Array) -> _Array:
        """Ribs (arching behind, descending inwards and fainter in front), vertebrae and clavicles."""
        s = np.abs(x)
        spacing, start, rib = random.uniform(0.15, 0.18), random.uniform(0.0, 1.0), random.uniform(0.07, 0.12)
        cage = ((s - 0.08 * y) / (self.centre + self.width + 0.04)) ** 2
        within = edge(1.0 - cage - ((y - 0.1) / 0.95) ** 4, 0.3) * (1.0 - 0.8 * edge(y - self.domes[0] - 0.1, 0.5))
        back = np.cos(2.0 * np.pi * ((y + 0.10 * s - 0.55 * s**2) / spacing + start))
        front = np.cos(2.0 * np.pi * ((y + 0.5 * s) / (1.1 * spacing) + 1.7 * start))
        back = (0.3 + 0.7 * edge(s - 0.2, 0.3)) * edge(back - 0.3, 0.8)
        front = 0.5 * edge(s - 0.42, 0.3) * edge(front - 0.5, 0.7)
        ribs = rib * within * (back + front)
        vertebrae = 0.85 + 0.15 * np.cos(2.0 * np.pi * y / (0.8 * spacing))
        spine = random.uniform(0.08, 0.13) * edge(0.085 - s, 0.06) * vertebrae
        clavicle = -0.58 - random.uniform(0.15, 0.35) * (s - 0.1) + 0.05 * np.sin(9.0 * (s - 0.1))
        clavicles = 0.13 * edge(0.035 - np.abs(y - clavicle), 0.05) * edge(s - 0.1, 0.06) * edge(0.72 - s, 0.1)
        return ribs + spine + clavicles

    def _vessels(self, random: _Random, x: _Array, y: _Array) -> _Array:
        """Hila, and arteries that fork and thin out on their way to the periphery."""
        strength = random.uniform(0.10, 0.20)
        total = np.zeros_like(x)
        for side in _SIDES:
            u, v = side * x - 0.15, y - (-0.03 if side > 0 else 0.01)
            reach = np.hypot(u, v)
            phase, bend = random.uniform(0.0, np.pi), random.normal(0.0, 1.5)
            angle = np.arctan2(v, u) + bend * reach + 0.15 * np.sin(14.0 * reach + phase)
            trunks = reach * np.abs(np.sin(3.0 * angle + phase)) / 3.0
            forks = reach * np.abs(np.sin(6.0 * angle + phase)) / 6.0
            calibre = 0.034 * np.clip(1.0 - reach / 0.6, 0.25, 1.0)
            total += 0.8 * edge(0.11 - np.hypot(u, 0.6 * v), 0.12)
            total += np.clip(1.0 - reach / 0.6, 0.0, 1.0) * (
                edge(calibre - trunks, 0.03) + 0.6 * edge(0.7 * calibre - forks, 0.02) * edge(reach - 0.25, 0.1)
            )
        return strength * total

    def _soft_tissue(self, random: _Random, x: _Array, y: _Array) -> _Array:
        """Breast shadows, trachea, gas in the stomach and uneven soft tissue: what a lesion may be mistaken for."""
        breast = random.uniform(0.0, 0.10) * (random.random() < 0.5)
        level = random.uniform(0.15, 0.35)
        breasts = breast * edge(1.0 - np.hypot((np.abs(x) - 0.45) / 0.34, (y - level) / 0.26), 0.5)
        trachea = 0.10 * edge(0.055 - np.abs(x), 0.05) * edge(-0.18 - y, 0.1)
        bubble = 1.0 - np.hypot((x - 0.38) / 0.16, (y - self.domes[1] - 0.14) / 0.07)
        gas = random.uniform(0.0, 0.2) * edge(bubble, 0.8)
        return breasts - trachea - gas + 0.02 * _clouds(random, x, y, 7.0)


def drawn_lesions(random: _Random, label: int, thorax: Thorax, x: _Array, y: _Array) -> tuple[_Array, _Array]:
    """Added attenuation [size, size] float32 and the lesion mask [size, size] bool.

    pneumonia: one dense focus with a border, sometimes with one or two smaller ones in the same lung.
    covid19: two to four faint, patchy, ill-defined opacities in each lung, along its outer border, lower more often.
    """
    spots: list[tuple[int, float, float, float, float]] = []  # side, outward, downward, radius, density
    if label == _PNEUMONIA:
        side = int(random.integers(2))
        radius = random.uniform(0.15, 0.24)
        for _ in range(random.choice([1, 2, 3], p=[0.6, 0.3, 0.1])):
            down = random.uniform(-0.40, thorax.domes[side] - 0.02)
            out = 0.2 + (thorax.lateral(down) - 0.2) * random.uniform(0.35, 0.75)
            spots.append((side, out, down, radius, random.uniform(0.24, 0.44)))
            radius *= random.uniform(0.5, 0.8)
    if label == _COVID19:
        for side in (0, 1):
            for _ in range(random.integers(2, 5)):
                down = thorax.domes[side] - 0.75 * random.beta(1.2, 1.6)
                out = thorax.lateral(down) - random.uniform(0.05, 0.14)
                spots.append((side, out, down, random.uniform(0.10, 0.18), random.uniform(0.14, 0.28)))

    ground_glass = label == _COVID19
    ragged, patchy = _clouds(random, x, y, 16.0), _clouds(random, x, y, 34.0)
    uneven = np.clip(1.0 + 0.45 * ragged + 0.2 * patchy, 0.65, 1.5)
    opacity, mask = np.zeros_like(x), np.zeros(x.shape, bool)
    for side, out, down, radius, density in spots:
        distance = radius * uneven - np.hypot(_SIDES[side] * x - out, y - down)
        opacity = np.maximum(opacity, density * edge(distance, (0.9 if ground_glass else 0.7) * radius))
        mask |= distance > 0.0
    opacity *= np.clip(0.9 + (0.5 if ground_glass else 0.2) * patchy, 0.3, 1.3)
    return opacity * thorax.depth, mask & thorax.lungs


def exposed(random: _Random, attenuation: _Array) -> _Array:
    """Attenuation to uint8 [size, size], with exposure, contrast, gamma and noise of its own for each image."""
    gamma, contrast = random.lognormal(0.0, 0.25), random.lognormal(0.0, 0.15)
    brightness, noise = random.normal(0.0, 0.08), random.uniform(0.015, 0.045)
    signal = np.clip(attenuation, 0.0, 1.2)
    quantum = random.standard_normal(attenuation.shape, np.float32) * (0.6 + 0.8 * signal)
    grey = 0.45 + contrast * (signal**gamma - 0.45) + brightness + noise * quantum
    return np.clip(np.rint(255.0 * grey), 0.0, 255.0).astype(np.uint8)
