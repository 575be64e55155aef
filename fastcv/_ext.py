"""The compiled module ``fastcv._C``: loaded here once, and what stands in for it when it is missing or broken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from ._version import __version__


class NotBuiltError(RuntimeError):
    """An op was called, but the compiled module could not be loaded; the message says why and what to do."""


def _load() -> tuple[Any, str]:
    try:
        from . import _C

        _C.cpu_isa()
    except ImportError as error:
        if "No module named" in str(error) or "cannot import name" in str(error):
            reason = "the compiled module fastcv._C is missing"
        else:
            reason = (
                f"the compiled module fastcv._C does not load into torch {torch.__version__}, "
                f"Python {sys.version_info.major}.{sys.version_info.minor} ({error})"
            )
        return None, f"{reason}; build it with: pip install --no-build-isolation . (or make build), needs torch >= 2.10 and g++"
    except ValueError as error:  # FASTCV_CPU_ISA names no instruction set
        return None, str(error)
    return _C, ""


_C, _why_missing = _load()

choices = 0  # how often fastcv.use and fastcv.tuned have changed which variants are taken


def choices_changed() -> None:
    """What was arranged for the variants that were taken until now is to be arranged anew."""
    global choices
    choices += 1


def is_built() -> bool:
    """True if the compiled module is loaded."""
    return _C is not None


def module() -> Any:
    """The module ``fastcv._C``. Raises NotBuiltError if it could not be loaded."""
    if _C is None:
        raise NotBuiltError(f"fastcv {__version__}: {_why_missing}")
    return _C


def why_missing() -> str:
    """Why the compiled module is not loaded and what to do; '' if it is."""
    return _why_missing


def build_info() -> dict[str, Any]:
    """What the compiled module was built with: version, git, compiler, torch, cuda, cuda_archs. Raises NotBuiltError."""
    return module().build_info()


def cpu_isa() -> str:
    """The instruction set in use: portable, avx2, avx512, avx512vnni, avx512bf16, amx (capped by FASTCV_CPU_ISA). Raises NotBuiltError."""
    return module().cpu_isa()


def op(name: str) -> Callable[..., Any]:
    """The raw op ``fastcv::<name>``: no autograd, no Python checks. Without the module, a function that raises NotBuiltError."""
    if _C is None:

        def missing(*_args: Any, **_kwargs: Any) -> Any:
            raise NotBuiltError(f"fastcv.{name}: {_why_missing}")

        return missing
    return getattr(torch.ops.fastcv, name).default


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers the shape function of ``fastcv::<name>`` (sizes may be symbolic, strides as the kernel's)."""
    if _C is None:
        return lambda function: function
    return torch.library.register_fake(f"fastcv::{name}")


def vmap(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers the batching rule of ``fastcv::<name>``, called as rule(info, in_dims, *args)."""
    if _C is None:
        return lambda function: function
    return torch.library.register_vmap(f"fastcv::{name}")
