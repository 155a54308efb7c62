import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import freeze, staircase, strategies
from benchmarks.case import Case
from benchmarks.harness import Measurement
from covidjax.train.step import run_prefix
from tests.benchmarks.test_records import CONTRACT
from tests.commands import call, read_table

SMALL: dict[str, Any] = {"model": "cnn", "batch_size": 4, "image_size": 16, "width": 2}
FIELDS = CONTRACT | {"predicted_flops_ratio", "time_ratio_vs_inference", "speedup_vs_uncached"}
OURS = strategies.BUILDER


def measured(
    implementation: str, freeze: str, seconds: list[float], flops: float, mode: str = "train", images: int = 0
) -> Measurement:
    options = ((strategies.EPOCH_IMAGES, images),) if images else ()
    case = Case(implementation, freeze=freeze, mode=mode, options=options, **SMALL)
    known = {"predicted_flops": flops, "flops": flops, "feature_pass_seconds": 0.5, "feature_bytes": 1e6}
    facts = {"device": "cpu", "compile_seconds": 1.0, "trainable_params": 3, "total_params": 9, **known}
    return Measurement(case, facts, seconds)


MEASURED = [
    measured(OURS, "none", [0.1, 0.2, 0.3], 8e6),
    measured(OURS, "backbone", [0.05, 0.05, 0.05], 3e6),
    measured(OURS, "cached", [0.001], 1e3),
    measured(OURS, "none", [0.04], 2e6, mode="inference"),
    measured(OURS, "backbone", [1.0], 3e6, images=16),
    measured(OURS, "cached", [0.004], 1e3, images=16),
    measured("flax_norm_logged", "none", [0.4], 8e6),
    measured("flax_norm_logged", "backbone", [0.4], 8e6),
]


def test_ratios_are_to_the_same_implementation_with_nothing_frozen(tmp_path: Path) -> None:
    rows = freeze.make_records(MEASURED, {"command": "c"})
    none, backbone, cached, inference, epoch, cached_epoch, peer, peer_backbone = rows
    assert {row["impl"] for row in rows[:6]} == {"covidjax"}
    assert backbone["time_ratio_vs_none"] == pytest.approx(0.25)
    assert backbone["speedup_vs_none"] == pytest.approx(4)
    assert (none["time_ratio_p10"], none["time_ratio_p90"]) == (pytest.approx(0.6), pytest.approx(1.4))
    assert backbone["predicted_flops_ratio"] == backbone["flops_ratio_vs_none"] == 0.375
    assert backbone["time_ratio_vs_inference"] == pytest.approx(1.25)
    assert inference["time_ratio_vs_none"] == pytest.approx(0.2)
    assert inference["flops_ratio_vs_none"] == 0.25
    assert cached_epoch["flops_ratio_vs_none"] is None
    assert cached["freeze"] == "cached:backbone"
    assert cached["speedup_vs_uncached"] == pytest.approx(50)
    assert cached_epoch["speedup_vs_uncached"] == pytest.approx(250)
    assert (epoch["mode"], epoch["images_per_s"], epoch["speedup_vs_none"]) == ("epoch", pytest.approx(16), None)
    text = "cached:backbone: an epoch of 16 images is 250.0 times as fast as from pixels"
    assert text in freeze.table(rows)
    staircase.write(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert peer["speedup_vs_none"] == peer_backbone["speedup_vs_none"] == peer_backbone["flops_ratio_vs_none"] == 1


@pytest.fixture
def drawn_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start weights without the seconds that JAX compiles their initialisation for."""
    make_variables = strategies.ours.make_variables

    def drawn(case: Case) -> Any:
        random = np.random.default_rng(0)
        return jax.tree.map(
            lambda leaf: jnp.asarray(random.uniform(0.1, 1.0, leaf.shape), leaf.dtype),
            jax.eval_shape(lambda: make_variables(case)),
        )

    monkeypatch.setattr(strategies.ours, "make_variables", drawn)


@pytest.mark.usefixtures("drawn_in_numpy")
@pytest.mark.parametrize("freeze_name", ["cached:until:block2", pytest.param("backbone", marks=pytest.mark.slow)])
def test_an_epoch_takes_every_image_once(freeze_name: str) -> None:
    case = Case(OURS, freeze=freeze_name, options=((strategies.EPOCH_IMAGES, 12),), **SMALL)
    subject = strategies.build(case)
    subject.run(2)
    assert int(subject.carry.step) == int(subject.carry.metrics.steps) == 6
    kind = "features" if freeze_name.startswith("cached") else "image"
    found = {name: len(jax.tree.leaves(value)[0]) for name, value in subject.inputs[0].items()}
    assert found == {kind: 12, "label": 12}


@pytest.mark.usefixtures("drawn_in_numpy")
def test_a_cached_step_gets_what_the_frozen_prefix_gives() -> None:
    case = Case(OURS, freeze="cached", **SMALL)
    subject = strategies.build(case)
    plain = dataclasses.replace(case, freeze="backbone")
    variables = strategies.ours.make_variables(plain)
    recipe = strategies.ours.make_recipe(plain, variables)
    images, _ = strategies.work.batch(plain)
    expected = jax.jit(lambda images: run_prefix(recipe, variables, images))(images.astype(np.float32))
    (batch,) = subject.inputs
    np.testing.assert_allclose(batch["features"], expected, rtol=1e-5, atol=1e-6)
    facts = subject.facts()
    assert facts["feature_bytes"] == 4 * expected.size
    assert facts["predicted_flops"] < 5e3  # of the head alone; the frozen blocks have 5e5


@pytest.mark.slow
def test_command_measures_strategies_in_processes_of_their_own(tmp_path: Path) -> None:
    found = [f"--json={tmp_path}/found.json", f"--csv={tmp_path}/found.csv", f"--plot={tmp_path}/found.png"]
    arguments = "--model=cnn --batch_size=4 --image_size=32 --width=2 --strategies=cached --epoch_images=0 --peers="
    quick = "--samples=1 --min_sample_seconds=0.001 --max_foreign_share=1e9"
    assert call(freeze.main, *arguments.split(), *quick.split(), *found) == 0
    rows = json.loads((tmp_path / "found.json").read_text())
    expected = [("none", "train"), ("cached:backbone", "train"), ("none", "inference")]
    assert [(row["freeze"], row["mode"]) for row in rows] == expected
    assert all(set(row) >= FIELDS and row["step_ms_median"] > 0 and row["error"] == "" for row in rows)
    assert rows[1]["predicted_flops_ratio"] < 0.01
    assert (tmp_path / "found.csv").read_text().startswith("# python benchmarks/freeze.py --model=cnn")
    assert [row["freeze"] for row in read_table(tmp_path / "found.csv")] == [row["freeze"] for row in rows]
    assert (tmp_path / "found.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("model", "cached"), [("cnn", "cached"), ("unet", "cached:until:middle"), ("unet_resnet34", "cached:until:layer4")]
)
def test_what_is_cached_by_default_is_the_backbone_or_the_encoder(model: str, cached: str) -> None:
    names = freeze._strategies(None, Case(OURS, model, batch_size=2, image_size=32))
    assert (names[0], names[-1]) == ("none", cached)
    assert cached.removeprefix("cached:") in names or cached == "cached"
    assert "backbone" in names
