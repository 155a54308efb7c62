"""Images that are there more than once: byte for byte, pixel for pixel, or compressed again and cut a little."""

import collections
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from covidjax.console import Progress
from covidjax.data.audit.findings import SERIOUS, WARNING, Finding
from covidjax.data.audit.reading import SIDE, Image64, Images
from covidjax.errors import SHOWN, some_of

HASH_BITS = 14  # of 64 that may differ in a candidate; of chests of two patients 1 % differ in no more
LEAST_GRAY, LEAST_DETAIL = 0.7, 0.2  # correlations of a candidate before it is laid over the other
# After it: of copies of cxr3 at least 0.998 and 0.988, of others at most 0.97 and 0.87.
SAME_GRAY, SAME_DETAIL = 0.98, 0.95
DETAIL = 3.0  # standard deviation in pixels of what is smoothed away to see detail
BLURS, STEPS = (2.5, 1.0), 6  # coarse, then fine
BATCH, BLOCK = 256, 1024
Pair = tuple[int, int]


def find(data: Images) -> list[Finding]:
    """Copies, then images that are nearly the same. Says its progress on stderr."""
    return [*exact(data.good), *near(data.good)]


def exact(images: Sequence[Image64]) -> list[Finding]:
    """Images whose bytes or pixels are the same as those of another split or another class."""
    groups = collections.defaultdict(list)
    for image in images:
        groups[image.pixels].append(image)
    pairs = [(group[0], other) for group in groups.values() for other in group[1:]]
    pairs += [
        (first, second)
        for group in groups.values()
        for first, second in itertools.pairwise(group[1:])
        if _apart(first, second) and not _apart(group[0], second)
    ]
    return _told("copies", pairs, "with the same pixels", {})


def near(images: Sequence[Image64]) -> list[Finding]:
    """Pairs by perceptual hash and correlation, confirmed by laying the one over the other: moved and stretched.

    Of the same patient, split and class none is looked for.
    """
    candidates = list(_candidates(images))
    progress = Progress("near duplicates: comparing", max(1, len(candidates)), patience=5)
    grays = np.stack([image.gray for image in images]) if images else np.zeros((0, SIDE, SIDE), np.float32)
    found, figures = [], {}
    for start in range(0, len(candidates), BATCH):
        chosen = np.array(candidates[start : start + BATCH])
        filled = np.resize(chosen, (BATCH, 2))  # of one shape, so that one program does
        likeness = np.asarray(_aligned(grays[filled[:, 0]], grays[filled[:, 1]]))
        for (first, second), (gray, detail) in zip(chosen.tolist(), likeness.tolist(), strict=False):
            if gray >= SAME_GRAY and detail >= SAME_DETAIL:
                found.append((images[first], images[second]))
                figures[images[first].name, images[second].name] = detail
        progress.show(min(start + BATCH, len(candidates)))
    return _told("near_copies", found, "which are nearly the same", {"correlation_of_detail": figures})


def _apart(a: Image64, b: Image64) -> bool:
    return (a.split, a.label, a.patient) != (b.split, b.label, b.patient)


def _told(kind: str, pairs: Sequence[tuple[Image64, Image64]], how: str, numbers: dict) -> list[Finding]:
    """A finding for pairs across splits, one across classes, and one across patients alone."""
    findings = []
    alone = "of one split and class: one patient under two names, or two copies that count twice"
    for what, word, consequence, seriousness in (
        ("split", "splits", "figures of the one flatter what was learnt from the other", SERIOUS),
        ("label", "classes", "one of the labels is wrong", SERIOUS),
        ("patient", "patients", alone, WARNING),
    ):
        own = [(a, b) for a, b in pairs if getattr(a, what) != getattr(b, what)]
        if what == "patient":
            own = [(a, b) for a, b in own if a.split == b.split and a.label == b.label]
        if not own:
            continue
        names = [f"{a.name} ({getattr(a, what)}) = {b.name} ({getattr(b, what)})" for a, b in own]
        shown = tuple((a.name, b.name) for a, b in own[:SHOWN])
        measured = {key: [round(each[pair], 4) for pair in shown] for key, each in numbers.items()}
        text = f"{len(own)} pairs of images {how} are in two {word}: {some_of(names, '; ')}; {consequence}"
        findings.append(
            Finding(kind, seriousness, text, {"across": word, **measured}, tuple(names[:SHOWN]), len(own), shown)
        )
    return findings


