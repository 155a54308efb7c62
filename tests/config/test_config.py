import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from covidjax.config import default_config, flatten, from_json, load, to_json, validate
from covidjax.config.__main__ import page
from covidjax.config.schema import KEYS, PHASE_ONLY
from covidjax.errors import UserError
from covidjax.losses import MASK_LOSSES
from tests.commands import user_error

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.py")


PHASES = (
    ({"epochs": 1, "freeze": ("block1",), "lr_scale": (("head", 0.5),)}, {"steps": 7}),
    ({"optimizer": {"learning_rate": 1e-4, "step_epochs": (2,)}}, {"optimizer": {"learning_rate": (1e-4, 1e-2)}}),
)


def overridden(*overrides: str) -> dict[str, Any]:
    return dict(flatten(load(QUICKSTART, [f"--config.{override}" for override in overrides])))


def refusal(*overrides: str) -> str:
    return user_error(overridden, *overrides)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("dataset.fold=-1", -1),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learning_rate=(1e-5,1e-3)", (1e-5, 1e-3)),
        ("augment.flip=True", True),
        ("dataset.skip_bad=false", False),
        ("dataset.cache_dir=", ""),
        ("freeze=(block1|block2)/conv", "(block1|block2)/conv"),
        ("freeze=('block1', 'block2/norm')", ("block1", "block2/norm")),
        ("batch_norm=(('block1', 'batch'), ('block2', 'running'))", (("block1", "batch"), ("block2", "running"))),
        ("prefix_precision=", ""),
        ("loss.class_weights=(1, 2.5, 3)", (1, 2.5, 3)),
        ("loss.class_weights=(('covid19', 12.0),)", (("covid19", 12.0),)),
        ("dataset.oversample=(('COVID-19', 17), ('normal', 2))", (("COVID-19", 17), ("normal", 2))),
        ("lr_scale=(('block1', 0.01), ('head', 2))", (("block1", 0.01), ("head", 2))),
        ("weight_decays=(('block1', 0.0), ('head', 0.1))", (("block1", 0.0), ("head", 0.1))),
        ("ema_decays=(('head', 0.99),)", (("head", 0.99),)),
        ("optimizer.step_epochs=(3, 6)", (3, 6)),
        ("phases=({'epochs': 2, 'freeze': 'backbone'}, {})", ({"epochs": 2, "freeze": "backbone"}, {})),
        *((f"phases={phases!r}", phases) for phases in PHASES),
    ],
)
def test_an_override_sets_its_key_and_no_other_and_comes_back_from_json(override: str, value: Any) -> None:
    config, key = load(QUICKSTART, [f"--config.{override}"]), override.partition("=")[0]
    changed, untouched = dict(flatten(config)), overridden()
    assert changed.pop(key) == value
    assert changed == {name: old for name, old in untouched.items() if name != key}
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config
    kinds = [{name: type(value) for name, value in flatten(either)} for either in (again, config)]
    assert kinds[0] == kinds[1]
    validate(again)


def test_numbers_keep_the_kind_of_their_default_and_the_last_override_of_a_key_holds() -> None:
    values = overridden("optimizer.learning_rate=1", "ema_decay=0", "batch_size=7", "batch_size=8")
    found = [values[key] for key in ("optimizer.learning_rate", "ema_decay", "batch_size")]
    assert list(map(repr, found)) == ["1.0", "0.0", "8"]


@pytest.mark.parametrize(
    ("set_wrong", "message"),
    [
        (lambda config: setattr(config, "freze", "none"), "config.freze does not exist: did you mean config.freeze?"),
        (lambda config: setattr(config.optimizer, "lr", 1.0), "did you mean config.optimizer.learning_rate?"),
        (lambda config: setattr(config, "phases", {"epochs": 1}), "add a comma, which makes it a tuple of one"),
        (lambda config: setattr(config, "epochs", "ten"), "config.epochs is 'ten': allowed is a whole number"),
        (
            lambda config: config.update({"optimizer": {"weight_decay": "x"}}),
            "weight_decay is 'x': allowed is a number",
        ),
    ],
)
def test_a_program_is_told_of_a_wrong_key_or_value_as_the_command_line(
    set_wrong: Callable[[ConfigDict], None], message: str
) -> None:
    assert message in user_error(set_wrong, default_config())


@pytest.mark.parametrize(
    ("override", "nearest"), [("optimizer.learning_rat=1", "optimizer.learning_rate"), ("batchsize=8", "batch_size")]
)
def test_an_unknown_key_is_refused_with_the_nearest_name(override: str, nearest: str) -> None:
    message = refusal(override)
    assert message.startswith(f"config.{override.partition('=')[0]} does not exist: did you mean config.{nearest}?")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("batch_size=8.0", "a whole number"),
        ("batch_size=true", "a whole number"),
        ("optimizer.learning_rate=fast", "a number"),
        ("optimizer.learning_rate=(1e-3,1e-5)", "a pair (low, high)"),
        ("optimizer.learning_rate=(0.0,1e-3)", "above 0"),
        ("dataset.oversample=(('COVID-19', 1.5),)", "pairs of a class and how often its images count"),
        ("dataset.enhancement=sharpen", "none, clahe"),
        ("batch_norm=eval", "auto, batch, running"),
        ("batch_norm=(('block1', 'eval'),)", "pairs of a stage and one of auto, batch, running"),
        ("weight_decays=(('head', -0.1),)", "pairs of a pattern and a decay from 0"),
        ("ema_decays=(('head', 1),)", "pairs of a pattern and a decay from 0 to 0.99999"),
        ("remat=(1,)", "names of stages"),
        ("augment.flip=1", "true or false"),
        ("optimizer.step_epochs=('a',)", "whole numbers"),
        ("freeze=(1, 2)", "patterns"),
        ("loss.class_weights=('a', 'b')", "numbers"),
        ("dataset.mask_classes=(0, 1)", "names of classes"),
        ("dataset.mask_classes=('lung',)", "2 to 256 different names"),
        ("lr_scale=(('block1', 'x'),)", "pairs of a pattern and a factor"),
        ("model.name=resnet19", "did you mean 'resnet18'?"),
        ("precision=float8", ", ".join(KEYS["precision"].allowed)),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_what_is_allowed(override: str, allowed: str) -> None:
    message = refusal(override)
    assert message.startswith(f"config.{override.partition('=')[0]} is ")
    assert allowed in message


