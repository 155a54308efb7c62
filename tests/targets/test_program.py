"""What a target is, whether a program fits it, and how fast it can be at most."""

from typing import Any

import pytest

from covidjax.errors import UserError
from covidjax.targets import Program, Target, largest_batch, predicted_floor, target_of, usable_bytes
from covidjax.targets.program import FRACTION
from tests.targets.test_hlo import TPU


@pytest.fixture(autouse=True)
def _usual_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FRACTION, raising=False)


def program(target: Target, temporary: int = 0, text: str = "", refused: str = "") -> Program:
    memory = {"temp": temporary, "argument": 300, "output": 200, "alias": 200, "generated_code": 0}
    return Program(target, text, {} if refused else memory, None, 1.0, refused, False)


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("h200", 1),
        ("a100:8", 8),
        ("b200:2x8", 16),
        ("v5e:2x2", 4),
        ("v4:2x2x1", 4),
        ("v5p:8x8x8", 512),
        ("tpu7x:2x2x1", 8),
    ],
)
def test_a_target_has_as_many_devices_as_jax_sees(name: str, devices: int) -> None:
    assert target_of(name).devices == devices


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h300", "there is no target 'h300': allowed are v4:2x2x1, v5e:2x2"),
        ("v5e", "the topology of v5e has 2 numbers, such as v5e:2x2"),
        ("v5p:2x2", "the topology of v5p has 3 numbers"),
        ("h200:1x2x3", "none, one (GPUs) or two numbers (hosts x GPUs), such as h200:8"),
        ("v5e:2y2", "is not of the form 2x2"),
    ],
)
def test_what_is_no_target_is_refused_with_what_is(name: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        target_of(name)
    assert message in str(refused.value)


def test_a_gpu_offers_the_share_that_jax_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_bytes(target_of("h200")) == int(0.75 * 151397597184)
    monkeypatch.setenv(FRACTION, "0.9")
    assert usable_bytes(target_of("h200")) == int(0.9 * 151397597184)
    assert usable_bytes(target_of("v5e:2x2")) == 16 * 2**30


def test_what_is_given_away_counts_once() -> None:
    target = target_of("h100")
    room = usable_bytes(target) - 300
    assert program(target, room).fits
    assert not program(target, room + 1).fits
    assert not program(target, refused="RESOURCE_EXHAUSTED").fits


@pytest.mark.parametrize("start", [1, 7, 500, 4000])
@pytest.mark.parametrize("told", [True, False])
def test_of_one_image_more_than_the_largest_batch_the_program_does_not_fit(start: int, told: bool) -> None:
    target, tried = target_of("h200"), []

    def compiled(batch: int) -> Program:
        tried.append(batch)
        found = program(target, 10**9 + 123_456_789 * batch + batch % 7 * 10**6)
        return found if found.fits or told else program(target, refused="RESOURCE_EXHAUSTED: out of memory")

    largest = largest_batch(compiled, start)
    assert compiled(largest.batch).fits
    assert not compiled(largest.batch + 1).fits
    assert largest.needed_bytes == compiled(largest.batch).bytes <= usable_bytes(target)
    assert largest.more_bytes == (compiled(largest.batch + 1).bytes if told else None)
    assert len(tried) < 20


def test_a_network_of_which_no_image_fits_has_a_largest_batch_of_none() -> None:
    assert largest_batch(lambda batch: program(target_of("h200"), 10**12), 4).batch == 0


def test_the_floor_is_the_slowest_of_computing_and_moving_and_then_the_exchange() -> None:
    found: Any = program(target_of("v5e:2x2"), text=TPU)
    counts = found.counts
    moving = counts.bytes_accessed / 819e9
    assert moving > counts.flops / 197e12
    assert predicted_floor(found, "bfloat16") == pytest.approx(moving + 2 * 3 / 4 * 24 / 200e9)
    assert predicted_floor(found, "float64") is None
