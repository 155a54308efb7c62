"""The process that compiles keeps programs by what they are; here it compiles for the CPU that the test has."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from covidjax.errors import UserError
from covidjax.targets import Program, hlo, target_of, worker


def lowered(devices: list[Any], size: int) -> Any:
    """A builder as the process calls it."""
    return jax.jit(jnp.dot).lower(*[jax.ShapeDtypeStruct((size, size), jnp.float32)] * 2)


def ask(folder: Path, size: int = 8, target: str = "h200") -> dict[str, Any]:
    request = {"builder": f"{__name__}:lowered", "arguments": {"size": size}}
    return worker.answer(target_of(target), jax.local_devices(), request, folder)


def test_a_program_is_compiled_once(tmp_path: Path) -> None:
    first, again = ask(tmp_path), ask(tmp_path)
    assert (first["known"], again["known"]) == (False, True)
    assert first["path"] == again["path"]
    kept = json.loads(gzip.decompress(Path(first["path"]).read_bytes()))
    program = Program(target_of("h200"), **kept, known=True)
    assert program.memory["argument"] == 2 * 8 * 8 * 4
    assert hlo.parse(program.hlo).entry


def test_another_program_and_another_target_are_kept_apart(tmp_path: Path) -> None:
    paths = {ask(tmp_path, size, target)["path"] for size in (8, 16) for target in ("h200", "h100")}
    assert len(paths) == 4


def test_a_program_that_is_too_large_for_the_compiler_is_kept_as_refused() -> None:
    class TooLarge:
        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

    kept = worker.compiled(TooLarge())
    assert kept["refused"].startswith("RESOURCE_EXHAUSTED: Ran out of memory")
    assert not Program(target_of("v5e:2x2"), **kept, known=False).fits


def test_an_error_of_the_compiler_that_is_not_memory_is_not_kept() -> None:
    class Broken:
        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        worker.compiled(Broken())


def test_what_a_person_can_mend_is_passed_on_as_such(tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise UserError("the batch does not divide")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "lowered", refused)
        with pytest.raises(UserError, match="the batch does not divide"):
            ask(tmp_path)
