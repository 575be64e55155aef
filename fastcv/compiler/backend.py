"""torch.compile(model, backend="fastcv"): the captured graph on fastcv's kernels, the rest on torch's, or on inductor.

Without gradients the rewritten graph runs as it is. With gradients it goes through AOTAutograd, which records forward and
backward as graphs of raw ops. Guards, graph breaks and dynamic shapes are torch.compile's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd

from .. import _ext
from .rewrite import Rewriter

_log = logging.getLogger("fastcv.compiler")
_REST = ("eager", "inductor")


def _as_it_is(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    return make_boxed_func(gm.forward)


def fastcv(gm: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None) -> Any:
    """The backend. options: {"rest": "eager"} (default) runs what fastcv does not serve on torch's kernels, {"rest": "inductor"}
    compiles it, which needs a C++ compiler. Raises ValueError for other options and for a mode, NotBuiltError.
    """
    unknown = sorted(set(options or {}) - {"rest"})
    rest = (options or {}).get("rest", "eager")
    if mode is not None or unknown or rest not in _REST:
        wrong = f"mode={mode!r}" if mode is not None else f"{unknown[0]}={options[unknown[0]]!r}" if unknown else f"rest={rest!r}"
        raise ValueError(f"the torch.compile backend 'fastcv' takes options={{'rest': one of {_REST}}} and no mode, got {wrong}")
    _ext.module()
    gradients = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in example_inputs)
    done = Rewriter(gm, gradients, cached=rest == "eager" and not gradients).run()
    _log.info("%s: %s", "training" if gradients else "inference", ", ".join(f"{k} x{v}" for k, v in sorted(done.items())) or "nothing")
    if rest == "inductor":
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(gm, example_inputs)
    if gradients:
        return aot_autograd(fw_compiler=_as_it_is)(gm, example_inputs)
    return gm.forward
