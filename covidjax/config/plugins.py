"""`config.plugins`: modules that register parts of their own, imported before anything asks for a part by name."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from covidjax import files, losses, models, optim, tasks
from covidjax.config.writers import WRITERS
from covidjax.data import augment
from covidjax.errors import UserError
from covidjax.freeze import strategies
from covidjax.process import path_of
from covidjax.registry import MARK, Registry

REGISTRIES: tuple[Registry[Any], ...] = (
    models.MODELS,
    optim.OPTIMIZERS,
    losses.LOSSES,
    losses.MASK_LOSSES,
    augment.AUGMENTATIONS,
    strategies.STRATEGIES,
    tasks.TASKS,
    WRITERS,
)
DIGEST = "__covidjax_digest__"  # in the globals of a plugin's module: that of its file when it was imported


def import_plugins(plugins: Iterable[str]) -> None:
    """Imports each, unless it is imported already: a module by its name, or a file whose name ends in .py.

    Both are looked for in the working folder, a module where Python looks for others as well.
    Raises UserError for one that is not there or fails; what it registered until then is forgotten.
    """
    for plugin in plugins:
        with _all_or_nothing(plugin):
            if plugin.endswith(".py"):
                _import_file(plugin)
            else:
                _import_module(plugin)


def digests(plugins: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the source file of each plugin as it was when it was imported; '' of one without a file."""
    return {plugin: vars(sys.modules[_module_name(plugin)])[DIGEST] for plugin in plugins}


def changes(recorded: Mapping[str, str], plugins: Iterable[str]) -> list[str]:
    """A note for each plugin whose source is not the one that a run has recorded. recorded: what `digests` gave."""
    return [
        f"the plugin {plugin} has another content than when the run was trained with it (SHA-256 {digest[:12]}, then "
        f"{recorded[plugin][:12]})"
        for plugin, digest in digests(plugins).items()
        if recorded.get(plugin, digest) != digest
    ]


def _import_file(plugin: str) -> None:
    path = path_of(plugin).absolute()
    if not path.is_file():
        raise UserError(
            f"config.plugins has {plugin!r}, and there is no file {path}: start the command in the folder that it is "
            "relative to, or write the whole path"
        )
    name = _module_name(plugin)
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    vars(module).update({MARK: plugin, DIGEST: files.digest(path)})
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _module_name(plugin: str) -> str:
    if not plugin.endswith(".py"):
        return plugin
    path = path_of(plugin).absolute()
    return f"covidjax_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]}"


def _import_module(plugin: str) -> None:
    with _importable(Path.cwd()):
        try:
            module = importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{plugin}.".startswith(f"{error.name}."):
                raise  # the plugin is there, and lacks another module
            raise UserError(
                f"config.plugins has {plugin!r}, and there is no such module in {Path.cwd()} or among the installed "
                "ones: start the command in the folder that holds it, install it, or give the path of its .py file"
            ) from error
    if MARK not in vars(module):
        source = getattr(module, "__file__", None)
        vars(module).update({MARK: plugin, DIGEST: files.digest(Path(source)) if source else ""})


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within it modules of a folder are found, after all others."""
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(str(folder))  # the last one
        sys.path.reverse()


@contextlib.contextmanager
def _all_or_nothing(plugin: str) -> Iterator[None]:
    states = [registry.state() for registry in REGISTRIES]
    try:
        yield
    except Exception as error:
        for registry, state in zip(REGISTRIES, states, strict=True):
            registry.reset(state)
        if isinstance(error, UserError):
            raise UserError(f"{plugin}: {error}" if "config.plugins" not in str(error) else str(error)) from error
        message = " ".join(str(error).split())
        told = f"config.plugins has {plugin!r}, which fails{_line(error, plugin)}: {type(error).__name__}: {message}"
        raise UserError(told) from error


def _line(error: Exception, plugin: str) -> str:
    """The innermost line of the plugin's own file that an error passed through."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    found, trace = "", error.__traceback__
    while trace is not None:
        name = Path(trace.tb_frame.f_code.co_filename).name
        if name in (Path(plugin).name, f"{plugin.rpartition('.')[2]}.py"):
            found = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return found
