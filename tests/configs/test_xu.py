"""The recipe of Xu 2021, as its configs have it."""

from pathlib import Path

import jax
import numpy as np
import pytest

from covidjax import config as configs
from covidjax.runs import costs

FOLDER = Path(__file__).parents[2] / "configs"
ENCODER = ("stem", "layer1", "layer2", "layer3", "layer4")
STAGES = (*ENCODER, "decoder", "head")
PHASES = (((6.92e-4, 1e-3), 0.7), ((8e-9, 6.68e-6), 0.8))


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("name", ["xu2021_unet", "xu2021_deeplabv3"])
def test_frozen_encoder_then_everything_at_rates_that_grow_from_stage_to_stage(name: str) -> None:
    setting = costs.make_setting(configs.load(str(FOLDER / f"{name}.py"), ["--config.dataset.image_size=32"]), 2)
    recipes = [setting.recipe(phase) for phase in setting.phases()]
    assert [recipe.plan.frozen_prefix for recipe in recipes] == [ENCODER, ()]
    for phase, recipe, ((low, high), peak_at) in zip(setting.phases(), recipes, PHASES, strict=True):
        steps = phase.last_step - phase.first_step
        rates = np.asarray(recipe.learning_rate(np.arange(steps)))
        assert rates.max() == pytest.approx(high, rel=1e-5)
        assert rates.argmax() == pytest.approx(peak_at * steps, abs=1)
        expected = {stage: (low / high) ** ((6 - index) / 6) for index, stage in enumerate(STAGES)}
        for path, factor in jax.tree.leaves_with_path(recipe.plan.rates()):
            assert factor == pytest.approx(expected[path[0].key], rel=1e-6)
        decays = {path[0].key: decay for path, decay in jax.tree.leaves_with_path(recipe.plan.weight_decays())}
        assert set(decays.values()) == {1e-2}
        assert set(decays) == set(STAGES if recipe is recipes[1] else STAGES[5:])
