"""Training: state, step, loop and checkpoints. Called, the package trains: `covidjax.train(config, workdir)`."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Training(ModuleType):
    """The package as a function, since `covidjax.train` has to be both."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`covidjax.runs.library.train`."""
        return import_module("covidjax.runs.library").train(*arguments, **options)


sys.modules[__name__].__class__ = _Training