def normalised(grays: np.ndarray) -> np.ndarray:
    """[n, height, width] -> [n, height * width] of mean 0 and length 1, zeros where all pixels are the same."""
    flat = grays.reshape(len(grays), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def details(grays: np.ndarray) -> np.ndarray:
    """[n, height, width] less their smoothed pictures, `normalised`."""
    return normalised(grays - ndimage.gaussian_filter(grays, (0, DETAIL, DETAIL)))


def _candidates(images: Sequence[Image64]) -> Iterator[Pair]:
    if len(images) < 2:
        return
    grays = np.stack([image.gray for image in images])
    signs = np.stack([image.hashed for image in images]).astype(np.float32) * 2 - 1
    plain, fine = normalised(grays), details(grays)
    pixels = [image.pixels for image in images]
    _, units = np.unique([f"{one.split}\n{one.label}\n{one.patient}" for one in images], return_inverse=True)
    for start in range(0, len(images), BLOCK):
        rows = slice(start, start + BLOCK)
        differing = (signs.shape[1] - signs[rows] @ signs.T) / 2
        first, second = np.nonzero(differing <= HASH_BITS)
        first += start
        wanted = (first < second) & (units[first] != units[second])
        first, second = first[wanted], second[wanted]
        for part in range(0, len(first), BLOCK):
            a, b = first[part : part + BLOCK], second[part : part + BLOCK]
            gray, detail = ((each[a] * each[b]).sum(axis=1) for each in (plain, fine))
            likely = (gray >= LEAST_GRAY) & (detail >= LEAST_DETAIL)
            pairs = zip(a[likely].tolist(), b[likely].tolist(), strict=True)
            yield from ((i, j) for i, j in pairs if pixels[i] != pixels[j])


@jax.jit
def _aligned(first: jax.Array, second: jax.Array) -> jax.Array:
    """Correlations of gray and of detail once the second is moved and stretched to fit: [n, 64, 64] x 2 -> [n, 2].

    Gauss and Newton's steps in shift and scale of both axes, gain and offset (Lucas and Kanade 1981), smoothed first.
    """
    return jax.vmap(_aligned_pair)(first, second)


def _aligned_pair(first: jax.Array, second: jax.Array) -> jax.Array:
    y, x = jnp.mgrid[:SIDE, :SIDE].astype(jnp.float32)
    centre = (SIDE - 1) / 2
    v, u = (y - centre) / centre, (x - centre) / centre

    def sampled(image: jax.Array, p: jax.Array) -> jax.Array:
        at = [y + p[0] * v + p[1], x + p[2] * u + p[3]]
        return jax.scipy.ndimage.map_coordinates(image, at, order=1, mode="nearest")

    def refined(move: jax.Array, blur: float) -> jax.Array:
        wanted, other = _smoothed(first, blur), _smoothed(second, blur)
        down, right = jnp.gradient(other)

        def step(_: int, p: jax.Array) -> jax.Array:
            seen, dy, dx = (sampled(each, p) for each in (other, down, right))
            columns = jnp.stack([dy * v, dy, dx * u, dx, seen, jnp.ones_like(seen)], -1).reshape(-1, 6)
            scale = jnp.linalg.norm(columns, axis=0) + 1e-6
            columns = columns / scale
            normal = columns.T @ columns + 1e-5 * jnp.eye(6)
            change = jnp.linalg.solve(normal, columns.T @ (wanted - seen).reshape(-1)) / scale
            return jnp.clip(p + change[:4], -8.0, 8.0)

        return jax.lax.fori_loop(0, STEPS, step, move)

    fitted = sampled(second, functools.reduce(refined, BLURS, jnp.zeros(4)))
    inner = slice(SIDE // 8, -SIDE // 8)
    fine = [(each - _smoothed(each, DETAIL))[inner, inner] for each in (first, fitted)]
    plain = [each[inner, inner] for each in (first, fitted)]
    return jnp.stack([_correlation(*plain), _correlation(*fine)])


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-6)


def _smoothed(image: jax.Array, deviation: float) -> jax.Array:
    reach = int(4 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = jnp.asarray(weights / weights.sum(), image.dtype)
    padded = jnp.pad(image, reach, mode="edge")
    rows = jax.vmap(lambda row: jnp.convolve(row, kernel, mode="valid"))(padded)
    return jax.vmap(lambda row: jnp.convolve(row, kernel, mode="valid"), 1, 1)(rows)
