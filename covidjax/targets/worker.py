"""The process that compiles for a target, started by `Compiler`: requests and replies are lines of JSON.

It has libtpu and the CUDA plugin, which must not disturb a process that trains.
"""

import gzip
import hashlib
import importlib
import json
import os
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from covidjax import files
from covidjax.errors import UserError
from covidjax.targets.catalog import Target, target_of
from covidjax.targets.devices import devices_of

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def lowered(devices: list[Any], request: dict[str, Any]) -> Any:
    """The program of a request, before it is optimised: {'builder': 'package.module:function', 'arguments': {...}}.

    The function takes devices and the arguments, and returns a `jax.stages.Lowered`.
    """
    module, _, function = request["builder"].partition(":")
    return getattr(importlib.import_module(module), function)(devices, **request["arguments"])


def key_of(target: Target, text: str) -> str:
    """What a program is kept under: a digest of its text, of what it is for and of what compiles it."""
    versions = sorted(f"{each.name} {each.version}" for each in metadata.distributions() if each.name in PACKAGES)
    circumstances = [target.name, repr(target.chip.spec), os.environ.get("XLA_FLAGS", ""), *versions, text]
    return hashlib.sha256("\0".join(circumstances).encode()).hexdigest()[:32]


def compiled(program: Any) -> dict[str, Any]:
    """What is kept of a program: {'hlo', 'memory', 'flops', 'seconds', 'refused'}.

    refused: why the compiler gave up for lack of memory; then the others are empty.
    """
    began = time.perf_counter()
    try:
        done = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        return {"hlo": "", "memory": {}, "flops": None, "seconds": time.perf_counter() - began, "refused": reason}
    memory = done.memory_analysis()
    names = ("temp", "argument", "output", "alias", "generated_code")
    return {
        "hlo": done.as_text(),
        "memory": {name: int(getattr(memory, f"{name}_size_in_bytes")) for name in names},
        "flops": (done.cost_analysis() or {}).get("flops"),
        "seconds": time.perf_counter() - began,
        "refused": "",
    }


def answer(target: Target, devices: list[Any], request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compiles what a request asks for, unless it is kept; the reply names the file."""
    program = lowered(devices, request)
    path = folder / f"{key_of(target, program.as_text())}.json.gz"
    known = path.is_file()
    if not known:
        content = json.dumps(compiled(program)).encode()
        files.write_bytes(path, gzip.compress(content, mtime=0))
    return {"path": str(path), "known": known}


def main() -> None:
    """Answers until standard input ends. Arguments: the target, the folder of compiled programs."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not break the conversation
    target, folder = target_of(sys.argv[1]), Path(sys.argv[2])
    devices: list[Any] = []
    for line in sys.stdin:
        try:
            devices = devices or devices_of(target)
            reply = answer(target, devices, json.loads(line), folder)
        except UserError as error:
            reply = {"error": str(error), "kind": "user"}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "kind": "bug"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
