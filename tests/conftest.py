"""Tests leave the user's caches alone, and compare with Keras where it is installed."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

BEGAN = pytest.StashKey[float]()
LONGEST = (
    "tests/ops/test_native_library.py",
    "tests/train/",
    "tests/test_papers_keras.py",
    "tests/benchmarks/",
    "tests/test_commands",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: of two processes the one that gets a long file last would run it beside an idle one."""
    items.sort(
        key=lambda item: next((place for place, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST))
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Notes when the tests of this process began."""
    session.config.stash[BEGAN] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """COVIDJAX_SLOW_MINUTES: no slow test begins later than that, so that the others have their time; it is said."""
    minutes = float(os.environ.get("COVIDJAX_SLOW_MINUTES", "inf"))
    if item.get_closest_marker("slow") and time.monotonic() - item.config.stash[BEGAN] > 60 * minutes:
        pytest.skip(f"not run: the slow tests have taken {minutes:g} minutes")


@pytest.fixture(autouse=True, scope="session")
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Image caches of the session go to a temporary folder, also in child processes."""
    folder: Path = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    module = pytest.importorskip("keras", reason="Keras is not installed: no parity check")
    if module.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend than jax: no parity check")
    return module
