"""Meshes, and how arrays lie over their devices."""

from typing import Any

import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from covidjax.mesh import by_largest_axis, make_mesh
from tests.commands import user_error

FOUR: Any = AbstractMesh((1, 4), ("data", "fsdp"))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), (None, None, None, "fsdp")),
        ((3, 3, 128, 64), (None, None, "fsdp")),
        ((64, 64), (None, "fsdp")),  # of equal ones the last
        ((4096, 10), ("fsdp",)),
        ((10,), ()),
        ((), ()),
        ((0,), ()),
    ],
)
def test_the_largest_axis_that_divides_is_divided(shape: tuple[int, ...], spec: tuple[str | None, ...]) -> None:
    assert by_largest_axis(shape, FOUR).spec == PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((("data", -1), ("fsdp", 3)), "there are"),
        ((("data", 5),), "there are"),
        ((("data", -1), ("fsdp", -1)), "one -1"),
        ((("data", -1), ("data", 1)), "each axis once"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(axes: tuple[tuple[str, int], ...], said: str) -> None:
    assert said in user_error(make_mesh, 60, 1, axes)
