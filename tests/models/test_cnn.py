from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from covidjax import models
from covidjax.errors import UserError
from covidjax.freeze.plan import make_plan
from covidjax.freeze.strategies import default_strategies
from covidjax.models.layers import Staged
from tests.support import small_config

CONVOLUTIONS = ("block1/conv", "block2/conv")


def plain_cnn() -> tuple[Staged, Any]:
    config = small_config("cnn", model__normalisation="none", model__num_blocks=2, model__pooling="flatten")
    model = models.build(config.model, 2, "float32")
    return model, model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


def test_without_normalisation_convolutions_have_biases_and_start_as_in_keras() -> None:
    _, variables = plain_cnn()
    assert set(variables) == {"params"}
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    assert {path.rpartition("/")[0] for path in leaves} == {*CONVOLUTIONS, "head/dense"}
    for path in CONVOLUTIONS:
        kernel = leaves[f"{path}/kernel"]
        limit = np.sqrt(6 / (9 * (kernel.shape[2] + kernel.shape[3])))  # Glorot and Bengio 2010, uniform
        assert 0.9 * limit < np.abs(kernel).max() <= limit
        assert not leaves[f"{path}/bias"].any()
    assert leaves["head/dense/kernel"].shape == (4 * 4 * 32, 2)


def test_without_normalisation_there_is_no_strategy_for_it() -> None:
    model, variables = plain_cnn()
    paths = traverse_util.flatten_dict(variables["params"], sep="/")
    assert "norm" not in default_strategies(model.stages, paths)
    with pytest.raises(UserError, match="no normalisation"):
        make_plan("norm", variables, model.stages)
