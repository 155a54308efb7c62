"""`predict` over many files finishes whatever some of them are, and its status says so."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from covidjax import files
from covidjax.metrics import validated
from covidjax.metrics.prediction_table import read_predictions
from launch import evaluate, export, predict
from tests.commands import call, read_table, refusal, write_image

BAD = (3, 57, 58, 119, 199)


def test_bad_files_do_not_stop_the_others(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images, table = tmp_path / "images", tmp_path / "p.csv"
    for number in range(200):
        write_image(images / f"{number:03}.png", seed=number)
    for number in BAD:
        (images / f"{number:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(number))
    flags = (f"--workdir={trained}", f"--images={images}/*.png", f"--output={table}")
    assert call(predict.main, *flags) == 3
    assert "5 of 200 images are bad and were left out: 003.png (" in capfd.readouterr().out
    names = [f"{number:03}.png" for number in range(200) if number not in BAD]
    assert [row["file"] for row in read_table(table)] == names
    assert [row["file"] for row in read_table(tmp_path / "p_bad.csv")] == [f"{number:03}.png" for number in BAD]
    table.unlink()
    message = refusal(capfd, predict.main, *flags, "--strict")
    assert message.startswith("5 of 200 images are bad: ")
    assert not table.exists()


def test_export_says_what_it_wrote_and_refuses_other_endings(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: jax.export writes programs with it")
    assert call(export.main, f"--workdir={trained}", f"--output={tmp_path}/model.zip") == 0
    told = capfd.readouterr().out
    assert "checked: its probabilities are within " in told
    assert (tmp_path / "model.zip").is_file()
    message = refusal(capfd, export.main, f"--workdir={trained}", f"--output={tmp_path}/model.onnx")
    assert "allowed is a name that ends in .zip or .safetensors" in message


def test_calibrated_predictions_have_the_temperature_of_validation_and_its_thresholds(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    flags = (f"--workdir={trained}", f"--images={tmp_path}/images")
    assert call(predict.main, *flags, f"--output={tmp_path}/plain.csv") == 0
    assert call(predict.main, *flags, f"--output={tmp_path}/calibrated.csv", "--calibrated") == 0
    chosen = validated.choose(read_predictions(trained / "predictions_val.csv"))
    assert f"the temperature {chosen.temperature:.3f}, fitted on the validation split" in capfd.readouterr().out
    plain, calibrated = (read_table(tmp_path / f"{name}.csv") for name in ("plain", "calibrated"))
    own, tempered = (
        np.array([[float(row[f"probability_{name}"]) for name in chosen.thresholds] for row in rows])
        for rows in (plain, calibrated)
    )
    np.testing.assert_allclose(tempered, chosen.calibrated(own), rtol=1e-12)
    assert [row["predicted"] for row in calibrated] == [row["predicted"] for row in plain]
    for index, (name, points) in enumerate(chosen.thresholds.items()):
        for point, least in (points or {}).items():
            assert [row[f"{point}_{name}"] for row in calibrated] == [str(int(each >= least)) for each in own[:, index]]


def test_calibration_that_nobody_fitted_is_refused(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "evaluation_val.json").unlink()
    write_image(tmp_path / "a.png", seed=0)
    flags = (f"--workdir={run}", f"--images={tmp_path}/a.png", f"--output={tmp_path}/p.csv", "--calibrated")
    assert "no temperature is fitted, as the validation split was not evaluated" in refusal(capfd, predict.main, *flags)
    assert not (tmp_path / "p.csv").exists()
    message = refusal(capfd, evaluate.main, f"--workdir={run}", "--split=test", "--calibrated")
    assert "no temperature is fitted" in message
    assert files.read_json(run / "run.json")["test_reads"] == []
