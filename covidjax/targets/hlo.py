"""What an optimised program does, by its HLO text: bytes through memory, kernels, convolutions, collectives."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

# Of no cost: names for what is there already. A '-done' waits for what its '-start' moved.
FREE = frozenset(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"))
CALLS = frozenset(("call", "async-start", "conditional"))  # what they call is counted in their place
COLLECTIVES = frozenset(("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"))
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # of the other types the name says them
HBM = 0

INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = (.*?) ([a-z][a-z0-9-]*)\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\{$")
SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
SPACE = re.compile(r"S\((\d+)\)")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.$-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
GROUPS = re.compile(r"replica_groups=(?:\[(\d+(?:,\d+)*)\]<=|\{\{([\d,]+)\})")
LIBRARY = re.compile(r'custom_call_target="__cud(?:nn\$conv(\w+)|a?blas\S*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction. space: the memory that it lives in; on a TPU 1 is VMEM, on the chip."""

    dtype: str
    shape: tuple[int, ...]
    space: int = HBM

    @property
    def elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return -(-self.elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. operands: names; text: the line behind the operation's name."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def origin(self) -> str:
        """The operation of the model that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1].replace("\\'", "'") if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program. computations: the instructions of each, by name."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """An operation as it runs, with the bytes that it moves through memory. times: how often it runs in a step."""

    instruction: Instruction
    bytes: int
    times: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation by which devices exchange arrays. kind: such as 'all-reduce'; times: how often it runs in a step.

    bytes, elements: of what comes out on a device, or goes in, if that is more. group: how many devices exchange with
    each other, 0 where all do.
    """

    kind: str
    times: int
    bytes: int
    elements: int
    group: int

    def sent(self, devices: int) -> float:
        """Bytes of a step that leave a device of so many, by the least that the operation needs."""
        group = self.group or devices
        return self.times * self.bytes * (group - 1) / group * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one run of a program does on one device.

    flops: of convolutions and matrix products. bytes_accessed: through HBM, see `costs`. kernels: operations that run.
    convolutions: without matrix products. all_reduces, all_reduce_bytes, all_reduce_elements: of all collectives, which
    `collectives` tells apart.
    """

    flops: int
    bytes_accessed: int
    kernels: int
    convolutions: int
    all_reduces: int
    all_reduce_bytes: int
    all_reduce_elements: int
    collectives: tuple[Collective, ...] = ()

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Of each kind of collective how many run in a step, and the bytes that they exchange together."""
        kinds = sorted({each.kind for each in self.collectives})
        found = {kind: [each for each in self.collectives if each.kind == kind] for kind in kinds}
        return {
            kind: (sum(each.times for each in own), sum(each.times * each.bytes for each in own))
            for kind, own in found.items()
        }


def parse(text: str) -> Module:
    """The module of an HLO text, as `compiled.as_text()` gives it."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := INSTRUCTION.match(line):
            rest = line[found.end() :]
            operands = tuple(re.findall(r"%([\w.$-]+)", rest[: _closing(rest)]))
            current.append(Instruction(found[2], found[4], arrays(found[3]), operands, rest))
    return Module({name: tuple(lines) for name, lines in computations.items()}, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a shape; those of a tuple in its order, nested ones with it."""
    found = []
    for dtype, dimensions, layout in SHAPE.findall(text):
        space = SPACE.search(layout)
        shape = tuple(int(size) for size in dimensions.split(",") if size)
        found.append(Array(dtype, shape, int(space[1]) if space else HBM))
    return tuple(found)


def _closing(text: str) -> int:
    """Where the bracket that is open before the text closes."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text)


def costs(module: Module) -> list[Cost]:
    """The operations of one run, those of loops and calls in their place.

    Bytes of operands and results that lie in HBM; of a 'slice-start' the slice, read and perhaps written. What a
    fusion reads twice or in part counts once and whole. On a GPU HBM and L2 are not told apart.
    """
    return list(_costs(module, module.entry, 1))


def _costs(module: Module, computation: str, times: int) -> Iterator[Cost]:
    results = {line.name: line.results for line in module.computations[computation]}
    for line in module.computations[computation]:
        if line.opcode in FREE or line.opcode.endswith(("-done", "-update")):
            continue
        if line.opcode == "while":
            trips = TRIPS.search(line.text)
            yield from _costs(module, _called(line)[0], times * (int(trips[1]) if trips else 1))
        elif line.opcode in CALLS:
            for name in _called(line):
                yield from _costs(module, name, times)
        else:
            yield Cost(line, _bytes(line, results), times)


def _called(line: Instruction) -> list[str]:
    branches = BRANCHES.search(line.text)
    return re.findall(r"[\w.$-]+", branches[1]) if branches else CALLED.findall(line.text)


def _bytes(line: Instruction, results: dict[str, tuple[Array, ...]]) -> int:
    if line.opcode == "slice-start":  # (operands), slice, state
        piece = line.results[-2]
        return piece.bytes * (2 if piece.space == HBM else 1)
    if line.opcode == "copy-start":  # result, source, state
        moved: Sequence[Array] = line.results[:2]
    elif line.opcode == "custom-call" and 'target="ConcatBitcast"' in line.text:
        moved = ()
    else:
        moved = (*line.results, *(array for name in line.operands for array in results.get(name, ())))
    return sum(array.bytes for array in moved if array.space == HBM)


def count(module: Module) -> Counts:
    """The figures of a program."""
    found, inside = costs(module), list(_inside(module, module.entry, 1))
    exchanged = tuple(_collective(*each) for each in inside if _kind(each[1]) in COLLECTIVES)
    products = [(times, *_product(line, operands)) for times, line, operands in inside if _is_product(line)]
    return Counts(
        flops=sum(times * flops for times, flops, _ in products),
        bytes_accessed=sum(cost.times * cost.bytes for cost in found),
        kernels=sum(cost.times for cost in found),
        convolutions=sum(times for times, _, spatial in products if spatial),
        all_reduces=sum(each.times for each in exchanged),
        all_reduce_bytes=sum(each.times * each.bytes for each in exchanged),
        all_reduce_elements=sum(each.times * each.elements for each in exchanged),
        collectives=exchanged,
    )


def _kind(line: Instruction) -> str:
    return line.opcode.removesuffix("-start")


def _collective(times: int, line: Instruction, operands: Sequence[Array]) -> Collective:
    results = line.results
    if line.opcode.endswith("-start") and _kind(line) != "all-reduce":  # what goes in, then what comes out
        results = results[len(operands) : 2 * len(operands)]
    sides = max(results, operands, key=lambda side: sum(array.bytes for array in side))
    found = GROUPS.search(line.text)
    group = 0
    if found:
        group = int(found[1].split(",")[-1]) if found[1] else len(found[2].split(","))
    return Collective(
        _kind(line), times, sum(array.bytes for array in sides), sum(array.elements for array in sides), group
    )


def _is_product(line: Instruction) -> bool:
    library = line.opcode == "custom-call" and LIBRARY.search(line.text)
    return line.opcode in ("convolution", "dot") or bool(library)


def _inside(module: Module, computation: str, times: int) -> Iterator[tuple[int, Instruction, list[Array]]]:
    """(times, instruction, its operands) of a computation and of all that it calls, what is fused too."""
    results = {line.name: line.results for line in module.computations[computation]}
    for line in module.computations[computation]:
        yield times, line, [array for name in line.operands for array in results.get(name, ())[:1]]
        if line.opcode in ("fusion", "while", *CALLS):
            trips = TRIPS.search(line.text) if line.opcode == "while" else None
            for name in _called(line):
                yield from _inside(module, name, times * (int(trips[1]) if trips else 1))


def _product(line: Instruction, operands: Sequence[Array]) -> tuple[int, bool]:
    """FLOPs of a convolution or a matrix product, and whether it is the former."""
    result, library = line.results[0], LIBRARY.search(line.text)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    if labels is None:
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.text)
        sizes = (
            [operands[0].shape[int(place)] for place in filter(None, contracted[1].split(","))] if contracted else []
        )
        if not sizes:  # of a library's product, told in its configuration
            found = re.search(r'"lhs_contracting_dimensions":\["?([\d",]*)', line.text)
            sizes = [operands[0].shape[int(place)] for place in re.findall(r"\d+", found[1])] if found else [1]
        return 2 * result.elements * math.prod(sizes), False
    # What stands for the map, the kernel and the outputs of the convolution whose window the line describes.
    image, kernel, outputs = {
        "BackwardInput": (result, operands[1], operands[0]),
        "BackwardFilter": (operands[0], result, operands[1]),
    }.get(library[1] if library else "", (operands[0], operands[1], result))
    window = re.search(r"window=\{([^}]*)\}", line.text)
    fields = dict(part.split("=", 1) for part in window[1].split()) if window else {}
    flops, spatial = 2, 0
    while str(spatial) in labels[1]:
        place = str(spatial)
        flops *= _pairs(
            image.shape[labels[1].index(place)],
            kernel.shape[labels[2].index(place)],
            outputs.shape[labels[3].index(place)],
            {name: value.split("x")[spatial] for name, value in fields.items()},
        )
        spatial += 1
    flops *= outputs.shape[labels[3].index("b")] * outputs.shape[labels[3].index("f")]
    return flops * kernel.shape[labels[2].index("i")], spatial > 0


def _pairs(image: int, kernel: int, outputs: int, window: dict[str, str]) -> int:
    """The pairs of an element of the map and one of the kernel that meet along one dimension: no padding, no holes."""
    stride, dilation, holes = (int(window.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    low, extent = int(window.get("pad", "0_0").split("_")[0]), (image - 1) * holes + 1
    found = 0
    for tap in range(kernel):
        # Outputs o with 0 <= o * stride + tap * dilation - low < extent that meet no hole.
        offset = tap * dilation - low
        first = max(0, -(offset // stride))
        last = min(outputs - 1, (extent - 1 - offset) // stride)
        if holes == 1:
            found += max(0, last - first + 1)
        else:
            found += sum((output * stride + offset) % holes == 0 for output in range(first, last + 1))
    return found
