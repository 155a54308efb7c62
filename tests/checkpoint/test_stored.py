"""A checkpoint can be read back from a folder of any name, and counts as saved once it has been."""

from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from covidjax.checkpoint import stored
from covidjax.checkpoint.checkpoint import Checkpoints
from covidjax.errors import UserError

NAMES = (
    "runs [cxr]", "[!a]", "[", "star*", "**", "q?", "{a,b}", "~", "~nobody", "#1", "50%", "per%20cent", "a b", "it's",
    'in "quotes"', "back\\slash", "$HOME", "`x`", "a;b|c&d", "gs:", "ü 日本", "radiograf\udceda", "two\nlines",
)  # fmt: skip


def state_of(value: float) -> dict[str, jax.Array]:
    return {"weight": jnp.full((3,), value), "key": jax.random.key(int(value))}


# Every day one that etils took for a pattern, and one that TensorStore took for another place.
DAILY = ("runs [cxr]", "gs:")


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in NAMES], ids=ascii
)
def test_run_below_a_folder_of_any_name_can_be_restored(tmp_path: Path, name: str) -> None:
    # A neighbour that the name would match, were it a pattern.
    for folder, value in (("runs c", 1.0), ("starry", 1.0), ("qa", 1.0), (name, 2.0)):
        with Checkpoints(tmp_path / folder / "checkpoints", keep=2, higher_is_better=True) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, state_of(value + step), {}, float(-step))
    with Checkpoints(tmp_path / name / "checkpoints", keep=2, higher_is_better=True) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        assert checkpoints.restore("best", state_of(0.0)).state["weight"].tolist() == [3.0] * 3
        latest = checkpoints.restore_latest(lambda step: state_of(0.0))
    assert latest is not None
    assert latest.state["weight"].tolist() == [5.0] * 3
    assert jax.random.key_data(latest.state["key"]).tolist() == [0, 5]


def test_name_that_would_be_a_pattern_is_refused_where_the_system_has_no_plain_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "OPEN_FOLDERS", tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot lie below a name with '\*\[\]' on this system"):
        Checkpoints(tmp_path / "[a]*", keep=2, higher_is_better=True)
    Checkpoints(tmp_path / "a b", keep=2, higher_is_better=True).close()


@pytest.mark.parametrize("wrong", ["bits", "a file"])
def test_first_checkpoint_that_does_not_come_back_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    committed = ocp.CheckpointManager.wait_until_finished

    def broken(self: ocp.CheckpointManager) -> None:
        committed(self)
        for path in (tmp_path / "1").rglob("*") if wrong == "a file" else ():
            if path.name == "manifest.ocdbt":
                path.unlink()

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", broken)
    if wrong == "bits":
        monkeypatch.setattr(stored, "_restore", lambda *_, **__: ocp.args.Composite(state=state_of(3.0)))
    with Checkpoints(tmp_path, keep=2, higher_is_better=True) as checkpoints:
        with pytest.raises(UserError, match=r"checkpoint 1 in .* cannot be read back .*: use a --workdir on another"):
            checkpoints.save(1, state_of(2.0), {}, None)
        assert checkpoints.steps() == []
