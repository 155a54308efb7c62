"""A mistake at the keyboard ends a command with status 2 and one line that says what is allowed; nothing is written."""

import re
from pathlib import Path

import numpy as np
import pytest

from covidjax import models
from launch import convert, evaluate, find_lr, freeze, predict, study, sweep, train
from tests.commands import ROOT, Main, contents, refusal, write_image
from tests.weights.made_files import write

BACKBONE, RATE = "--config.freeze=backbone", "--config.optimizer.learning_rate"
# What each command is given before the mistake; of an argument that is there twice the last holds.
SOUND: dict[Main, str] = {
    train.main: "{config} --workdir=run",
    evaluate.main: "--workdir={trained} --split=test",
    predict.main: "--workdir={trained} --images=images",
    study.main: "{config} --workdir=run --strategies=none,backbone --seeds=0,1",
    sweep.main: f"{{config}} --workdir=run {BACKBONE}",
    find_lr.main: "{config} --workdir=run",
    freeze.main: "{config}",
    convert.main: "--pretrained=strange.pth",
}
ENSEMBLE = f"--config={ROOT / 'configs' / 'ensemble.py'}"
IS_ENSEMBLE = "config.model.name is 'ensemble', and launch/"
MISTAKES: list[tuple[Main, str, str]] = [
    (train.main, "--steps=3", "unknown argument '--steps=3': allowed are --config, --help, --workdir"),
    (train.main, "--config.epochs", "config.epochs has no value"),
    (train.main, "--config.epoch=1", "config.epoch does not exist: did you mean config.epochs?"),
    (train.main, "--config.dataset.name=folder", "config.dataset.root is empty"),
    (train.main, "--config.batch_size=25", "config.batch_size 25 exceeds the 24 training images"),
    (train.main, "--config.freeze=layer9", "'layer9' matches no parameter: the stages are block1, block2, head"),
    (train.main, "--config.freeze=until:layer9", "there is no stage 'layer9': allowed are block1, block2, head"),
    (train.main, "--config.freeze=.*", "'.*' leaves nothing to train: the stages are block1, block2, head"),
    (train.main, "--config.phases=({'epochs': 1}, {'epochs': 1, 'freeze': 'x'})", "'x' matches no parameter"),
    (train.main, "--config.loss.class_weights=(1.0, 2.0)", "class_weights"),
    (train.main, "--config.features=on", "config.features is on, but no phase begins with frozen stages"),
    (train.main, f"{BACKBONE} --config.features=on --config.augment.flip=true", "augmentation changes every image"),
    (evaluate.main, "--checkpoint=17", "there is no checkpoint 17 in {trained}: use best, latest or one of 6"),
    (evaluate.main, "--checkpoint=newest", "'newest' is none of best, latest and the number of a step"),
    (evaluate.main, "--split=training", "invalid choice: 'training'"),
    (evaluate.main, "--steps=3", "unrecognized arguments: --steps=3"),
    (evaluate.main, "--workdir=images", "there is no images/config.json: is this the workdir of a run?"),
    (evaluate.main, "--workdir=missing", "there is no missing/config.json: is this the workdir of a run?"),
    (predict.main, "--output=p.csv --checkpoint=17", "there is no checkpoint 17"),
    (predict.main, "--output=p.csv --tile=50", "the tile is 50 pixels: allowed are multiples of 32"),
    (predict.main, "--output=p.csv --spacing=5;1", "is not of the form 5,0.7,0.7"),
    (predict.main, "--output=p.csv --overlap=8", "--overlap is that of tiles: give --tile as well"),
    (
        predict.main,
        "--output=p.csv --tile=64",
        "cnn labels whole images: --overlays, --tile, --spacing and",
    ),
    (predict.main, "--output=folder", "--output is folder: name the table that is to be written, such as"),
    (predict.main, "", "the following arguments are required: --output"),
    (study.main, "--strategies=none,until:block9", "--strategies: 'until:block9': freeze 'until:block9': there is no"),
    (study.main, "--strategies=none,none", "--strategies names 'none' twice: name each once"),
    (study.main, "--strategies=none,,backbone", "has an empty part"),
    (study.main, "--strategies=gradual:0", "'gradual:0': freeze 'gradual:0': allowed is gradual:<k>"),
    (study.main, "--seeds=0,-1", "argument --seeds: '0,-1' is not a list of whole numbers, such as 0,1,2"),
    (study.main, f"--seeds={2**31}", "config.seed is 2147483648"),
    (study.main, "--learning_rates=1e-3,fast", "is not a list of numbers above 0, such as 1e-3,1e-4"),
    (study.main, "--config.seed=3", "--config.seed is what --seeds sets for each run: give one of the two"),
    (study.main, f"--learning_rates=1e-3 {RATE}=1e-3", f"{RATE} is what --learning_rates sets for each run"),
    (study.main, "--config.phases=({'epochs': 1, 'freeze': 'norm'},)", "config.phases[0] sets freeze, which differs"),
    (study.main, "--workdir={trained}", "{trained} is the workdir of a run: use another --workdir for a study"),
    (study.main, "--epochs=3", "unknown argument '--epochs=3': allowed are "),
    (sweep.main, "--learning_rates=0", "--learning_rates is 0.0: allowed is above 0"),
    (sweep.main, "--learning_rates=1e-3,x", "--learning_rates is '1e-3,x': allowed are numbers with commas between"),
    (sweep.main, "--weight_decays=-1", "--weight_decays is -1.0: allowed is from 0"),
    (sweep.main, "--class_weights=even", "--class_weights is 'even': allowed are none and balanced"),
    (sweep.main, "--config.model.name=unet", "a sweep is of heads that label whole images, and unet answers with"),
    (find_lr.main, "--steps=3", "--steps is 3: allowed is from 20"),
    (find_lr.main, "--low=low", "argument --low: invalid float value: 'low'"),
    (freeze.main, "--strategies=until:block7", "there is no stage 'block7'"),
    (freeze.main, "--strategies=cached:none", "first stage trains"),
    (freeze.main, "--strategies=,", "',' has an empty part"),
    (freeze.main, "--strategies=('block1'", "has a bracket or a quotation mark without its other half"),
    (freeze.main, "--classes=0", "--classes is 0"),
    (freeze.main, "--config.dataset.name=folder --config.dataset.root=missing", "--classes"),
    (freeze.main, "--json=missing/costs.json", "--json: there is no folder"),
    (convert.main, "--output=ours.h5", "ends in .safetensors"),
    (convert.main, "--output=ours.safetensors --pretrained=keras/resnet51", "keras/resnet50"),
    (convert.main, "--output=ours.safetensors --pretrained=missing.pth", "there is no weight file"),
    (convert.main, "", "--output"),
    (find_lr.main, ENSEMBLE, IS_ENSEMBLE),
    (sweep.main, ENSEMBLE, IS_ENSEMBLE),
    (study.main, ENSEMBLE, IS_ENSEMBLE),
    (freeze.main, ENSEMBLE, IS_ENSEMBLE),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image and with weights of no network that is known."""
    folder = tmp_path_factory.mktemp("place")
    write_image(folder / "images" / "a.png", seed=0)
    write(folder / "strange.pth", {"encoder.weight": np.zeros((2, 2, 1, 1), np.float32)})
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if content is not None}


@pytest.mark.parametrize(
    ("main", "mistake", "expected"), MISTAKES, ids=[f"{main.__module__} {mistake}" for main, mistake, _ in MISTAKES]
)
def test_mistake_is_one_line_that_says_what_is_allowed_and_writes_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path, config: str, trained: Path,
    main: Main, mistake: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    before = files_in(place), files_in(trained)
    given = f"{SOUND[main]} {mistake}".replace("{config}", config).replace("{trained}", str(trained)).strip()
    assert expected.replace("{trained}", str(trained)) in refusal(capfd, main, *re.split(r" (?=--)", given))
    assert (files_in(place), files_in(trained)) == before


def test_a_file_of_no_network_is_refused(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr(models, "NAMES", models.NAMES[:3])  # the large ones take a second each to look at
    message = refusal(
        capfd, convert.main, f"--pretrained={place / 'strange.pth'}", f"--output={place / 'o.safetensors'}"
    )
    assert "has the names of no network here: found " in message
    assert not (place / "o.safetensors").exists()


def test_argument_that_is_missing_is_named(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    assert "--config" in refusal(capfd, train.main, f"--workdir={tmp_path / 'run'}")
    assert "--workdir" in refusal(capfd, train.main, config)
    assert contents(tmp_path) == {}
