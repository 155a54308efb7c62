"""Native operations on several devices, of one process and of two."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from covidjax.ops.choose import choose

CHOICE = choose("auto")
pytestmark = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)

DIVIDED = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from covidjax.ops.choose import choose
from tests.ops.test_native import ARGUMENTS, assert_close, loss, normal
from functools import partial
assert choose("native").native
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
inputs = normal(8, 16, 16, 5)
expected = jax.jit(jax.value_and_grad(partial(loss, native=False), argnums=(0, 1)))(ARGUMENTS, inputs)
step = jax.jit(jax.value_and_grad(partial(loss, native=True), argnums=(0, 1)),
               in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))))
program = step.lower(ARGUMENTS, inputs).compile()
text = program.as_text()
assert "covidjax_convolution_" in text
assert "f32[2,16,16,5]" in text and "all-gather" not in text and "all-reduce" in text, text
assert_close(step(ARGUMENTS, inputs), expected, 2e-5)
of_part, parts = jax.grad(partial(loss, native=True)), inputs.reshape(4, 2, 16, 16, 5)
mapped, single = jax.pmap(of_part, in_axes=(None, 0))(ARGUMENTS, parts), jax.jit(of_part)
for number, part in enumerate(parts):
    assert_close(jax.tree.map(lambda leaf: leaf[number], mapped), single(ARGUMENTS, part), 2e-5)
print("divided as it should be")
"""


def test_devices_that_share_a_batch_each_convolve_their_part_and_gather_nothing() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DIVIDED], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert "divided as it should be" in done.stdout, done.stderr[-3000:]


PROCESS = """
import sys
import jax
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from covidjax.ops.choose import choose
from tests.ops.test_native import ARGUMENTS, assert_close, loss, normal
assert choose("native").native
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
inputs = normal(8, 16, 16, 5)
batch = jax.make_array_from_callback(inputs.shape, NamedSharding(mesh, P("data")), lambda part: inputs[part])
step = jax.jit(jax.grad(partial(loss, native=True)), out_shardings=NamedSharding(mesh, P()))
text = step.lower(ARGUMENTS, batch).compile().as_text()
assert "covidjax_convolution_" in text and "all-gather" not in text and "all-reduce" in text
found = step(ARGUMENTS, batch)
with jax.default_device(jax.local_devices()[0]):
    expected = jax.jit(jax.grad(partial(loss, native=False)))(ARGUMENTS, inputs)
assert_close(found, expected, 2e-5)
print("divided as it should be")
"""


@pytest.mark.slow
def test_processes_that_share_a_batch_do_the_same() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROCESS, address]
    options: dict[str, Any] = {"cwd": Path(__file__).parents[2], "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen([*command, str(number)], text=True, **options) for number in range(2)]
    try:
        for process in running:
            told, errors = process.communicate(timeout=180)
            assert "divided as it should be" in told, errors[-3000:]
    finally:
        for process in running:
            process.kill()
