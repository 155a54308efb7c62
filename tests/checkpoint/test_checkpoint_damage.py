"""Damaged and unfinished checkpoints are never used, never deleted silently, and hinder no later save."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from covidjax.errors import UserError
from tests.checkpoint.made import names, open_checkpoints, save_steps
from tests.commands import contents

WEIGHTS = 4096


def make_state(step: int) -> dict[str, jax.Array]:
    return {"weight": jax.random.normal(jax.random.key(step), (WEIGHTS,))}


def restore_latest(directory: Path, step: int) -> tuple[str, ...]:
    """Notes, after a check that it is this step, and its state, that is restored."""
    with open_checkpoints(directory) as checkpoints:
        restored = checkpoints.restore_latest({step: make_state(0)}.__getitem__)
    assert restored is not None
    assert restored.step == step
    assert (restored.state["weight"] == make_state(step)["weight"]).all()
    return restored.notes


def flip_byte(directory: Path) -> str:
    files = [path for path in (directory / "3").rglob("*") if path.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.write_bytes(data)
    return f"file {biggest.relative_to(directory / '3').as_posix()} differs from its manifest"


def delete_file(directory: Path) -> str:
    (directory / "3" / "progress" / "metadata").unlink()
    return "file progress/metadata is missing"


def add_file(directory: Path) -> str:
    (directory / "3" / "state" / "copy").write_text("x")
    return "file state/copy is not in its manifest"


def change_manifest(directory: Path) -> str:
    path = directory / "manifests" / "3.json"
    path.write_text(path.read_text().replace('"metric": null', '"metric": 9999'))
    return "its manifest is unreadable"


def truncate_manifest(directory: Path) -> str:
    os.truncate(directory / "manifests" / "3.json", 40)
    return "its manifest is unreadable"


Damage = Callable[[Path], str]
every_damage = pytest.mark.parametrize("damage", [flip_byte, delete_file, add_file, change_manifest, truncate_manifest])


@every_damage
def test_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, damage: Damage) -> None:
    save_steps(tmp_path, [1, 2, 3], make_state)
    reason = damage(tmp_path)
    damaged = contents(tmp_path / "3")
    assert restore_latest(tmp_path, 2) == (f"checkpoint 3 is damaged ({reason}): using 2",)
    assert contents(tmp_path / "damaged" / "3") == damaged
    assert restore_latest(tmp_path, 2) == ()
    save_steps(tmp_path, [3], make_state)
    assert restore_latest(tmp_path, 3) == ()


@every_damage
def test_damaged_checkpoint_asked_for_by_name_is_refused_and_left_alone(tmp_path: Path, damage: Damage) -> None:
    save_steps(tmp_path, [2, 3], make_state)
    reason = damage(tmp_path)
    before = contents(tmp_path)
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as named:
            checkpoints.restore(3, make_state(0))
        with pytest.raises(UserError) as latest:
            checkpoints.restore("latest", make_state(0))
        assert checkpoints.restore(2, make_state(0)).step == 2
    assert str(named.value) == str(latest.value)
    assert str(named.value).startswith(f"checkpoint 3 in {tmp_path} is damaged ({reason}): ")
    assert contents(tmp_path) == before


def test_damage_of_an_older_checkpoint_is_found_before_it_is_needed(tmp_path: Path) -> None:
    save_steps(tmp_path, [3, 4], make_state)
    reason = flip_byte(tmp_path)
    assert restore_latest(tmp_path, 4) == (f"checkpoint 3 is damaged ({reason}): using 4",)
    save_steps(tmp_path, [5], make_state)
    assert names(tmp_path) == {"4", "5", "damaged", "manifests"}


def test_training_does_not_start_over_when_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    save_steps(tmp_path, [2, 3], make_state)
    (tmp_path / "2" / "progress" / "metadata").unlink()
    reason = flip_byte(tmp_path)
    before = contents(tmp_path)
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore_latest(lambda step: make_state(0))
    assert f"(2: file progress/metadata is missing; 3: {reason})" in str(error.value)
    assert contents(tmp_path) == before


def test_checkpoint_without_manifest_is_not_used_and_its_step_can_be_saved_again(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2, 3], make_state)
    (tmp_path / "manifests" / "3.json").unlink()
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2]
        assert checkpoints.restore("latest", make_state(0)).step == 2
        with pytest.raises(UserError, match="no checkpoint 3 in"):
            checkpoints.restore(3, make_state(0))
    assert restore_latest(tmp_path, 2) == ()
    assert names(tmp_path) == {"2", "manifests"}
    save_steps(tmp_path, [3], make_state)
    assert restore_latest(tmp_path, 3) == ()


def test_leftovers_of_an_interrupted_save_are_cleared_by_the_next_one(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2, 3], make_state)
    (tmp_path / "manifests" / "3.json").rename(tmp_path / "manifests" / "3.tmp")
    (tmp_path / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "deleted" / "1").mkdir(parents=True)
    save_steps(tmp_path, [4], make_state)
    assert names(tmp_path) == {"2", "4", "manifests"}
    assert names(tmp_path / "manifests") == {"2.json", "4.json"}


def test_checkpoints_that_lost_all_manifests_are_not_deleted(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2], make_state)
    shutil.rmtree(tmp_path / "manifests")
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(lambda step: make_state(0)) is None
    save_steps(tmp_path, [1], make_state)
    assert names(tmp_path / "damaged") == {"1", "2"}
