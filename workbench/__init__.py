"""workbench: reproduce, compare and inspect the methods that align language models to preferences.

This module holds the version and the lazy door to the submodules, nothing else: `import workbench` must stay
under 0.3 s, so torch, transformers and plotly load when a submodule that needs them is first touched.
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_SUBMODULES = [
    "batch",
    "claims",
    "cli",
    "config",
    "data",
    "feedback",
    "figures",
    "kernels",
    "methods",
    "metrics",
    "models",
    "objectives",
    "ranking",
    "runs",
    "share",
    "stats",
    "studies",
    "tasks",
    "training",
    "widgets",
    "worlds",
]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return _import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
