"""Measuring kernels honestly: random turns, fresh values, verified results, intervals, and no verdict where the machine is noisy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..testing import Case
    from .contenders import Contender, contender
    from .race import interleave, measure
    from .rows import Row, Sample
    from .statistics import geometric_mean
    from .store import last_run
    from .verdicts import compare

__all__ = ["Case", "Contender", "Row", "Sample", "compare", "contender", "geometric_mean", "interleave", "last_run", "measure"]

# Loaded when asked for: `import fastcv` needs the roofs alone, for fastcv.explain.
_HOME = {
    "Case": "fastcv.testing",
    "Contender": "fastcv.bench.contenders",
    "Row": "fastcv.bench.rows",
    "Sample": "fastcv.bench.rows",
    "compare": "fastcv.bench.verdicts",
    "contender": "fastcv.bench.contenders",
    "geometric_mean": "fastcv.bench.statistics",
    "interleave": "fastcv.bench.race",
    "last_run": "fastcv.bench.store",
    "measure": "fastcv.bench.race",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
