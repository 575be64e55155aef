"""channels_last inside a model whose user keeps row-major images: converted on entry, and back on exit.

On a CPU, kernels of 1x1 and depthwise convolutions read channels_last images in place and transpose row-major ones; on a GPU
all kernels on tensor cores do, and depthwise ones read 16 bytes at a time instead of an element. A model made mostly of such
convolutions is run inside that layout: measured to be faster on a CPU, expected to be on a GPU. Whether one may be run so is
tried on the example: a forward that takes views which only row-major images have, changes or returns its input, or gives
outputs of other strides keeps its layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from ..functional._common import autocast_dtype
from ..functional._conv_arguments import precision_of
from .forwards import InstanceForward, installed
from .kernels import has_hooks, under_transform
from .report import Report
from .trace import model_copy, random_states_kept

ROWS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
_DEVICES = ("cpu", "cuda")
_TENSOR_CORES = (1, 2)  # precisions of float32 that they have: high and medium (csrc/conv/conv.h)


def reads_in_place(conv: _ConvNd, device: str, dtype: torch.dtype, precision: int) -> bool:
    """Whether the kernel that serves this convolution of tensors of ``dtype`` on a device of this type reads channels_last images
    as they lie, and row-major ones only through a copy, or element by element (csrc/conv/conv.cpp: kRows, kGpuRows).

    precision: of float32, as csrc/conv/conv.h numbers it.
    """
    depthwise, groups = conv.groups == conv.in_channels, conv.groups
    if device == "cpu":
        return depthwise or max(conv.kernel_size) == 1
    pack = 16 // dtype.itemsize
    if depthwise:
        return conv.out_channels == groups and groups % pack == 0
    if dtype is torch.float64 or (dtype is torch.float32 and precision not in _TENSOR_CORES):
        return False  # the ordinary units take either layout as it lies
    channels, outputs = conv.in_channels // groups, conv.out_channels // groups
    return channels % pack == 0 and (groups == 1 or (channels >= 8 and outputs >= 16))


def _is_only(t: Any, layout: torch.memory_format) -> bool:
    """True for a batch of images in this layout that is not in the other as well."""
    if type(t) is not Tensor or t.dim() != 4 or not t.is_floating_point() or t.device.type not in _DEVICES:
        return False
    return all(t.is_contiguous(memory_format=f) == (f is layout) for f in (ROWS, CHANNELS_LAST))


def device_of_rows(args: Any, kwargs: Any) -> str:
    """The type of device of row-major images; "" if there are none, or channels_last ones, or images of several devices."""
    leaves = pytree.tree_leaves((args, kwargs))
    devices = {t.device.type for t in leaves if _is_only(t, ROWS)}
    return devices.pop() if len(devices) == 1 and not any(_is_only(t, CHANNELS_LAST) for t in leaves) else ""


def _converted(values: Any, source: torch.memory_format, to: torch.memory_format) -> Any:
    return pytree.tree_map(lambda t: t.clone(memory_format=to) if _is_only(t, source) else t, values)


def in_other_layout(model: nn.Module, args: Any, kwargs: Any) -> tuple[nn.Module, Any, Any] | None:
    """``model``, which is changed, and the arguments in channels_last; if anything was channels_last before, row-major. None without
    batches of images.
    """
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim() == 4 and t.is_floating_point()]
    if not leaves:
        return None
    last = any(_is_only(t, CHANNELS_LAST) for t in (*leaves, *(p.data for p in model.parameters())))
    source, to = (CHANNELS_LAST, ROWS) if last else (ROWS, CHANNELS_LAST)
    return model.to(memory_format=to), *_converted((args, kwargs), source, to)


class LayoutForward(InstanceForward):
    """The forward of a whole model: without gradients, in evaluation mode, on channels_last copies of its row-major images.

    device: the type of device of the images that it was tried on; elsewhere other kernels serve.
    """

    def __init__(self, module: nn.Module, report: Report, device: str) -> None:
        super().__init__(module)
        self.report = report
        self.device = device
        self.inner = installed(module)
        self.given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stays = self.given_up or self.module.training or torch.is_grad_enabled() or under_transform()
        if stays or device_of_rows(args, kwargs) != self.device:
            return self._forward(*args, **kwargs)
        try:
            return self.inside(args, kwargs)
        except Exception as error:
            reason = _asks_for_rows(error)
        output = self._forward(*args, **kwargs)  # where the error was the user's own, it comes again
        self.given_up = True  # it was the layout: such as a view on a path that the example did not take
        self.report.layout_kept = f"in a later call {reason}"
        return output

    def inside(self, args: Any, kwargs: Any) -> Any:
        """The output for channels_last copies, in the layout that the user expects."""
        args, kwargs = _converted((args, kwargs), ROWS, CHANNELS_LAST)
        return _converted(self._forward(*args, **kwargs), CHANNELS_LAST, ROWS)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.inner or type(self.module).forward.__get__(self.module))(*args, **kwargs)


def why_not_channels_last(model: nn.Module, report: Report, args: Any, kwargs: Any) -> str:
    """Why the optimised ``model`` keeps the layout of its images, tried on these; "" if it may run inside channels_last."""
    convs = [m for m in model.modules() if isinstance(m, _ConvNd) and installed(m) is not None]
    device = device_of_rows(args, kwargs)
    if not device:
        return "the example has no row-major images"
    fit = [m for m in convs if reads_in_place(m, device, autocast_dtype(m.weight) or m.weight.dtype, precision_of(m.weight))]
    if 2 * len(fit) < len(convs) or not fit:
        kind = "are 1x1 or depthwise" if device == "cpu" else "read channels_last images as they lie"
        return f"{len(fit)} of {len(convs)} convolutions {kind}"
    if any(has_hooks(m) for m in model.modules()):
        return "it has hooks, which would see the layout"
    plain, inside = model_copy(model).eval(), LayoutForward(model_copy(model).eval(), report, device)
    with torch.no_grad(), random_states_kept(model, args, kwargs):
        torch.manual_seed(0)
        own_args, own_kwargs = _copies(args, kwargs)
        versions = _versions(own_args, own_kwargs)
        before = plain(*own_args, **own_kwargs)
        if versions != _versions(own_args, own_kwargs):
            return "it changes its input"
        if _memory(before) & _memory((own_args, own_kwargs)):
            return "it returns its input, or a view of it"
        torch.manual_seed(0)
        try:
            after = inside.inside(*_copies(args, kwargs))
        except Exception as error:
            return _asks_for_rows(error)
    (mine, own), (theirs, spec) = pytree.tree_flatten(after), pytree.tree_flatten(before)
    if own != spec or not all(map(_alike, mine, theirs)):
        return "its outputs would have other strides, or are of a kind that cannot be looked into"
    return ""


def _asks_for_rows(error: Exception) -> str:
    return f"it asks for row-major images ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"


def _versions(*values: Any) -> list[int]:
    return [t._version for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]


def _memory(values: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in pytree.tree_leaves(values) if isinstance(t, Tensor) and t.numel()}


def _copies(args: Any, kwargs: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype is b.dtype and a.stride() == b.stride()
    return type(a) is type(b) and isinstance(a, (int, float, str, type(None)))
