"""A training step never takes a variance of one value."""

import contextlib

import pytest

from covidjax.errors import UserError
from covidjax.train.setup import prepare
from tests.support import small_config

SMALL = {
    "dataset__name": "phantom",
    "dataset__image_size": 32,  # layer4 of a ResNet has maps of one pixel
    "dataset__num_images": 12,
}


@pytest.mark.parametrize(
    "changes, refused",
    [
        ({"batch_size": 4, "accumulation_steps": 4}, "layer4/block1/norm1 and 4 more"),
        pytest.param({"batch_size": 1}, "layer4/block1/norm1 and 4 more", marks=pytest.mark.slow),
        pytest.param(
            {"batch_size": 1, "freeze": "until:layer3"}, "layer4/block1/norm1 and 4 more", marks=pytest.mark.slow
        ),
        pytest.param({"batch_size": 1, "batch_norm": "running"}, "", marks=pytest.mark.slow),
        pytest.param({"batch_size": 1, "freeze": "backbone"}, "", marks=pytest.mark.slow),
        ({"batch_size": 4, "accumulation_steps": 2}, ""),
    ],
)
def test_a_variance_of_one_value_is_refused_before_the_first_step(changes: dict, refused: str) -> None:
    config = small_config("resnet18", **SMALL | changes)
    with (
        pytest.raises(UserError, match=rf"{refused} has 1 value .*\(1 image of")
        if refused
        else contextlib.nullcontext()
    ):
        prepare(config)
