"""Which devices fastcv's kernels serve; what is left to torch is said once for each GPU."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from . import _ext

OLDEST = (8, 0)  # compute capability of the oldest GPUs that the kernels are built for


@cache
def why_not(index: int) -> str:
    """Why the CUDA kernels do not serve GPU ``index``, in one clause; '' if they do."""
    if not _ext.is_built():
        return ""  # each op says so itself
    if not _ext.build_info()["cuda"]:
        return f"this build of fastcv, against torch {_ext.build_info()['torch']}, has no CUDA kernels"
    if not torch.cuda.is_available():
        return ""  # a tensor without memory, whose shape alone is asked for
    found = torch.cuda.get_device_capability(index)
    if found >= OLDEST:
        return ""
    have, need = (".".join(map(str, version)) for version in (found, OLDEST))
    return f"{torch.cuda.get_device_name(index)} has compute capability {have}, fastcv's kernels need {need}"


def serves(t: Tensor) -> bool:
    """True if fastcv's kernels run on t's device."""
    return t.is_cpu or (t.is_cuda and not why_not(t.get_device()))


@torch.compiler.assume_constant_result
@cache
def leaves_to_torch(index: int) -> bool:
    """True if torch's kernels are to run on GPU ``index``; warns when that is first found."""
    why = why_not(index)
    if why:
        warnings.warn(f"fastcv: {why}: torch's kernels run on GPU {index} in their place", stacklevel=4)
    return bool(why)
