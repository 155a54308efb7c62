"""The plateau rule, beside that of Keras."""

import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covidjax import optim
from tests.optim.settings import dtypes, make_config


@pytest.mark.parametrize(
    ("patience", "factor", "min_delta"), [(5, 0.7, 1e-4), (2, 0.5, 1e-2), (1, 0.3, 0.0), (0, 0.9, 0.0)]
)
@pytest.mark.parametrize("min_rate", [0.0, 1e-4])
def test_plateau_equals_keras_epoch_by_epoch(
    keras: Any, patience: int, factor: float, min_delta: float, min_rate: float
) -> None:
    section = {"patience": patience, "factor": factor, "min_delta": min_delta, "min_learning_rate": min_rate}
    config = make_config(schedule="plateau", **{f"plateau_{key}": value for key, value in section.items()})
    model = types.SimpleNamespace(optimizer=keras.optimizers.SGD(config.learning_rate))
    callback = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", mode="min", factor=factor, patience=patience, min_delta=min_delta, min_lr=min_rate
    )
    callback.set_model(model)
    callback.on_train_begin()
    update = jax.jit(lambda state, loss: optim.plateau_update(state, loss, config))
    state = optim.plateau_init()
    ours, theirs = [], []
    curve = np.exp(-np.arange(80) / 15) + 0.05 * np.random.default_rng(5).random(80)
    losses: list[float] = curve.astype(np.float32).tolist()
    losses[33] = math.nan
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": loss})
        state = update(state, loss)
        ours.append(config.learning_rate * float(state.scale))
        theirs.append(float(model.optimizer.learning_rate))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(set(theirs)) > 2
    assert min_rate == 0.0 or patience == 5 or theirs[-1] == pytest.approx(min_rate)


def test_plateau_counts_nan_as_no_improvement() -> None:
    config = make_config(schedule="plateau", plateau_patience=3, plateau_factor=0.5)
    state = optim.plateau_init()
    scales = []
    for loss in (math.nan, 1.0, math.nan, math.nan, math.nan, 0.5, math.inf):
        state = optim.plateau_update(state, loss, config)
        scales.append(float(state.scale))
    assert scales == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert float(state.best) == 0.5
    assert int(state.wait) == 1


def test_plateau_state_keeps_shapes_and_dtypes_and_acts_under_no_other_schedule() -> None:
    with jax.enable_x64(True):
        begun = optim.plateau_init()
        for schedule, scale in (("plateau", 0.7), ("cosine", 1.0)):
            update = jax.jit(lambda state, name=schedule: optim.plateau_update(state, 1.0, make_config(schedule=name)))
            state = begun
            for _ in range(8):
                state = update(state)
            assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, begun)
            assert dtypes(state) == [jnp.float32, jnp.float32, jnp.int32]
            assert float(state.scale) == pytest.approx(scale)
