"""`predict` over many files finishes whatever some of them are, and its status says so."""

from pathlib import Path

import pytest

from launch import export, predict
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
