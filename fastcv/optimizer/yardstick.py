"""How far an optimised model's answers may be from float64: torch's own answers to the same example set the measure.

The rule is fastcv.testing's: an error against float64 of at most twice torch's own in the same dtype, plus one eps. The largest
error of a small example is a matter of luck in the last bit, so what breaks the rule by its largest error fails only if it
breaks it by the Euclidean norm of its error as well; a wrong element stands out in both.

Luck lies in torch's error as well: of a deep network it differs severalfold between torch's kernels for row-major and for
channels_last images. Answers that break the rule in the layout of the example are therefore held against torch's answer in the
other layout too, where the model takes batches of images, runs in it, and there is the same function: where float64, which
shows everything but rounding, gives the same to within one eps of the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .forwards import installed
from .kernels import SYNCHRONISED
from .layout import in_other_layout
from .trace import model_copy, random_states_kept

Results = dict[str, Tensor]


class Measured(NamedTuple):
    """An error against float64 by the largest element, what torch's own allows, and whether the rule is kept."""

    error: float
    allowed: float
    passed: bool


class Yardstick:
    """torch's answers of ``model`` to one example, by name: "output" and, in training mode, "gradient".

    both_layouts: whether a judgement took torch's answers in the other layout in.
    """

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, training: bool) -> None:
        self.both_layouts = False
        self._model, self._arguments, self._training = model, (args, kwargs), training
        self._asked = False
        torchs = run(torch_only(model), args, kwargs, training)
        self._exact = self._in(torch.float64, torch_only(model), args, kwargs)
        self._peers = [torchs]
        if any(t.dtype is torch.float64 for t in torchs.values()):
            self._peers.append(self._in(torch.float32, torch_only(model), args, kwargs))

    def judge(self, ours: Results) -> dict[str, Measured]:
        """The errors of these answers."""
        judged = self._errors(ours)
        if all(result.passed for result in judged.values()):
            return judged
        if not self._asked:
            self._asked = True
            self._ask_in_other_layout()
        return self._errors(ours)

    def _errors(self, ours: Results) -> dict[str, Measured]:
        return {key: measure(ours[key], exact, [peer[key] for peer in self._peers]) for key, exact in self._exact.items() if key in ours}

    def _in(self, dtype: torch.dtype, model: nn.Module, args: Any, kwargs: Any) -> Results:
        return run(model.to(dtype), cast(args, dtype), cast(kwargs, dtype), self._training)

    def _ask_in_other_layout(self) -> None:
        other = in_other_layout(torch_only(self._model), *self._arguments)
        if other is None:
            return
        model, args, kwargs = other
        try:
            torchs = run(model_copy(model), args, kwargs, self._training)
            exact = self._in(torch.float64, model, args, kwargs)
        except Exception:  # the user's forward may ask for one layout
            return
        if torchs.keys() == self._exact.keys() and all(_same(exact[key], self._exact[key], torchs[key].dtype) for key in exact):
            self._peers.append(torchs)
            self.both_layouts = True


def _same(exact: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    return exact.shape == other.shape and total_error(exact, other) <= torch.finfo(dtype).eps


def measure(ours: Tensor, exact: Tensor, peers: Sequence[Tensor]) -> Measured:
    """peers: torch's answers. One of less precision than ours stands, scaled, for the error that torch's float64 has."""
    from ..testing.compare import max_error

    eps = torch.finfo(ours.dtype).eps
    scales = [min(1.0, eps / torch.finfo(peer.dtype).eps) for peer in peers]
    largest, total = (
        (error(ours, exact), 2 * max(error(peer, exact) * scale for peer, scale in zip(peers, scales, strict=True)) + eps)
        for error in (max_error, total_error)
    )
    return Measured(*largest, passed=largest[0] <= largest[1] or total[0] <= total[1])


def total_error(result: Tensor, reference: Tensor) -> float:
    """Euclidean norm of the error over that of the reference, both without the elements that are not finite."""
    result, reference = result.double(), reference.double()
    finite = reference.isfinite()
    if not torch.equal(finite, result.isfinite()):
        return float("inf")
    scale = reference[finite].norm().item()
    error = (result[finite] - reference[finite]).norm().item()
    return error / scale if scale > 0 else error


def cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with its floating tensors in ``dtype``, detached."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().to(dtype) if t.is_floating_point() else t, value)


def fresh(value: Any) -> Any:
    """``value`` with copies of its tensors."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(memory_format=torch.preserve_format), value)


def torch_only(model: nn.Module) -> nn.Module:
    """A copy on torch's kernels, but for synchronised batch norms, which torch has none for."""
    twin = model_copy(model)
    for module in twin.modules():
        if installed(module) is not None and not isinstance(module, SYNCHRONISED):
            del module.forward
    return twin


def run(model: nn.Module, args: Any, kwargs: Any, training: bool) -> Results:
    """Outputs, and in training mode gradients of a fixed weighting of them, as one vector each. Dropout is off."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    with random_states_kept(model, args, kwargs), torch.set_grad_enabled(training):
        torch.manual_seed(0)
        output = model(*fresh(args), **fresh(kwargs))
        tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
        results = {"output": torch.cat([t.detach().flatten() for t in tensors])} if tensors else {}
        used = [t for t in tensors if t.requires_grad]
        if used:
            generator = torch.Generator().manual_seed(0)
            weights = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in used]
            torch.autograd.backward(used, weights)
            gradients = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
            if gradients:
                results["gradient"] = torch.cat(gradients)
    return results
