"""Initial weights: He's for layers followed by ReLU, Xavier's for tanh and sigmoid.

He: variance 2 / fan (He et al. 2015, arXiv:1502.01852); Xavier: 2 / (fan_in + fan_out) (Glorot and Bengio 2010). Biases start
at zero.
"""

from __future__ import annotations

from torch import nn

__all__ = ["he_", "linear_normal_", "xavier_"]


def _kernels(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def _zero_bias(module: nn.Module) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def he_(network: nn.Module, mode: str = "fan_out", kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> None:
    """Normal weights of standard deviation sqrt(2 / fan) in all layers of ``kinds``; mode: "fan_in" or "fan_out"."""
    for module in _kernels(network, kinds):
        nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        _zero_bias(module)


def xavier_(network: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)) -> None:
    """Uniform weights of variance 2 / (fan_in + fan_out) in all layers of ``kinds``."""
    for module in _kernels(network, kinds):
        nn.init.xavier_uniform_(module.weight)
        _zero_bias(module)


def linear_normal_(network: nn.Module, std: float) -> None:
    """Normal weights of standard deviation ``std`` in all linear layers."""
    for module in _kernels(network, (nn.Linear,)):
        nn.init.normal_(module.weight, 0, std)
        _zero_bias(module)
