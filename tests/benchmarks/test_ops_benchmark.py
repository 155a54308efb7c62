"""benchmarks/ops.py compares formulations that give the same, at the shapes that a network has."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import ops as command
from benchmarks.case import Case
from benchmarks.formulations import layers, pairs
from tests.commands import read_table

UNET = Case("flax", "unet", batch_size=2, image_size=32, width=4)


def test_layers_are_those_of_the_network() -> None:
    counts: dict[str, int] = {}
    for (name, *_), count in layers(UNET).items():
        counts[name] = counts.get(name, 0) + count
    # Two convolutions a level on the way down, in the middle and up, and the last one; a norm behind all but that.
    assert counts == {"convolution": 19, "batch_norm": 18, "max_pool": 4, "transposed_convolution": 4}
    assert all(count == 1 for (name, *_), count in layers(UNET).items() if name == "max_pool")


@pytest.mark.slow
def test_both_formulations_of_a_pair_give_the_same() -> None:
    found = list(pairs(UNET))
    assert {pair.direction for pair in found} == {
        "outputs", "input_gradient", "kernel_gradient", "with gradients"
    }  # fmt: skip
    for pair in found:
        plain, ours = (jax.tree.leaves(way(*pair.arrays)) for way in (pair.plain, pair.ours))
        for one, other in zip(plain, ours, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * max(1, np.abs(one).max()), err_msg=str(pair))


@pytest.mark.slow
def test_rows_are_written_with_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model=cnn", "--width=4", "--batch_size=2", "--image_size=16", f"--json={tmp_path / 'ops.json'}"]
    arguments += [f"--csv={tmp_path / 'ops.csv'}", "--samples=1", "--min_sample_seconds=0.001", "--warm_up_steps=1"]
    command.main([*arguments, "--max_foreign_share=1"])
    rows = json.loads((tmp_path / "ops.json").read_text())
    assert {row["operation"] for row in rows} == {"convolution", "max_pool", "batch_norm"}
    assert all(row["speedup"] == row["plain_ms"] / row["ours_ms"] > 0 and row["samples"] == 1 for row in rows)
    assert (tmp_path / "ops.csv").read_text().startswith("# python benchmarks/ops.py --model=cnn")
    assert len(read_table(tmp_path / "ops.csv")) == len(rows)
    assert "of the whole network:" in capsys.readouterr().out
