"""Where features live and when they do not: rooms of device, host and disk, damaged files, full disks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from covidjax.data import store
from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.train import features
from covidjax.train.features import Caching
from tests.commands import contents
from tests.disk import small_disk
from tests.support import make_caching, small_config
from tests.train.cached import Case, make_case, passes

SIZE = 8
TINY: dict[str, Any] = {"model__width": 2, "model__num_blocks": 2, "batch_size": 4, "freeze": "backbone"}
IMAGE_BYTES = 4 * 4  # of features: as many channels in float32
NUM_TRAIN, NUM_VAL = 100, 20
TRAIN_BYTES, VAL_BYTES = NUM_TRAIN * IMAGE_BYTES, NUM_VAL * IMAGE_BYTES


# ---- What is decided ----


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Bytes of room on the device, the host and the disk, which a test may change; at first all is full."""
    room: dict[str, float] = {"device": 0, "host": 0, "disk": 0}
    monkeypatch.setattr(features, "device_room", lambda: (room["device"], "a small device"))
    monkeypatch.setattr(features, "host_room", lambda: room["host"])
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=room["disk"]))
    return room


def decided(tmp_path: Path, epochs: float = 10, **changes: Any) -> Caching:
    config = small_config("cnn", **{**TINY, "dataset__cache_dir": str(tmp_path / "cache"), **changes})
    recipe = make_case(config, SIZE).recipe
    return make_caching(config, recipe, epochs, split("train", NUM_TRAIN), split("val", NUM_VAL))


def split(name: str, count: int) -> Examples:
    names = tuple(map(str, range(count)))
    images, labels = np.zeros((count, SIZE, SIZE, 1), np.uint8), np.zeros(count, np.int32)
    return Examples(name, images, labels, names, names, False, ("a", "b", "c"), "")


def kept(caching: Caching) -> tuple[str, int, bool]:
    return caching.placement, caching.views, caching.validation


@pytest.mark.parametrize(("place", "said"), [("device", "a small device"), ("host", "memory"), ("disk", "cache")])
def test_features_live_where_room_is_first(tmp_path: Path, rooms: dict[str, float], place: str, said: str) -> None:
    rooms[place] = TRAIN_BYTES + VAL_BYTES
    caching = decided(tmp_path)
    assert kept(caching) == (place, 1, True)
    assert (caching.train_bytes, caching.val_bytes) == (TRAIN_BYTES, VAL_BYTES)
    assert f"0.0 MiB stay on the {place} (" in caching.note
    assert said in caching.note
    rooms[place] -= 1
    assert kept(decided(tmp_path)) == ("", 1, True)  # those of the validation images still fit


def test_neither_memory_nor_disk_trains_through_the_network(tmp_path: Path, rooms: dict[str, float]) -> None:
    caching = decided(tmp_path)
    assert kept(caching) == ("", 1, False)
    folder = tmp_path / "cache" / "features"
    assert caching.note == (
        f"features: not cached for training (0.0 MiB fit neither in memory nor on disk: {folder} has 0 MiB free); nor "
        "are those of the validation images"
    )
    with pytest.raises(UserError) as caught:
        decided(tmp_path, features="on")
    assert str(caught.value) == (
        f"config.features is on, but 0.0 MiB fit neither in memory nor on disk: {folder} has 0 MiB free; "
        "config.features=off trains through the whole network"
    )


