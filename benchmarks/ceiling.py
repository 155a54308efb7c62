"""What the device can do at most: a large matrix product, in the precision of the step."""

import time
from typing import Any

from benchmarks.case import Case

SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


def build_jax(case: Case) -> Any:
    """A `case.Subject` whose step is one product of two square matrices, by XLA."""
    import jax  # noqa: PLC0415 - the other one does without
    import jax.numpy as jnp  # noqa: PLC0415

    from benchmarks.jax_subject import inference_subject  # noqa: PLC0415

    side = SIDE[jax.default_backend()]
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (side, side), jnp.dtype(case.precision)) for key in keys)
    counts = {"total_params": 0, "trainable_params": 0, "optimizer_bytes": 0}
    return inference_subject(jax.jit(jnp.matmul), left, right, counts)


def build_torch(case: Case) -> Any:
    """The same by PyTorch."""
    return TorchProduct(case)


class TorchProduct:
    """A `case.Subject`."""

    def __init__(self, case: Case) -> None:
        import torch  # noqa: PLC0415

        self._torch, self._on_gpu = torch, torch.cuda.is_available()
        platform = "gpu" if self._on_gpu else "cpu"
        torch.set_float32_matmul_precision("high")
        device, dtype = "cuda" if self._on_gpu else "cpu", getattr(torch, case.precision)
        side = SIDE[platform]
        self._left, self._right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        began = time.perf_counter()
        self.run(1)
        self._facts = {
            "device": torch.cuda.get_device_name() if self._on_gpu else "cpu",
            "platform": platform,
            "compile_seconds": time.perf_counter() - began,
            "flops": 2.0 * side**3,
            "temp_bytes": None,
            "total_params": 0,
            "trainable_params": 0,
            "optimizer_bytes": 0,
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__},
        }

    def facts(self) -> dict[str, Any]:
        """See `case.Subject`."""
        return self._facts

    def run(self, steps: int) -> None:
        """See `case.Subject`."""
        for _ in range(steps):
            self._torch.matmul(self._left, self._right)
        if self._on_gpu:
            self._torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """See `case.Subject`."""
        return self._torch.cuda.max_memory_allocated() if self._on_gpu else None

    def profile(self, steps: int, folder: str) -> None:
        """Nothing: there is one operation."""
