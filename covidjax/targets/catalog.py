"""Targets by name: what their makers say that a device computes, moves and holds."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from covidjax.errors import UserError, some_of

CLOUD, NVIDIA = "docs.cloud.google.com/tpu/docs", "nvidia.com/en-us/data-center"
GPU_SHARE = 0.75  # of a GPU's memory that JAX takes by itself (docs.jax.dev, GPU memory allocation)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device, as JAX counts devices.

    peak_flops: a second, by config.precision, without sparsity; float32 is what JAX does by default: TF32 on a GPU,
    one pass in bfloat16 on a TPU. memory_bandwidth, link_bandwidth: bytes a second; links in one direction, of all
    links together, None where none is published. memory_bytes: of the device. dimensions: of a TPU's topology.
    megacore: whether the two cores of a chip are one device by a setting. spec: what XLA asks of a GPU, as text.
    """

    platform: str
    peak_flops: Mapping[str, float]
    memory_bandwidth: float
    memory_bytes: int
    link_bandwidth: float | None
    source: str
    dimensions: int = 0
    devices_per_chip: int = 1
    megacore: bool = False
    spec: str = ""


def _tpu(tflops: float, gigabytes_per_second: float, gib: float, link: float, page: str, **more: Any) -> Chip:
    peak = dict.fromkeys(("bfloat16", "float32"), tflops * 1e12)
    return Chip("tpu", peak, gigabytes_per_second * 1e9, int(gib * 2**30), link * 1e9, f"{CLOUD}/{page}", **more)


def _gpu(page: str, description: str, tflops: tuple[float, float, float], link: float, spec: dict[str, float]) -> Chip:
    """tflops: in bfloat16, TF32, float64. spec: of GpuDeviceInfoProto, see target_config/specs of openxla/xla."""
    peak = {
        name: 1e12 * tflops[place] for name, place in {"bfloat16": 0, "float16": 0, "float32": 1, "float64": 2}.items()
    }
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        **{name: value for name, value in spec.items() if name != "major"},
    }
    text = " ".join(f"{name}: {value}" for name, value in fields.items())
    text = (
        f"gpu_device_info {{ {text} cuda_compute_capability {{ major: {spec['major']} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} '
        f'device_description_str: "{description}"'
    )
    bandwidth, memory = float(spec["memory_bandwidth"]), int(spec["device_memory_size"])
    return Chip("cuda", peak, bandwidth, memory, link * 1e9, f"{NVIDIA}/{page}", spec=text)


HOPPER: dict[str, Any] = {
    "shared_memory_per_core": 233472,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_block_optin": 232448,
    "major": 9,
}
CHIPS = {
    "v4": _tpu(275, 1200, 32, 300, "v4 (links: Jouppi et al. 2023, table 4)", dimensions=3, megacore=True),
    "v5e": _tpu(197, 819, 16, 200, "v5e", dimensions=2),
    "v5p": _tpu(459, 2765, 95, 600, "v5p", dimensions=3),
    "v6e": _tpu(918, 1638, 32, 400, "v6e", dimensions=2),
    "tpu7x": _tpu(2307 / 2, 7380 / 2, 192 / 2, 1200 / 4, "tpu7x", dimensions=3, devices_per_chip=2),
    "a100": _gpu(
        "a100",
        "NVIDIA A100-SXM4-80GB",
        (312, 156, 19.5),
        300,
        {
            "shared_memory_per_core": 167936,
            "core_count": 108,
            "fpus_per_core": 64,
            "memory_bandwidth": 2039040000000,
            "l2_cache_size": 41943040,
            "clock_rate_ghz": 1.41,
            "device_memory_size": 85100068864,
            "shared_memory_per_block_optin": 166912,
            "major": 8,
        },
    ),
    "h100": _gpu(
        "h100",
        "NVIDIA H100 80GB HBM3",
        (989.4, 494.7, 66.9),
        450,
        {
            **HOPPER,
            "memory_bandwidth": 3352320000000,
            "device_memory_size": 84942979072,
        },
    ),
    "h200": _gpu(
        "h200",
        "NVIDIA H200 141GB HBM3e",
        (989.4, 494.7, 66.9),
        450,
        {
            **HOPPER,
            "memory_bandwidth": 4800000000000,
            "device_memory_size": 151397597184,
        },
    ),
    "b200": _gpu(
        "dgx-b200 (bandwidth: of the device itself, 7680 bits at 3996 MHz; openxla/xla b200.txtpb)",
        "NVIDIA B200",
        (2250, 1125, 37),
        900,
        {
            "shared_memory_per_core": 233472,
            "core_count": 148,
            "fpus_per_core": 128,
            "memory_bandwidth": 7672320000000,
            "l2_cache_size": 132644864,
            "clock_rate_ghz": 1.965,
            "device_memory_size": 191514411008,
            "shared_memory_per_block_optin": 232448,
            "major": 10,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind in a topology, such as 2x2 chips or 1x8 GPUs (hosts, GPUs of each)."""

    name: str
    chip: Chip
    topology: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many devices JAX sees."""
        return math.prod(self.topology) * self.chip.devices_per_chip

    def usable_bytes(self, share: float = GPU_SHARE) -> int:
        """Memory of a device that programs may use. share: of a GPU's memory, that JAX takes."""
        return int(self.chip.memory_bytes * (share if self.chip.platform == "cuda" else 1))


def target_of(name: str) -> Target:
    """The target of a name, `h200`, `h200:8`, `h200:2x8` or `v5e:2x2`. Raises UserError."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"there is no target {name!r}: allowed are {some_of(_examples())}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*|", shape):
        raise UserError(f"the topology of target {name!r} is not of the form 2x2: write {_example(kind)}")
    sizes = tuple(map(int, filter(None, shape.split("x"))))
    if chip.platform == "cuda" and len(sizes) < 3:
        return Target(name, chip, (1, 1, *sizes)[-2:])
    if chip.platform == "tpu" and len(sizes) == chip.dimensions:
        return Target(name, chip, sizes)
    raise UserError(
        f"target {name!r}: the topology of {kind} has "
        + (f"{chip.dimensions} numbers" if chip.dimensions else "none, one (GPUs) or two numbers (hosts x GPUs)")
        + f", such as {_example(kind)}"
    )


def _example(kind: str) -> str:
    chip = CHIPS[kind]
    return f"{kind}:8" if chip.platform == "cuda" else f"{kind}:{'x'.join('221'[: chip.dimensions])}"


def _examples() -> list[str]:
    return [kind if CHIPS[kind].platform == "cuda" else _example(kind) for kind in CHIPS]
