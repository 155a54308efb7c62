"""The picture of the first batch shows what the first step takes in."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from covidjax.data import phantom
from covidjax.data.augment import Augmentation
from covidjax.data.examples import Examples
from covidjax.data.order import batch_indices
from covidjax.models.preprocessing import IMAGENET, folded
from covidjax.report import batch as batch_view
from covidjax.tasks import pictures
from covidjax.train import step
from covidjax.train.inputs import augmented_batch
from covidjax.train.step import Recipe
from tests.support import make_model, make_recipe, make_state, make_variables, small_config

SEED, SIZE, BATCH = 5, 16, 8
STRONG = Augmentation(rotate=30.0, shift=0.2, flip=True, contrast=0.3)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return phantom.load(small_config(dataset__image_size=SIZE, dataset__num_images=24).dataset, "train")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    config = small_config(model__width=2, model__num_blocks=1)
    model = make_model(config)
    return make_recipe(config, model, make_variables(model, SIZE), augmentation=STRONG)


def batch_of(examples: Examples, masks: bool) -> dict[str, np.ndarray]:
    indices = batch_indices(SEED, 0, len(examples), BATCH)
    assert examples.masks is not None
    return {"image": examples.images[indices], "label": (examples.masks if masks else examples.labels)[indices]}


def test_images_are_those_of_the_first_step_without_the_image_of_ones(examples: Examples, recipe: Recipe) -> None:
    batch = batch_of(examples, masks=True)
    variables = make_variables(recipe.model, SIZE)
    key, _ = step.step_keys(make_state(recipe, variables, SEED), recipe)
    images, masks = step.augmented(key, jax.tree.map(jnp.asarray, batch), recipe)
    inputs, moved = augmented_batch(recipe, batch, SEED)
    np.testing.assert_allclose(inputs, recipe.preprocessing(images), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(moved, masks)
    assert np.any(moved != batch["label"])  # the masks have moved, too

    folding = make_recipe(small_config(), recipe.model, variables, preprocessing=folded(IMAGENET))
    batch = batch_of(examples, masks=False)
    inputs, labels = augmented_batch(folding, batch, SEED)
    assert inputs.shape == (BATCH, SIZE, SIZE, 1)
    np.testing.assert_array_equal(labels, batch["label"])


@pytest.mark.parametrize("masks", [True, False])
def test_picture_tells_its_images_and_values(tmp_path: Path, examples: Examples, recipe: Recipe, masks: bool) -> None:
    targets = examples.masks if masks else examples.labels
    assert targets is not None
    assert batch_view.read_batch(tmp_path) is None
    inputs, moved = augmented_batch(recipe, batch_of(examples, masks), SEED)
    labels = list(moved) if masks else [examples.classes[label] for label in moved]
    batch_view.write_batch(tmp_path, inputs, labels, BATCH)
    found = batch_view.read_batch(tmp_path)
    assert found is not None
    content, description = found
    assert description.startswith("8 of the 8 images of the first batch")
    assert f"from {inputs.min():.2f} (black) to {inputs.max():.2f} (white)" in description
    assert ("borders of the masks" in description) == masks
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    side = batch_view.CELL_SIDE
    cell = side if masks else side + batch_view.LETTERS + 6
    assert picture.shape == (2 * cell + pictures.GAP, 4 * side + 3 * pictures.GAP, 3)
    coloured = np.abs(picture[..., 0] - picture[..., 2]) > 60
    assert coloured.any() == masks
    assert [path.name for path in tmp_path.iterdir()] == ["batch.jpg"]