@pytest.mark.parametrize("name", [name for name, key in (KEYS | PHASE_ONLY).items() if key.range_words])
def test_a_value_outside_its_range_is_refused(name: str) -> None:
    key = (KEYS | PHASE_ONLY)[name]
    beyond = [key.low - 1 if math.isfinite(key.low) else key.above, min(2 * key.high, key.below)]
    for value in map(type(key.default), beyond):
        override, said = f"{name}={value}", name
        if name in PHASE_ONLY:
            override, said = f"phases=({{{name!r}: {value}}},)", f"phases[0].{name}"
        assert refusal(override).startswith(f"config.{said} is {value}: allowed is {key.range_words}")


def test_the_page_of_keys_is_current() -> None:
    assert (CONFIGS.parent / "docs" / "config.md").read_text(encoding="utf-8") == page(), "see the top of the page"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed"], "--config.seed has no value"),
        (["optimizer=sgd"], "config.optimizer does not exist: did you mean config.optimizer.name?"),
        (["dataset.channels=2"], "allowed are 1 (gray) and 3 (RGB)"),
        (["batch_size=9", "accumulation_steps=2"], "config.batch_size 9 is not a multiple"),
        (["loss.name=dice"], "config.loss.name is 'dice', a loss of masks, and config.model.name is 'cnn', which"),
        (["checkpoint.best=dice"], "config.checkpoint.best is 'dice', a figure of masks, and config.model.name is"),
        (["loss.name=dice", "model.name=unet", "loss.label_smoothing=0.1"], "which dice does not have"),
        (["loss.name=focal", "loss.label_smoothing=0.1"], "which focal does not have"),
        (["model.name=unet", "augment.mixup=0.2"], "config.augment.mixup is 0.2 and mixes labels of images, but"),
        (["model.name=unet", "dataset.oversample=(('a', 2),)"], "is 'unet', whose images have masks and no class"),
        (["freeze=gradual:3", "phases=({},)"], "config.freeze is 'gradual:3', which makes the phases itself"),
        (["freeze=gradual:3", "epochs=2"], "config.epochs is 2: at least 3 are needed, and 3 more for each"),
        (["freeze=gradual:0"], "allowed is gradual:<k> alone"),
    ],
)
def test_what_cannot_work_together_is_refused(overrides: list[str], message: str) -> None:
    assert message in refusal(*overrides)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("({}, {'epoch': 2})", "config.phases[1].epoch does not exist: did you mean config.phases[1].epochs?"),
        ("({'batch_size': 2},)", "config.phases[0].batch_size does not exist"),
        ("({'optimizer': 'sgd'},)", "did you mean config.phases[0].optimizer.name?"),
        ("({'optimizer.learning_rate': 1e-4},)", "write {'optimizer': {'learning_rate': 1e-4}} instead"),
        ("({'epochs': '2'},)", "config.phases[0].epochs is '2': allowed is a whole number"),
        ("({'epochs': 1}, {'epochs': 1, 'steps': 5})", "config.phases[1] has both epochs and steps: give one of them"),
        ("({'freeze': 'gradual:2'},)", "config.phases[0].freeze is 'gradual:2', which is a run of phases itself"),
        ("({'ema_decays': ()},)", "config.phases[0].ema_decays does not exist"),
        ("(3,)", "config.phases[0] is 3: allowed is a dict"),
        ("{'epochs': 1}", "config.phases is {'epochs': 1}: allowed is a tuple"),
    ],
)
def test_a_wrong_phase_is_refused(phases: str, message: str) -> None:
    assert message in refusal(f"phases={phases}")


def test_a_network_for_masks_may_have_every_loss() -> None:
    for name in MASK_LOSSES:
        assert overridden("model.name=unet", f"loss.name={name}")["loss.name"] == name


def test_a_config_without_a_key_is_refused() -> None:
    config = default_config()
    with config.unlocked():
        del config.augment["shift"]
    with pytest.raises(UserError, match=r"^config\.augment\.shift is missing"):
        validate(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid(path: Path) -> None:
    assert load(str(path), []).keys() == default_config().keys()


@pytest.mark.parametrize(("folder", "root"), [(None, "data/cxr3"), ("/somewhere", "/somewhere/cxr3")])
def test_cxr3_looks_in_the_data_folder(monkeypatch: pytest.MonkeyPatch, folder: str | None, root: str) -> None:
    monkeypatch.delenv("COVIDJAX_DATA_DIR", raising=False)
    if folder:
        monkeypatch.setenv("COVIDJAX_DATA_DIR", folder)
    config = load(f"{CONFIGS / 'cxr3.py'}:cnn", [])
    assert config.dataset.root == root
    assert config.model.name == "cnn"


def test_a_config_file_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    raise ValueError('one\\ntwo')\n")
    with pytest.raises(UserError, match=r"^--config: .*broken\.py:2: ValueError: one two$"):
        load(str(path), [])
    with pytest.raises(UserError, match="there is no file"):
        load(str(tmp_path / "absent.py"), [])
