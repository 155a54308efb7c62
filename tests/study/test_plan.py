"""What a study refuses before anything runs, and in which order it runs the rest."""

from pathlib import Path

import pytest

from covidjax.study.plan import Study, Trial
from launch import study
from tests.commands import contents, refusal, tiny_config
from tests.study.made import make_study
from tests.support import small_config

GOOD = {"strategies": "none,backbone", "seeds": "0,1"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"strategies": "none,until:block9"}, "--strategies: 'until:block9': freeze 'until:block9': there is no stage"),
        ({"strategies": "none,none"}, "--strategies names 'none' twice: name each once"),
        ({"strategies": "none,,backbone"}, "has an empty part"),
        ({"strategies": "gradual:0"}, "--strategies: 'gradual:0': freeze 'gradual:0': allowed is gradual:<k>"),
        ({"seeds": "0,-1"}, "argument --seeds: '0,-1' is not a list of whole numbers, such as 0,1,2"),
        ({"seeds": str(2**31)}, "config.seed is 2147483648"),
        ({"learning_rates": "1e-3,fast"}, "is not a list of numbers above 0, such as 1e-3,1e-4"),
        ({"config.seed": "3"}, "--config.seed is what --seeds sets for each run: give one of the two"),
        (
            {"learning_rates": "1e-3", "config.optimizer.learning_rate": "1e-3"},
            "--config.optimizer.learning_rate is what --learning_rates sets for each run",
        ),
        ({"config.phases": "({'epochs': 1, 'freeze': 'backbone'},)"}, "config.phases[0] sets freeze, which differs"),
        ({"epochs": "3"}, "unknown argument '--epochs=3': allowed are "),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    flags = [f"--{key}={value}" for key, value in (GOOD | changes).items()]
    config = tiny_config(tmp_path)
    assert expected in refusal(capfd, study.main, config, *flags, f"--workdir={tmp_path / 'study'}")
    assert contents(tmp_path).keys() == {"tiny.py"}


def test_workdir_of_a_run_is_no_place_for_a_study(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    flags = [f"--{key}={value}" for key, value in GOOD.items()]
    message = refusal(capfd, study.main, tiny_config(tmp_path), *flags, f"--workdir={tmp_path}")
    assert message == f"{tmp_path} is the workdir of a run: use another --workdir for a study"
    assert contents(tmp_path).keys() == {"tiny.py", "config.json"}


def test_trials_with_the_same_frozen_prefix_and_weights_follow_each_other(tmp_path: Path) -> None:
    strategies = ("backbone", "none", "last:1", "norm", "until:block1")
    config = small_config("cnn", pretrained="weights.safetensors")
    order = Study(tmp_path, config, strategies, (1e-3, 1e-4), (0, 1)).trials()
    assert [trial.strategy for trial in order[::4]] == ["backbone", "last:1", "none", "norm", "until:block1"]
    assert len(set(order)) == len(order) == 20

    # Random weights differ with the seed, and so do the features of a frozen prefix.
    order = Study(tmp_path, small_config("cnn"), strategies, (1e-3, 1e-4), (0, 1)).trials()
    assert [(trial.strategy, trial.seed) for trial in order[:8:2]] == [
        ("backbone", 0),
        ("last:1", 0),
        ("backbone", 1),
        ("last:1", 1),
    ]


def test_names_of_trials_are_plain_and_stay_apart() -> None:
    assert Trial("until:layer3", 1e-3, 2).name == "until-layer3_lr0.001_seed2"
    assert Trial("norm+last:2", (1e-5, 1e-3), 0).name == "norm+last-2_lr1e-05-0.001_seed0"
    patterns = ["conv.*/kernel$", "conv./kernel$", "conv../kernel", "../stem", "layer1/"]
    names = {Trial(pattern, 1e-3, 0).name for pattern in patterns}
    assert len(names) == len(patterns)
    assert not any("/" in name or ":" in name or name.startswith(".") for name in names)


def test_config_of_a_trial_is_the_shared_one_with_three_values_changed(tmp_path: Path) -> None:
    shared = make_study(tmp_path, ("backbone",), (1e-4,), (7,))
    config = shared.config_of(shared.trials()[0])
    assert (config.freeze, config.optimizer.learning_rate, config.seed) == ("backbone", 1e-4, 7)
    config.freeze, config.optimizer.learning_rate, config.seed = "none", 1e-3, 0
    assert config.to_dict() == shared.config.to_dict()
