"""The runs of a study: their order, their names and their configs."""

from pathlib import Path

from covidjax.study.plan import Study, Trial, check
from tests.commands import user_error
from tests.support import small_config


def test_trials_with_the_same_frozen_prefix_and_weights_follow_each_other(tmp_path: Path) -> None:
    strategies = ("backbone", "none", "last:1", "norm", "until:block1")
    config = small_config("cnn", pretrained="weights.safetensors")
    order = Study(tmp_path, config, strategies, (1e-3, 1e-4), (0, 1)).trials()
    assert [trial.strategy for trial in order[::4]] == ["backbone", "last:1", "none", "norm", "until:block1"]
    assert len(set(order)) == len(order) == 20

    # Random weights differ with the seed, and so do the features of a frozen prefix.
    order = Study(tmp_path, small_config("cnn"), strategies, (1e-3, 1e-4), (0, 1)).trials()
    expected = [(strategy, seed) for seed in (0, 1) for strategy in ("backbone", "last:1")]
    assert [(trial.strategy, trial.seed) for trial in order[:8:2]] == expected


def test_strategy_that_is_a_tuple_of_patterns_is_one_in_the_config_of_its_run(tmp_path: Path) -> None:
    study = Study(tmp_path, small_config("cnn"), ("('block1', 'block2')", "(block1|block2)"), (1e-3,), (0,))
    found = {trial.strategy: study.config_of(trial).freeze for trial in study.trials()}
    assert found == {"('block1', 'block2')": ("block1", "block2"), "(block1|block2)": "(block1|block2)"}


def test_a_study_of_runs_that_train_on_val_is_refused_as_it_compares_by_validation(tmp_path: Path) -> None:
    config = small_config("cnn", phases=({"split": "train+val"},), checkpoint__evaluate="last")
    assert "compares by validation" in user_error(check, Study(tmp_path, config, ("none",), (1e-3,), (0,)))


def test_names_of_trials_are_plain_and_stay_apart() -> None:
    assert Trial("until:layer3", 1e-3, 2).name == "until-layer3_lr0.001_seed2"
    assert Trial("norm+last:2", (1e-5, 1e-3), 0).name == "norm+last-2_lr1e-05-0.001_seed0"
    patterns = ["conv.*/kernel$", "conv./kernel$", "conv../kernel", "../stem", "layer1/"]
    names = {Trial(pattern, 1e-3, 0).name for pattern in patterns}
    assert len(names) == len(patterns)
    assert not any("/" in name or ":" in name or name.startswith(".") for name in names)
