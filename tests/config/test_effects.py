"""A key that was set and that nothing reads is named; a config of the repository has none."""

from pathlib import Path

import pytest

from covidjax.config import load
from covidjax.config.effects import without_effect
from covidjax.errors import UserError
from covidjax.models import MODELS, SOME_HAVE, build, options
from tests.support import small_config

CONFIGS = Path(__file__).parents[2] / "configs"
ARGUMENTS = {
    "cxr3": ("cnn", "resnet18", "natural"),
    "li2023_covid_ct": ("transfer", "frozen", "fresh", "transfer,printed"),
    "li2023_pneumonia": ("printed",),
    "ljung2020": ("1", "2", "3", "4", "1,as_coded", "4,as_coded", "1,caffe", "best"),
    "lungseg": ("unet", "unet_resnet18"),
    "pandiyan2023": ("frozen", "all", "frozen,printed"),
    "xu2021_unet": ("covid",),
    "wang2020": ("resnet50", "resnet101", "resnet152"),
}
SPECS = [
    f"{path.name}{argument and ':'}{argument}"
    for path in sorted(CONFIGS.glob("*.py"))
    for argument in ("", *ARGUMENTS.get(path.stem, ()))
]
EVERY = (
    "phases=({'epochs': 1, 'freeze': 'none', 'optimizer': {'learning_rate': 1e-4}}, "
    "{'steps': 5, 'freeze': 'norm', 'optimizer': {'learning_rate': 1e-5}})"
)


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_of_the_repository_sets_nothing_in_vain(spec: str) -> None:
    assert without_effect(load(str(CONFIGS / spec), [])) == []


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            [EVERY, "freeze=backbone"],
            [
                "epochs (every phase sets its own)",
                "freeze (every phase sets its own)",
                "optimizer.learning_rate (every phase sets its own)",
            ],
        ),
        (["phases=({}, {'freeze': 'none'})", "freeze=backbone"], []),
        (
            ["phases=({'optimizer': {'schedule': 'constant', 'warmup_epochs': 1.0}},)"],
            [
                "optimizer.schedule (every phase sets its own)",
                "phases[0].optimizer.warmup_epochs (optimizer.schedule is 'constant')",
            ],
        ),
        (["model.name=resnet18", "model.width=32"], ["model.width (resnet18 has none)"]),
        (["model.width=32", "model.num_blocks=2", "model.pooling=max"], []),
        (["model.name=vgg16", "model.pooling=max", "model.head=paper"], ["model.pooling (vgg16 has none)"]),
        (
            ["optimizer.momentum=0.5", "optimizer.nesterov=true"],
            ["optimizer.momentum (optimizer.name is 'adam')", "optimizer.nesterov (optimizer.name is 'adam')"],
        ),
        (
            ["optimizer.name=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"],
            ["optimizer.nesterov (optimizer.momentum is 0)"],
        ),
        (
            ["optimizer.plateau_patience=3", "optimizer.step_factor=0.5"],
            [
                "optimizer.plateau_patience (optimizer.schedule is 'one_cycle')",
                "optimizer.step_factor (optimizer.schedule is 'one_cycle')",
            ],
        ),
        (
            ["dataset.name=folder", "dataset.root=there", "dataset.num_images=30", "dataset.seed=4"],
            ["dataset.num_images (dataset.name is 'folder')", "dataset.seed (dataset.name is 'folder')"],
        ),
        (
            ["dataset.num_images=30", "dataset.root=there", "dataset.fold=2"],
            ["dataset.fold (the phantom has no files)", "dataset.root (the phantom has no files)"],
        ),
        (["dataset.mask_classes=('background', 'lung')"], ["dataset.mask_classes (cnn labels whole images)"]),
        (
            ["loss.focal_gamma=1", "loss.class_weights=balanced"],
            ["loss.focal_gamma (loss.name is 'softmax_cross_entropy')"],
        ),
        (
            ["ensemble.mix=logits", "model.stem=fold"],
            ["ensemble.mix (model.name is 'cnn')", "model.stem (pretrained is '')"],
        ),
    ],
)
def test_keys_that_nothing_reads_are_named_with_their_reason(overrides: list[str], named: list[str]) -> None:
    config = load(str(CONFIGS / "quickstart.py"), [f"--config.{override}" for override in overrides])
    assert without_effect(config) == named


VALUES = {
    "width": 8,
    "num_blocks": 2,
    "normalisation": "none",
    "pooling": "max",
    "head": "paper",
    "blocks": 4,
    "arrangement": "keras",
    "upsampling": "bilinear",
    "attention": True,
    "decoder": "fastai",
    "stochastic_depth": 0.5,
}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in MODELS.registered])
def test_a_network_changes_with_the_keys_that_it_has_and_with_no_other(name: str) -> None:
    plain = build(small_config(name).model, 3, "float32")
    assert set(VALUES) == set(SOME_HAVE)
    for option, value in VALUES.items():
        try:
            changed = build(small_config(name, **{f"model__{option}": value}).model, 3, "float32")
        except UserError:
            continue  # refused is told as well
        assert (changed != plain) == (option in options(name)), option
