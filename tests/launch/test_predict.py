"""Prediction of new images from the shell, with a classifier that trained for one epoch.

That of masks: test_segmentation.py.
"""

from pathlib import Path

import numpy as np
import pytest

from covidjax import files
from launch import predict
from tests.commands import call, contents, read_table, write_image

IMAGES = ("a.png", "b.png", "more/c.png")
USE = "Research use only - not for clinical decisions."


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(IMAGES):
        write_image(tmp_path / "images" / name, seed, size=20 + seed)
    return tmp_path / "images"


def test_classifier_writes_a_table_and_leaves_the_run_alone(
    capsys: pytest.CaptureFixture[str], trained: Path, images: Path, tmp_path: Path
) -> None:
    before, output = contents(trained), tmp_path / "predictions.csv"
    assert call(predict.main, f"--workdir={trained}", f"--images={images}", f"--output={output}") == 0
    assert contents(trained) == before
    rows, classes = read_table(output), list(files.read_json(trained / "run.json")["data"]["train"]["classes"])
    assert [row["file"] for row in rows] == list(IMAGES)
    for row in rows:
        probabilities = [float(row[f"probability_{name}"]) for name in classes]
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == classes[int(np.argmax(probabilities))]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 images; checkpoint of step 6"
    assert said[-2:] == [f"table: {output}", USE]
