"""What all tests share: caches that are not the user's, the environment of child processes, Keras and PyTorch."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from covidjax.models import convnext, densenet, resnet, vit
from tests.commands import tiny_config

os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is imported
ROOT = Path(__file__).parents[1]
LONGEST = (
    "tests/train/",
    "tests/launch/",
    "tests/models/",
    "tests/ops/",
    "tests/weights/",
    "tests/freeze/",
    "tests/benchmarks/",
    "tests/checkpoint/",
    "tests/study/",
    "tests/runs/",
    "tests/data/",
    "tests/configs/",
    "tests/evaluate/",
    "tests/report/",
)
# Examples of a property: few, always the same; the slow tests of the native operations ask for the thorough profile.
hypothesis.settings.register_profile("few", max_examples=5, derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=40, deadline=None)
hypothesis.settings.load_profile("few")
# What JAX traces lives long, and to search it again and again took a twentieth of the time of tests/train.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: of two processes the one that gets a long file last would run it beside an idle one."""
    items.sort(
        key=lambda item: next((place for place, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST))
    )


@pytest.fixture(autouse=True, scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of child processes: caches of the session, and this repository to import from.

    Images are cached in a folder of this process. Compiled programs are cached in one folder for all processes of the
    session and their children, unless JAX_COMPILATION_CACHE_DIR names another.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    programs = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(session / "programs"))
    settings = {"jax_compilation_cache_dir": programs, "jax_persistent_cache_min_compile_time_secs": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag that names the config of the tiny network."""
    return tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture
def keras() -> Any:
    module = pytest.importorskip("keras", reason="Keras is not installed: no parity check")
    if module.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend than jax: no parity check")
    return module


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNets of few features, of a block of each kind: with and without a convolution beside it; others as small."""
    monkeypatch.setattr(resnet, "FEATURES", 8)
    monkeypatch.setitem(convnext.SIZES, "convnext_tiny", convnext.Size((1, 2), (8, 16)))
    for name in ("vit_b16", "vit_b14"):
        small = vit.SIZES[name]._replace(num_blocks=2, features=12, num_heads=2)
        monkeypatch.setitem(vit.SIZES, name, small)
    monkeypatch.setitem(densenet.LAYERS, "densenet121", (2, 2, 1, 1))
    for name in ("resnet18", "resnet50"):
        monkeypatch.setitem(resnet.LAYERS, name, (2, 1, 1, 1))
