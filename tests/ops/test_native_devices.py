"""Native operations on several devices, of one process and of two."""

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from covidjax.ops.choose import choose
from tests.support import ROOT, on_devices

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)

DIVIDED = """
import sys
from functools import partial
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
address, number = sys.argv[1:]
if address:
    jax.distributed.initialize(address, num_processes=2, process_id=int(number))
from covidjax.ops.choose import choose
from tests.ops.test_native import ARGUMENTS, loss, normal
from tests.support import assert_close
assert choose("native").native
count = jax.device_count()
assert count == (2 if address else 4)
mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole, parted, inputs = NamedSharding(mesh, P()), NamedSharding(mesh, P("data")), normal(8, 16, 16, 5)
batch = jax.make_array_from_callback(inputs.shape, parted, lambda part: inputs[part])
step = jax.jit(jax.value_and_grad(partial(loss, native=True)), in_shardings=(whole, parted), out_shardings=whole)
text = step.lower(ARGUMENTS, batch).compile().as_text()
assert "covidjax_convolution_" in text and f"f32[{8 // count},16,16,5]" in text
assert "all-gather" not in text and "all-reduce" in text, text
found = step(ARGUMENTS, batch)
with jax.default_device(jax.local_devices()[0]):
    assert_close(found, jax.jit(jax.value_and_grad(partial(loss, native=False)))(ARGUMENTS, inputs), 2e-5)
if not address:
    of_part, parts = jax.grad(partial(loss, native=True)), inputs.reshape(4, 2, 16, 16, 5)
    mapped, single = jax.pmap(of_part, in_axes=(None, 0))(ARGUMENTS, parts), jax.jit(of_part)
    for place, part in enumerate(parts):
        assert_close(jax.tree.map(lambda leaf: leaf[place], mapped), single(ARGUMENTS, part), 2e-5)
print("divided as it should be")
"""


def check_division(address: str, count: int, devices: int) -> None:
    """Runs the check in so many processes at once, each with so many devices."""
    command = [sys.executable, "-c", DIVIDED, address]
    options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | on_devices(devices), "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen([*command, str(number)], **options) for number in range(count)]
    try:
        for process in running:
            told, errors = process.communicate(timeout=180)
            assert "divided as it should be" in told, errors[-3000:]
    finally:
        for process in running:
            process.kill()


def test_devices_that_share_a_batch_each_convolve_their_part_and_gather_nothing() -> None:
    check_division("", count=1, devices=4)


@pytest.mark.slow
def test_processes_that_share_a_batch_do_the_same() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    check_division(address, count=2, devices=1)
