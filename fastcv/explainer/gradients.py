"""The backward pass of a watched model, with each node of autograd's graph counted under the layer that made it.

A node's number says when it was made, so the frame that ran then is its layer: exact for functions, operators and fused chains
as well as for modules, and no hook on a module is needed, which would make fused chains step aside. The nodes' own hooks start and
stop a clock around each of them; what the engine does in between (sums of gradients, Python) is counted under no layer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .watch import Clock

ENGINE = "(engine)"


class Spans:
    """Which frame of a clock was the innermost when a node of autograd's graph was made, by the node's number."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """For the next call of the model."""
        self._numbers: list[int] = []
        self._names: list[str] = []

    def note(self, name: str) -> None:
        """From here on the innermost frame is ``name``."""
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._names.append(name)

    def name_of(self, number: int) -> str:
        """The frame in which the node of this number was made; "" if none."""
        at = bisect_right(self._numbers, number) - 1
        return self._names[at] if at >= 0 else ""


class Backward:
    """Runs the backward pass of one watched model's output; ``clock`` holds the seconds of each layer's nodes."""

    def __init__(self, model: nn.Module, spans: Spans) -> None:
        self.clock = Clock()
        self.spans = spans
        self.model = model
        self._owners = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}

    def prepare(self, output: Any) -> Callable[[], None]:
        """The backward pass from every tensor of ``output`` with a gradient, to be called once, in the thread of the clock.

        Raises ValueError if there is none.
        """
        outputs = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        if not outputs:
            raise ValueError("fastcv.explain: no output of the model has a gradient, there is no backward pass to measure")
        generator = torch.Generator().manual_seed(0)
        seeds = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in outputs]
        self.model.zero_grad(set_to_none=True)
        seen = {t.grad_fn for t in outputs if t.grad_fn is not None}
        left = list(seen)
        while left:
            node = left.pop()
            self._clock_in(node)
            new = [n for n, _ in node.next_functions if n is not None and n not in seen]
            seen.update(new)
            left += new
        return self.clock.timed(ENGINE, lambda: torch.autograd.backward(outputs, seeds))

    def _clock_in(self, node: Any) -> None:
        variable = getattr(node, "variable", None)  # of a node that adds to a parameter's .grad
        name = self._owners.get(id(variable), "") if variable is not None else self.spans.name_of(node._sequence_nr())
        node.register_prehook(lambda _: self.clock.enter(name))
        node.register_hook(lambda *_: self.clock.leave())
