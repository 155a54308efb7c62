"""Mixed images: by their formulas, each with its own share, and the loss as the images; random crops stay inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax.data.augment import Augmentation, augment
from covidjax.data.mix import Mixed, blended, mix
from covidjax.losses import correct_share, softmax_cross_entropy

COUNT, HEIGHT, WIDTH = 64, 12, 20
BOTH = Augmentation(mixup=0.4, cutmix=1.0)


def draw() -> tuple[jax.Array, jax.Array]:
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (COUNT, HEIGHT, WIDTH, 2)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(generator.integers(0, 3, COUNT), jnp.int32)


@pytest.mark.parametrize("augmentation", [Augmentation(mixup=0.4), Augmentation(cutmix=1.0), BOTH])
def test_each_image_is_mixed_with_the_next_by_the_share_of_its_label(augmentation: Augmentation) -> None:
    images, labels = draw()
    found, mixed = jax.jit(lambda key: mix(key, images, labels, augmentation))(jax.random.key(1))
    np.testing.assert_array_equal(mixed.first, labels)
    np.testing.assert_array_equal(mixed.second, np.roll(labels, -1))
    kinds = set()
    for number, share in enumerate(np.asarray(mixed.share)):
        own, other, result = (np.asarray(x) for x in (images[number], images[(number + 1) % COUNT], found[number]))
        if np.allclose(result, share * own + (1 - share) * other, atol=1e-3):
            kinds.add("mixup")
            continue
        inside = (result != own).any(-1)
        np.testing.assert_array_equal(result[inside], other[inside])
        assert 1 - inside.mean() == pytest.approx(share, abs=1e-6)
        rows, columns = inside.any(1), inside.any(0)
        np.testing.assert_array_equal(inside, rows[:, None] & columns)  # a box
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2 and np.abs(np.diff(columns.astype(int))).sum() <= 2
        kinds.add("cutmix")
    expected = {name for name in ("mixup", "cutmix") if getattr(augmentation, name)}
    assert kinds >= expected  # a box of nothing, or of everything, is a mean as well
    assert "cutmix" in expected or kinds == expected
    assert len(set(np.asarray(mixed.share).tolist())) > COUNT / 2


def test_shares_are_of_the_beta_distribution_of_alpha() -> None:
    images, labels = jnp.zeros((20_000, 1, 1, 1)), jnp.zeros(20_000, jnp.int32)
    share = np.asarray(mix(jax.random.key(0), images, labels, Augmentation(mixup=0.4))[1].share)
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)  # of Beta(a, a)


def test_the_loss_is_the_mix_of_two_losses() -> None:
    _, labels = draw()
    generator = np.random.default_rng(1)
    logits, share = (jnp.asarray(generator.uniform(size=shape), jnp.float32) for shape in ((COUNT, 3), (COUNT,)))
    mixed = Mixed(labels, jnp.roll(labels, -1), share)
    first, second = (softmax_cross_entropy(logits, own) for own in (mixed.first, mixed.second))
    np.testing.assert_allclose(blended(softmax_cross_entropy, logits, mixed), share * first + (1 - share) * second)
    soft = np.eye(3)[labels] * share[:, None] + np.eye(3)[mixed.second] * (1 - share)[:, None]
    expected = -(soft * np.asarray(jax.nn.log_softmax(logits))).sum(-1)  # the cross-entropy of mixed targets
    np.testing.assert_allclose(blended(softmax_cross_entropy, logits, mixed), expected, rtol=1e-5)
    np.testing.assert_array_equal(blended(correct_share, logits, labels), correct_share(logits, labels))


def test_parts_of_a_batch_on_a_mapped_axis_mix_as_in_the_whole() -> None:
    images, labels = draw()
    key = jax.random.key(2)
    parts = jax.tree.map(lambda array: array.reshape(4, COUNT // 4, *array.shape[1:]), (images, labels))
    mapped = jax.vmap(lambda image, label: mix(key, image, label, BOTH, "data"), axis_name="data")
    found, whole = jax.jit(mapped)(*parts), jax.jit(lambda image, label: mix(key, image, label, BOTH))(images, labels)
    for own, expected in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(own.reshape(expected.shape), expected, rtol=1e-5)


def test_random_crops_lie_within_the_image_and_have_the_area_and_sides_asked_for() -> None:
    # Values that are places: what a crop shows says where it was taken.
    size, count, least = 101, 400, 0.25
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).astype(np.float32)
    images = jnp.broadcast_to(grid, (count, *grid.shape))
    found = np.asarray(augment(jax.random.key(0), images, Augmentation(crop_scale=least))[0])
    middle, at = found[:, size // 2, size // 2], size // 2
    steps = np.stack([found[:, at + 1, at, 0] - middle[:, 0], found[:, at, at + 1, 1] - middle[:, 1]], -1)
    ends = [middle + sign * steps * (size - 1) / 2 for sign in (-1, 1)]
    assert min(ends[0].min(), size - 1 - ends[1].max()) > -0.6  # half a pixel of the edge
    area, ratio = steps.prod(-1), steps[:, 1] / steps[:, 0]
    assert least * 0.98 < area.min() < 0.3 and area.max() <= 1 + 1e-4
    assert 3 / 4 - 1e-3 < ratio.min() < 0.8 and 1.25 < ratio.max() < 4 / 3 + 1e-3
