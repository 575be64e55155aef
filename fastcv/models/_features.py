"""The feature maps within a network that is a chain of stages, under the network's own parameter names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["FeatureMaps"]


class FeatureMaps(nn.Module):
    """Runs the stages of ``network`` up to the last tap and returns the outputs of all taps, finest first.

    network: a classifier whose stages run one after another, as its children or as the children of its ``features``.
    taps: names of stages. channels: of each tap's output. nhwc: the stages work on [N, H, W, C]; the maps are returned as
    [N, C, H, W] all the same. Parameter names are those of ``network``, so that its weights load.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str], channels: Sequence[int], nhwc: bool = False) -> None:
        super().__init__()
        self.taps, self.channels, self.nhwc = tuple(taps), tuple(channels), nhwc
        chain = getattr(network, "features", network)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for name, stage in chain.named_children():
            stages[name] = stage
            if name == self.taps[-1]:
                break
        missing = [tap for tap in taps if tap not in stages]
        if missing or len(taps) != len(channels):
            raise ValueError(
                f"{type(network).__name__} has no stages {missing} before {taps[-1]!r}, or {len(channels)} channels are not theirs"
            )
        if chain is network:
            for name, stage in stages.items():
                self.add_module(name, stage)
        else:
            self.features = nn.Sequential(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, stage in getattr(self, "features", self).named_children():
            x = stage(x)
            if name in self.taps:
                maps.append(x.permute(0, 3, 1, 2) if self.nhwc else x)
        return maps
