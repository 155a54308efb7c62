import dataclasses
from typing import Any

import pytest

from covidjax import optim
from covidjax.config import from_json, to_json
from covidjax.errors import UserError
from covidjax.train.phases import Phase, average_notes, make_phases, phase_at
from tests.support import small_config


def tiny_config(**changes: Any) -> Any:
    """Stages block1, block2, head."""
    return small_config("cnn", model__width=2, model__num_blocks=2, **changes)


def rate_of(phase: Phase, step: int) -> float:
    schedule = optim.learning_rate_schedule(phase.optimizer, phase.schedule_steps, steps_per_epoch=10)
    return float(schedule(step - phase.schedule_start))


def test_phases_follow_one_another_and_change_only_what_they_name() -> None:
    config = tiny_config(
        epochs=3,
        freeze="backbone",
        lr_scale=(("head", 2),),
        phases=(
            {"epochs": 2},
            {"freeze": ("block1",), "optimizer": {"learning_rate": 1e-4}},
            {"epochs": 1, "freeze": "none", "batch_norm": "running", "lr_scale": (), "optimizer": {"name": "sgd"}},
        ),
    )
    first, second, third = made = make_phases(config, steps_per_epoch=10)
    assert [(phase.first_step, phase.last_step) for phase in made] == [(0, 20), (20, 50), (50, 60)]
    assert [(phase.freeze, phase.settings.batch_norm) for phase in made] == [
        ("backbone", "auto"),
        (("block1",), "auto"),
        ("none", "running"),
    ]
    assert first.settings.lr_scale == second.settings.lr_scale == (("head", 2.0),) and third.settings.lr_scale == ()
    rules = [(phase.optimizer.name, phase.optimizer.learning_rate) for phase in made]
    assert rules == [("adam", 1e-3), ("adam", 1e-4), ("sgd", 1e-3)]
    assert second.optimizer.to_dict() == config.optimizer.to_dict() | {"learning_rate": 1e-4}


def test_a_boundary_belongs_to_the_phase_that_it_ends() -> None:
    phases = make_phases(tiny_config(phases=({"epochs": 2}, {"epochs": 1})), steps_per_epoch=10)
    assert [phase_at(phases, step).index for step in (0, 1, 20, 21, 30)] == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match="step 31 lies beyond the 30 steps"):
        phase_at(phases, 31)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 3, "freeze": "backbone"}, [("backbone", 0, 30)]),
        ({"phases": ({"steps": 7}, {"epochs": 1})}, [("none", 0, 7), ("none", 7, 17)]),
        ({"freeze": "gradual:2", "epochs": 7}, [("last:1", 0, 20), ("last:2", 20, 40), ("none", 40, 70)]),
        ({"freeze": "gradual:1", "epochs": 3}, [("last:1", 0, 10), ("last:2", 10, 20), ("none", 20, 30)]),
        ({"freeze": "gradual:2", "epochs": 4}, [("last:1", 0, 20), ("last:2", 20, 40)]),
        ({"freeze": "gradual:2", "epochs": 3}, [("last:1", 0, 20), ("last:2", 20, 30)]),
        ({"freeze": "gradual:3", "epochs": 3}, [("last:1", 0, 30)]),
    ],
    ids=str,
)
def test_phases_take_their_steps_and_gradual_frees_stage_by_stage(changes: dict[str, Any], expected: list[Any]) -> None:
    phases = make_phases(tiny_config(**changes), steps_per_epoch=10)
    assert [(phase.freeze, phase.first_step, phase.last_step) for phase in phases] == expected
    assert [phase.index for phase in phases] == [*range(len(expected))]


def test_a_schedule_restarts_or_goes_on_as_its_phase_says() -> None:
    goes_on = {"optimizer": {"schedule_from": "previous"}}
    phases = ({"epochs": 1}, {"epochs": 2, **goes_on}, {"steps": 5, **goes_on}, {"epochs": 1}, {"epochs": 3, **goes_on})
    config = tiny_config(optimizer__schedule="one_cycle", phases=phases)
    made = make_phases(config, steps_per_epoch=10)
    assert [(phase.schedule_start, phase.schedule_steps) for phase in made] == [(0, 35)] * 3 + [(35, 40)] * 2
    assert rate_of(made[1], 10) == rate_of(made[0], 10)
    assert rate_of(made[3], 35) == rate_of(made[0], 0)
    # Without a phase before it a schedule starts.
    config = tiny_config(optimizer__schedule_from="previous", phases=({"epochs": 1}, {"epochs": 2}))
    found = [(phase.schedule_start, phase.schedule_steps) for phase in make_phases(config, steps_per_epoch=10)]
    assert found == [(0, 30)] * 2


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"learning_rate": 1e-4}, "optimizer.learning_rate is 0.0001, but 0.001 in"),
        ({"learning_rate": (1e-5, 1e-3)}, r"optimizer.learning_rate is \(1e-05, 0.001\), but 0.001 in"),
        ({"name": "sgd"}, "optimizer.name is 'sgd', but 'adam' in"),
        ({"schedule": "cosine"}, "optimizer.schedule is 'cosine', but 'constant' in"),
    ],
)
def test_a_schedule_goes_on_only_under_the_same_optimizer(section: dict[str, Any], told: str) -> None:
    config = tiny_config(phases=({}, {"optimizer": {"schedule_from": "previous", **section}}))
    with pytest.raises(UserError, match=rf"^config\.phases\[1\]: {told} the phase before") as caught:
        make_phases(config, steps_per_epoch=10)
    assert "\n" not in str(caught.value)


