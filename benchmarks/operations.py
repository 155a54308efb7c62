"""Where the time of a step goes: operations out of a profiler's trace, the most expensive first."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from covidjax.errors import UserError

FILE_NAME = "operations.json"


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the compiled program, or one kind of a framework without such.

    milliseconds: per step. detail: shape and origin in the source, as far as known.
    """

    name: str
    milliseconds: float
    detail: str = ""


def of_jax_trace(folder: Path, hlo: str, steps: int) -> list[Operation]:
    """The operations of the newest trace below a folder; hlo: the text of the program, for the details.

    On a CPU an operation that runs on several threads counts with the sum of their times.
    Raises UserError where there is no trace.
    """
    from jax.profiler import ProfileData  # noqa: PLC0415 - the driver reads operations without JAX

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"there is no trace in {folder}")
    planes = list(ProfileData.from_file(str(files[-1])).planes)
    on_device = [
        plane
        for plane in planes
        if plane.name.startswith("/device:") and any(True for line in plane.lines for _ in line.events)
    ]
    seconds: defaultdict[str, float] = defaultdict(float)
    for plane in on_device or planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op") or (event.name if on_device else None)
                if name is not None:
                    seconds[str(name)] += event.duration_ns * 1e-9
    details = details_of(hlo)
    found = [Operation(name, 1e3 * time / steps, details.get(name, "")) for name, time in seconds.items()]
    return sorted(found, key=lambda operation: -operation.milliseconds)


def details_of(hlo: str) -> dict[str, str]:
    """By operation: what it is, its shape and where it comes from."""
    details = {}
    pattern = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.+?\)|[a-z0-9]+\[[^ ]*) ([\w\-]+)\(", re.MULTILINE)
    for match in pattern.finditer(hlo):
        end = hlo.find("\n", match.start())
        origin = re.search(r'op_name="([^"]*)"', hlo[match.start() : end])
        shape = re.sub(r"\{[^}]*\}", "", match[2])
        details[match[1]] = f"{match[3]} {shape} {_short(origin[1]) if origin else ''}".strip()
    return details


def _short(origin: str) -> str:
    """The path in the network, and whether it is of the backward pass."""
    parts = [part for part in origin.split("/") if not re.match(r"^(jit|transpose|jvp|vmap)\(", part)]
    backward = "backward " if "transpose(" in origin else ""
    return backward + "/".join(parts[-4:])


def write(folder: Path, found: Sequence[Operation]) -> None:
    """Writes the operations beside the trace."""
    text = json.dumps([dataclasses.asdict(operation) for operation in found], indent=1)
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def read(folder: Path) -> list[Operation]:
    """What `write` wrote."""
    return [Operation(**fields) for fields in json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))]


def table(found: Sequence[Operation], count: int = 10) -> str:
    """The most expensive operations as text, with their shares of the time of all."""
    total = sum(operation.milliseconds for operation in found) or 1.0
    lines = [
        f"{operation.milliseconds:10.3f}  {100 * operation.milliseconds / total:4.1f} %  {operation.name}  "
        f"{operation.detail}".rstrip()
        for operation in found[:count]
    ]
    rest = sum(operation.milliseconds for operation in found[count:])
    closing = f"{rest:10.3f}  {100 * rest / total:4.1f} %  in {max(len(found) - count, 0)} others"
    return "\n".join(["   ms/step   share  operation", *lines, closing])