ROTATED = {"augment__rotate": 10.0}
DECISIONS: list[tuple[dict[str, Any], float, tuple[str, int, bool], str]] = [
    ({"features": "off"}, 10, ("", 1, False), "features: not cached (config.features is off)"),
    ({"freeze": "none"}, 10, ("", 1, False), "features: not cached (the first stage trains)"),
    ({"augment__mixup": 0.2}, 10, ("", 1, True), "(config.augment.mixup and cutmix mix images, and"),
    ({"batch_norm": "batch"}, 10, ("", 1, False), "features: not cached"),  # statistics of the batch end the prefix
    ({"batch_norm": (("block2", "batch"),)}, 10, ("device", 1, True), "features: block1 run once"),
    (ROTATED, 10, ("", 1, True), "config.feature_views=K"),
    (ROTATED, 10, ("", 1, True), "; those of the validation images are"),
    ({**ROTATED, "feature_views": 3}, 10, ("device", 3, True), "3 augmented view(s) of each"),
    # Views without augmentation are all the same, and none is kept that no epoch sees.
    ({"feature_views": 3}, 10, ("device", 1, True), ""),
    *(
        ({**ROTATED, "feature_views": 4}, epochs, ("device", views, True), f"{views} augmented view(s) of each")
        for epochs, views in ((2, 2), (0.5, 1), (2.5, 3), (10, 4))
    ),
]


@pytest.mark.parametrize(("changes", "epochs", "expected", "said"), DECISIONS)
def test_what_is_cached_follows_from_what_is_frozen_and_what_changes_at_random(
    tmp_path: Path, changes: dict[str, Any], epochs: float, expected: tuple[str, int, bool], said: str
) -> None:
    caching = decided(tmp_path, epochs, **changes)
    assert kept(caching) == expected
    assert said in caching.note
    if "feature_views" in changes:
        assert caching.train_bytes == caching.views * TRAIN_BYTES
    assert not (tmp_path / "cache").exists()


def test_features_that_are_asked_for_but_change_at_random_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^config.features is on, but augmentation .* whole network$"):
        decided(tmp_path, **ROTATED, features="on")


# ---- Damaged files and full disks ----


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(small_config("cnn", **TINY), SIZE)


@pytest.fixture(scope="module")
def expected(case: Case, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return np.array(passes(tmp_path_factory.mktemp("expected")).features(case.recipe, case.variables, case.images))


def test_damaged_features_are_told_and_computed_again(
    tmp_path: Path, case: Case, expected: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    passes(tmp_path).features(case.recipe, case.variables, case.images)
    (folder,) = tmp_path.iterdir()
    whole, content = contents(tmp_path), bytearray((folder / "leaf0.npy").read_bytes())
    content[-1] ^= 1
    (folder / "leaf0.npy").write_bytes(content)
    assert capsys.readouterr().err == ""
    own = passes(tmp_path)
    found = own.features(case.recipe, case.variables, case.images)
    assert capsys.readouterr().err == (
        f"the cached features in {folder} are damaged (the checksum of leaf0.npy differs): they are computed again\n"
    )
    assert (own.computed, own.reused) == (1, 0)
    np.testing.assert_array_equal(found, expected)
    assert contents(tmp_path) == whole


def check_that_nothing_is_kept(folder: Path, case: Case, expected: np.ndarray, reason: str) -> None:
    own = passes(folder)
    np.testing.assert_array_equal(own.features(case.recipe, case.variables, case.images), expected)
    assert own.notes == [f"features: not kept for later runs ({reason})"]
    assert list(folder.iterdir()) == []


def test_full_disk_keeps_nothing_but_the_features_are_right(
    tmp_path: Path, case: Case, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "features"
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=expected.nbytes - 1))
    check_that_nothing_is_kept(folder, case, expected, f"{folder} has 0 MiB free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    with small_disk(tmp_path / "disk", 3 * 4096) as disk:  # it turns out to be full
        (disk / "filler").write_bytes(bytes(3 * 4096))
        check_that_nothing_is_kept(disk / "features", case, expected, "No space left on device")


def test_neither_disk_nor_memory_is_one_line(
    tmp_path: Path, case: Case, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr(features, "host_room", lambda: expected.nbytes - 1)
    with pytest.raises(UserError) as caught:
        passes(tmp_path).features(case.recipe, case.variables, case.images)
    assert str(caught.value) == (
        f"the features take 0.0 MiB, more than memory and disk have ({tmp_path} has 0 MiB free): free space, set "
        "config.dataset.cache_dir to another disk, or config.features=off"
    )
