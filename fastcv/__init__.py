"""fastcv: hand-written C++ and CUDA kernels for computer vision networks inside PyTorch.

``fastcv.functional`` mirrors ``torch.nn.functional``, ``fastcv.nn`` mirrors ``torch.nn``; the same names, arguments and
answers. Importing never fails: without the compiled module each op raises one sentence that says how to build it.
"""

import importlib

from . import functional, nn
from ._ext import NotBuiltError, build_info, cpu_isa, is_built
from ._memory import keep_freed_memory
from ._tuned import tuned, tuned_choices
from ._variants import use, variants, why_not
from ._version import __version__
from .explainer import explain
from .optimizer import optimize, restore
from .override import override_aten

__all__ = [
    "NotBuiltError",
    "__version__",
    "build_info",
    "cpu_isa",
    "explain",
    "functional",
    "is_built",
    "keep_freed_memory",
    "nn",
    "optimize",
    "override_aten",
    "restore",
    "tuned",
    "tuned_choices",
    "use",
    "variants",
    "why_not",
]


def __getattr__(name: str) -> object:
    """``fastcv.models`` and the like after ``import fastcv`` alone: rooms that are imported when they are first asked for."""
    if name in ("bench", "models", "neighbors", "testing", "train", "vision"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
