"""The recipes of the papers, as their configs have them, and short runs of them on miniatures."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from covidjax import config as configs
from covidjax.config.schema import KEYS
from covidjax.errors import UserError
from covidjax.models.preprocessing import CAFFE, unit
from covidjax.runs import costs
from covidjax.tasks import weighting
from covidjax.train.job import describe_freeze
from covidjax.train.phases import make_phases
from launch import evaluate, train
from tests.commands import call
from tests.support import make_preprocessing

FOLDER = Path(__file__).parents[2] / "configs"
PROFESSED = ("1", "2", "3", "4")
NETWORK = ("model", "loss", "optimizer", "augment", "batch_size", "epochs", "preprocessing")
ENCODER = ("stem", "layer1", "layer2", "layer3", "layer4")
STAGES = (*ENCODER, "decoder", "head")
TWO_RATES = "phases=({'epochs': 1}, {'epochs': 1, 'optimizer': {'learning_rate': 1e-5}})"
PHASES = ((1e-3, 1e-3, 0.7), (8e-9, 6.68e-6, 0.8))  # lowest and highest rate, and where they are reached


def load(spec: str, *overrides: str) -> Any:
    return configs.load(str(FOLDER / spec), [f"--config.{override}" for override in overrides])


@pytest.mark.parametrize("start", ["transfer", "frozen", "fresh"])
def test_li2023_fine_tunes_the_network_that_it_trained(start: str) -> None:
    source, target = load("li2023_pneumonia.py"), load(f"li2023_covid_ct.py:{start}")
    assert [source[key] for key in NETWORK] == [target[key] for key in NETWORK]
    assert (source.dataset.image_size, source.dataset.channels) == (target.dataset.image_size, target.dataset.channels)
    assert bool(target.pretrained) == (start != "fresh")
    assert source.checkpoint.evaluate == target.checkpoint.evaluate == "last"
    job = costs.job_of_shapes(load(f"li2023_covid_ct.py:{start}", "pretrained="), 2)
    recipe = costs.job_of_strategy(job, target.freeze).recipes[0]
    assert recipe.plan.frozen_prefix == (("block1", "block2", "block3", "block4") if start == "frozen" else ())
    assert not recipe.plan.normalised_stages


SPLITS = (
    ("li2023_pneumonia.py", "printed"),
    ("li2023_covid_ct.py", "transfer,printed"),
    ("pandiyan2023.py", "frozen,printed"),
)


@pytest.mark.parametrize(("name", "argument"), SPLITS)
def test_a_printed_form_reads_the_printed_split_and_judges_the_last_epoch(name: str, argument: str) -> None:
    plain = argument.rpartition("printed")[0].removesuffix(",")
    config, other = load(f"{name}:{argument}"), load(f"{name}:{plain}" if plain else name)
    assert config.dataset.root == f"{other.dataset.root}_printed"
    assert config.checkpoint.evaluate == "last"
    changed = {key for key, value in configs.flatten(other) if dict(configs.flatten(config))[key] != value}
    assert changed - {"checkpoint.evaluate"} == {"dataset.root"} | ({"phases"} if "pandiyan" in name else set())


def test_pandiyan2023_trains_by_default_what_its_text_says_and_ends_on_train_and_val() -> None:
    assert configs.to_json(load("pandiyan2023.py")) == configs.to_json(load("pandiyan2023.py:frozen"))
    first, last = make_phases(load("pandiyan2023.py:frozen,printed"), 1984 // 16, (1984 + 248) // 16)
    assert [phase.split for phase in (first, last)] == ["train", "train+val"]
    assert (last.first_step, last.last_step) == (20 * 124, 20 * 124 + 5 * 139)


@pytest.mark.slow
def test_pandiyan2023_has_the_parameters_of_the_papers_table() -> None:
    job = costs.job_of_shapes(load("pandiyan2023.py:all", "dataset.image_size=32"), 2)
    freezes = [load(f"pandiyan2023.py:{reading}").freeze for reading in ("all", "frozen")]
    everything, frozen = (costs.job_of_strategy(job, freeze) for freeze in freezes)
    summary, head = describe_freeze(everything, everything.phases[0])["summary"], frozen.recipes[0]
    assert summary.startswith("42,556,930 of 42,556,930 parameters train; ")
    assert "Keras counts 42,662,274" in summary
    trainable, _ = head.plan.split(job.variables["params"])
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == 4_098
    assert head.plan.batch_norm_stages == ()


@pytest.mark.parametrize("experiment", [*PROFESSED, *(f"{name},as_coded" for name in PROFESSED)])
@pytest.mark.parametrize("classes", [("normal", "pneumonia", "covid19"), ("covid19", "normal", "pneumonia")])
def test_ljung2020_weighs_covid_whatever_the_order_of_the_labels(experiment: str, classes: tuple[str, ...]) -> None:
    labels = np.repeat([classes.index(name) for name in ("normal", "pneumonia", "covid19")], [200, 200, 152])
    found = weighting.class_weights(load(f"ljung2020.py:{experiment}").loss.class_weights, labels, classes)
    if experiment.endswith("as_coded"):
        assert found is None
        return
    assert found is not None
    others, covid = (1, 12) if experiment in ("1", "2") else (552 / 600, 552 / 456)  # balanced
    assert found == pytest.approx([covid if name == "covid19" else others for name in classes])


@pytest.mark.parametrize("experiment", PROFESSED)
def test_ljung2020_is_what_the_paper_prints_and_its_variants_differ_from_it_as_the_header_says(experiment: str) -> None:
    ends = ("", ",as_coded", ",caffe")
    printed, coded, caffe = (dict(configs.flatten(load(f"ljung2020.py:{experiment}{end}"))) for end in ends)
    off = {key for key, value in printed.items() if value == KEYS[key].default}
    augmented = {key: value for key, value in printed.items() if key.startswith("augment.") and key not in off}
    assert augmented == {"augment.rotate": 10, "augment.shift": 0.1}  # its table 3, whose scale of 1/255 is:
    assert make_preprocessing(load(f"ljung2020.py:{experiment}")) == unit(CAFFE)
    rule = {"name": "adam", "learning_rate": 2e-5, "schedule": "plateau", "plateau_factor": 0.7, "plateau_patience": 5}
    assert {key: printed[f"optimizer.{key}"] for key in rule} == rule
    assert (printed["batch_size"], printed["model.head"], printed["checkpoint.evaluate"]) == (8, "paper", "last")
    assert {key: coded[key] for key in printed if printed[key] != coded[key]} == {
        "optimizer.learning_rate": 1e-3,
        "augment.flip": True,
        "augment.brightness": 0.1,
        "loss.class_weights": "none",
    }
    assert {key for key in printed if printed[key] != caffe[key]} == {"preprocessing"}
    assert make_preprocessing(load(f"ljung2020.py:{experiment},caffe")) == CAFFE


def test_ljung2020_best_trains_the_head_and_then_all_at_rates_that_grow_from_stage_to_stage() -> None:
    job = costs.job_of_shapes(load("ljung2020.py:best", "dataset.image_size=32"), 3)
    head, everything = job.recipes
    assert head.plan.first_trained == "head"
    assert everything.plan.frozen_prefix == ()
    rates = {leaf.path.split("/")[0]: leaf.rate for leaf in everything.plan.leaves}
    assert sorted(rates, key=rates.__getitem__) == ["block1", "block2", "block3", "block4", "block5", "head"]
    start, warm = (float(everything.learning_rate(step)) for step in (0, costs.STEPS_PER_EPOCH))
    assert start == 0
    assert warm == pytest.approx(1e-4)
    assert sum(phase.last_step - phase.first_step for phase in job.phases) == 12 * costs.STEPS_PER_EPOCH


@pytest.mark.parametrize("model", ["resnet50", "resnet101", "resnet152"])
def test_wang2020_lowers_its_rate_tenfold_and_counts_covid_17_times(model: str) -> None:
    config = load(f"wang2020.py:{model}")
    assert [phase.optimizer.learning_rate for phase in make_phases(config, 10)] == [1e-4, 1e-5]
    assert config.pretrained == f"torchvision/{model}"
    assert (config.dataset.oversample, config.evaluate_every_steps) == ((("covid19", 17),), 50)


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("spec", ["xu2021_unet.py", "xu2021_unet.py:covid", "xu2021_deeplabv3.py"])
def test_xu2021_trains_the_decoder_then_everything_at_the_rates_of_fastais_three_groups(spec: str) -> None:
    job = costs.job_of_shapes(load(spec, "dataset.image_size=32"), 2)
    assert [recipe.plan.frozen_prefix for recipe in job.recipes] == [ENCODER, ()]
    for phase, recipe, (low, high, peak_at) in zip(job.phases, job.recipes, PHASES, strict=True):
        steps = phase.last_step - phase.first_step
        assert recipe.momentum is not None
        rates, momenta = (np.asarray(each(np.arange(steps))) for each in (recipe.learning_rate, recipe.momentum))
        assert rates[0] == pytest.approx(high / 25, rel=1e-5) and momenta[0] == pytest.approx(0.95)
        assert rates.max() == pytest.approx(high, rel=1e-5) and momenta.min() == pytest.approx(0.85)
        assert rates.argmax() == momenta.argmin() == int(peak_at * steps)
        assert phase.optimizer.beta_2 == 0.99
        groups = np.repeat([low, (low * high) ** 0.5, high], [3, 2, 2])
        expected = dict(zip(STAGES, groups / high, strict=True))
        for path, factor in jax.tree.leaves_with_path(recipe.plan.rates()):
            assert factor == pytest.approx(expected[path[0].key], rel=1e-6)
        decays = {path[0].key: decay for path, decay in jax.tree.leaves_with_path(recipe.plan.weight_decays())}
        assert set(decays.values()) == {1e-2}
        assert set(decays) == set(STAGES if recipe is job.recipes[1] else STAGES[5:])
    augmentation = job.recipes[0].augmentation
    assert (augmentation.affine_probability, augmentation.lighting_probability) == (0.75, 0.75)
    assert job.config.dataset.subset == (0 if spec == "xu2021_unet.py" else 30)


def test_xu2021_has_the_network_and_the_transforms_that_fastai_has_by_default() -> None:
    config = load("xu2021_unet.py")
    assert (config.model.name, config.model.decoder, config.model.attention) == ("unet_resnet34", "fastai", True)
    on = {key: value for key, value in config.augment.items() if value != KEYS[f"augment.{key}"].default}
    assert on == {
        "flip": True,
        "rotate": 10.0,
        "zoom": 0.1,
        "brightness": 0.2,
        "contrast": 0.2,
        "affine_probability": 0.75,
        "lighting_probability": 0.75,
    }


UNKNOWN = (
    "li2023_covid_ct.py:warm",
    "pandiyan2023.py:both",
    "pandiyan2023.py:frozen,",
    "li2023_pneumonia.py:other",
    "ljung2020.py:5",
    "ljung2020.py:best,caffe",
    "ljung2020.py:1,",
    "xu2021_unet.py:ct",
)


@pytest.mark.parametrize("spec", [*UNKNOWN, "wang2020.py:vgg16"])
def test_an_unknown_argument_is_refused_with_those_that_are_known(spec: str) -> None:
    with pytest.raises(UserError, match=f"^[^\n]*{spec}: allowed are [^\n]*$"):
        load(spec)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared miniatures by name."""
    pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed: make setup installs it")
    pytest.importorskip("nibabel", reason="nibabel is not installed: make setup installs it")
    from covidjax.data.datasets.prepare import prepare  # noqa: PLC0415
    from tests.data import trees  # noqa: PLC0415

    base = tmp_path_factory.mktemp("prepared")
    names = (
        "chest_xray_pneumonia",
        "covid_ct",
        "sars_cov2_ct",
        "sars_cov2_ct_printed",
        "covidx/mini",
        "rsna_cohen/boxes",
    )
    return {name: prepare(name, trees.make(name, base / "manual" / name), base / "data") for name in names}


