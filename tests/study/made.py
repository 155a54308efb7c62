"""A made-up study: five strategies and three seeds of a network that was never trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covidjax.study.plan import Study, Trial
from covidjax.study.results import Result
from tests.support import small_config

# strategy: accuracy, seconds, MiB, parameters that train
ARMS = {
    "none": (0.842, 754.0, 612.0, 11_178_051),
    "until:layer2": (0.846, 402.0, 318.0, 10_494_979),
    "until:layer3": (0.837, 261.0, 205.0, 8_395_267),
    "norm": (0.801, 588.0, 540.0, 11_139),
    "backbone": (0.741, 9.4, 96.0, 1_539),
}
EPOCHS = 20


def make_study(
    workdir: Path,
    strategies: Sequence[str] = tuple(ARMS),
    rates: Sequence[float] = (1e-3,),
    seeds: Sequence[int] = (0, 1, 2),
) -> Study:
    return Study(workdir, small_config("resnet18"), tuple(strategies), tuple(rates), tuple(seeds))


def make_result(trial: Trial, workdir: str = "", **figures: float) -> Result:
    """A finished run; figures replace those of ARMS."""
    accuracy, seconds, mebibytes, trained = ARMS[trial.strategy]
    assert isinstance(trial.learning_rate, float)
    random = np.random.default_rng((trial.seed, list(ARMS).index(trial.strategy), int(1e6 * trial.learning_rate)))
    # A seed shifts all strategies alike: that is what pairing removes.
    shift = float(np.random.default_rng(trial.seed).normal(0, 0.015))
    reached = accuracy + shift + float(random.normal(0, 0.004)) - 0.02 * (trial.learning_rate < 1e-3)
    epochs = [float(epoch) for epoch in range(1, EPOCHS + 1)]
    rise = [0.4 + (reached - 0.4) * (1 - np.exp(-epoch / 4)) + float(random.normal(0, 0.012)) for epoch in epochs]
    spent = seconds * (1 + 0.04 * float(random.normal()))
    measured = {
        "trained_parameters": trained,
        "total_parameters": 11_178_051,
        "cost_seconds": spent,
        "total_seconds": spent + (21.0 if trial.seed == 0 else 0.4),
        "predicted_share": seconds / ARMS["none"][1],
        "train_seconds": spent,
        "feature_seconds": 0.0,
        "compile_seconds": 21.0 if trial.seed == 0 else 0.4,
        "peak_bytes": mebibytes * 2**20,
        "temporary_bytes": 0.6 * mebibytes * 2**20,
        "optimizer_bytes": 8.0 * trained,
        "best_epoch": 17,
        "val_accuracy": reached,
        "val_accuracy_low": reached - 0.04,
        "val_accuracy_high": reached + 0.036,
        "val_loss": 1.25 - reached,
        "val_macro_auroc": 0.12 + reached,
    }
    note = "stem, layer1, layer2, layer3, layer4 run once for 768 training images; 3.1 MiB on the device"
    return Result(
        trial=trial,
        status="finished",
        message="",
        workdir=workdir or f"runs/{trial.name}",
        device="cpu",
        features=note if trial.strategy == "backbone" else "not cached (the first stage trains)",
        notes=("warning: 9 of 10 parameters are frozen at random values",) if trial.strategy == "backbone" else (),
        figures={**measured, **figures},
        curves={"accuracy": (epochs, rise), "loss": (epochs, [1.3 - value for value in rise])},
        test={},
        test_reads=(),
    )