def test_of_a_pair_of_rates_the_schedule_runs_on_the_higher() -> None:
    config = tiny_config(optimizer__schedule="cosine", phases=({}, {"optimizer": {"learning_rate": (1e-5, 1e-3)}}))
    plain, spread = make_phases(config, steps_per_epoch=10)
    assert plain.settings.rate_spread == 1.0
    assert spread.settings.rate_spread == pytest.approx(0.01)
    assert spread.optimizer == plain.optimizer
    assert rate_of(spread, spread.first_step) == rate_of(plain, plain.first_step) == pytest.approx(1e-3)


def test_a_plateau_stops_at_its_lowest_rate_under_a_pair_of_rates() -> None:
    section = {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.1, "plateau_min_learning_rate": 5e-4}
    config = tiny_config(phases=({"optimizer": section | {"learning_rate": (1e-5, 1e-3)}},))
    (phase,) = make_phases(config, steps_per_epoch=10)
    state = optim.plateau_init()
    for loss in (1.0, 1.0, 1.0):
        state = optim.plateau_update(state, loss, phase.optimizer)
    assert float(state.scale) == pytest.approx(0.5)


def test_a_phase_gives_its_plan_every_setting_of_the_config() -> None:
    config = tiny_config(
        freeze="last:2",
        batch_norm=(("block1", "batch"),),
        lr_scale=(("block2", 0.5),),
        weight_decays=(("head", 0.25),),
        ema_decay=0.9,
        ema_decays=(("head", 0.99),),
        optimizer__weight_decay=0.125,
        optimizer__learning_rate=(2.0**-8, 2.0**-4),
    )
    (phase,) = make_phases(config, steps_per_epoch=10)
    leaves = {"block1": {"kernel": 1}, "block2": {"kernel": 1}, "head": {"kernel": 1}}
    variables = {"params": leaves, "batch_stats": {"block1": {"mean": 1}, "block2": {"mean": 1}}}
    plan = phase.plan(variables, ("block1", "block2", "head"))
    assert [tuple(leaf) for leaf in plan.leaves] == [
        ("block1/kernel", False, 0.0, 0.0, 0.0),
        ("block2/kernel", True, 0.25 * 0.5, 0.125, 0.9),
        ("head/kernel", True, 1.0, 0.25, 0.99),
    ]
    assert plan.batch_norm_stages == ("block1",)


def test_phases_of_a_config_from_json_are_the_same_and_can_be_keys() -> None:
    config = tiny_config(
        freeze=("block1",),
        batch_norm=(("block1", "batch"),),
        weight_decays=(("head", 0.25),),
        ema_decays=(("head", 0.99),),
        phases=({"steps": 3}, {"optimizer": {"learning_rate": (1e-5, 1e-3)}, "lr_scale": (("head", 2),)}),
    )
    phases, again = (make_phases(each, steps_per_epoch=10) for each in (config, from_json(to_json(config))))
    assert phases == again
    assert hash(phases) == hash(again)
    assert dataclasses.replace(phases[0], index=5) != phases[0]


def test_phase_shorter_than_its_moving_average_looks_back_is_told() -> None:
    config = tiny_config(
        ema_decays=(("head", 0.9),),
        phases=({"steps": 9}, {"steps": 10}, {"steps": 99, "ema_decay": 0.99}, {"steps": 15, "ema_decay": 0.0}),
    )
    notes = average_notes(make_phases(config, steps_per_epoch=10))
    assert [note[:32] for note in notes] == ["phase 0 has 9 steps, fewer than ", "phase 2 has 99 steps, fewer than"]
    assert "the 10 that a moving average of decay 0.9 looks back" in notes[0]
    assert average_notes(make_phases(tiny_config(steps=1), steps_per_epoch=1)) == []