def run(spec: str, root: Path, workdir: Path, *overrides: str, splits: tuple[str, ...] = ("test",)) -> dict[str, Any]:
    """Trains and evaluates by the commands; returns run.json."""
    small = (f"dataset.root={root}", "dataset.image_size=32", "batch_size=4", "epochs=1", *overrides)
    flags = [f"--config.{override}" for override in small]
    assert call(train.main, f"--config={FOLDER / spec}", f"--workdir={workdir}", *flags) == 0
    for split in splits:
        assert call(evaluate.main, f"--workdir={workdir}", f"--split={split}") == 0
        found = json.loads((workdir / f"evaluation_{split}.json").read_text())
        assert np.isfinite(found["loss"]) and 0 <= found["accuracy"] <= 1
        assert np.sum(found["confusion_matrix"]) == found["num_examples"]
    return json.loads((workdir / "run.json").read_text())


@pytest.mark.slow
def test_li2023_runs_from_the_first_data_set_to_the_second(roots: dict[str, Path], tmp_path: Path) -> None:
    source, narrow = tmp_path / "pneumonia", "model.width=2"
    first = run("li2023_pneumonia.py", roots["chest_xray_pneumonia"], source, narrow, splits=("train",))
    assert first["preprocessing"]["scale"] == 1 / 255 and first["preprocessing"]["mean"] == [0.0]
    transfer = run("li2023_covid_ct.py", roots["covid_ct"], tmp_path / "ct", f"pretrained={source}", narrow)
    assert any(note.startswith(f"weights: {source}, latest at step ") for note in transfer["notes"])
    assert any("every parameter filled" in note for note in transfer["notes"])
    assert any(note.startswith("preprocessing, which belongs to the weights: ") for note in transfer["notes"])
    report = (source / "report.html").read_text()
    assert all(title in report for title in ("Loss", "Accuracy", "Split train"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "name", "overrides", "splits"),
    [
        ("ljung2020.py:3", "covidx/mini", (), ("test",)),
        ("pandiyan2023.py:frozen", "sars_cov2_ct", (), ("train", "val", "test")),
        ("pandiyan2023.py:all", "sars_cov2_ct", (), ("train", "val", "test")),
        (
            "pandiyan2023.py:frozen,printed",
            "sars_cov2_ct_printed",
            ("phases=({'epochs': 1}, {'epochs': 1, 'split': 'train+val'})",),
            ("train", "val", "test"),
        ),
        ("wang2020.py:resnet50", "rsna_cohen/boxes", (TWO_RATES,), ("test",)),
    ],
)
def test_recipe_runs_on_its_data_set(
    roots: dict[str, Path], tmp_path: Path, spec: str, name: str, overrides: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    found = run(spec, roots[name], tmp_path / "run", "pretrained=", *overrides, splits=splits)
    if name == "covidx/mini":
        assert list(found["data"]["train"]["classes"]) == ["normal", "pneumonia", "covid19"]
