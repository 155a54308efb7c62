import csv
from pathlib import Path
from typing import Any

import pytest

from covidjax.errors import UserError
from covidjax.tasks import volumes
from covidjax.tasks.volumes import Slice

CLASSES = ("background", "lung", "lesion", "effusion")
SPACING = (5.0, 0.7, 0.8)
VOXEL = 5 * 0.7 * 0.8 / 1000
SLICES = (
    Slice("one/1.png", (10, 10), (60, 30, 10, 0)),
    Slice("one/2.png", (10, 10), (80, 10, 5, 5)),
    Slice("two/1.png", (20, 5), (100, 0, 0, 0)),
)


def written(tmp_path: Path, *arguments: Any) -> list[dict[str, str]]:
    volumes.write_table(tmp_path / "volumes.csv", *arguments)
    with (tmp_path / "volumes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_volumes_are_pixels_times_spacing_for_each_folder(tmp_path: Path) -> None:
    one, two = written(tmp_path, SLICES, CLASSES, SPACING)
    assert (one["stack"], one["slices"], two["stack"], two["slices"]) == ("one", "2", "two", "1")
    for name, pixels in (("lung", 40), ("lesion", 15), ("effusion", 5)):
        assert float(one[f"millilitres_{name}"]) == pytest.approx(pixels * VOXEL)
    assert "millilitres_background" not in one
    assert one["use"] == "research use only"


def test_fraction_of_the_lung_counts_what_is_ill_in_it(tmp_path: Path) -> None:
    one, two = written(tmp_path, SLICES, CLASSES, SPACING)
    assert float(one["fraction_of_lung"]) == pytest.approx(20 / 60)
    assert two["fraction_of_lung"] == ""  # no lung was found


@pytest.mark.parametrize("classes", [("background", "lung"), ("background", "ground glass", "consolidation")])
def test_without_lesions_in_a_lung_there_is_no_fraction(tmp_path: Path, classes: tuple[str, ...]) -> None:
    slices = [Slice("1.png", (2, 2), (1,) * len(classes))]
    (row,) = written(tmp_path, slices, classes, SPACING)
    assert "fraction_of_lung" not in row
    assert row["stack"] == "."


def test_slices_of_different_sizes_are_no_stack() -> None:
    with pytest.raises(UserError, match=r"slices in one have different sizes \(10 x 10, 12 x 10\)"):
        volumes.stacks([*SLICES, Slice("one/3.png", (12, 10), (120, 0, 0, 0))])


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, float("nan"), 1.0), (1.0, -1.0, 1.0)])
def test_spacing_that_is_none_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="three numbers above 0"):
        volumes.check_spacing(spacing)
