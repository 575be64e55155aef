"""torch's optimisers and schedules, put together from the options. The schedule advances once per update."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from .options import Options

__all__ = ["optimizer_of", "schedule_of"]


def optimizer_of(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """The optimiser over the parameters that train; those of norms and biases are a group of their own if their decay is."""
    groups = _groups(network, options)
    if options.opt in ("sgd", "sgd_nesterov"):
        return torch.optim.SGD(
            groups, options.lr, momentum=options.momentum, nesterov=options.opt == "sgd_nesterov" and options.momentum > 0
        )
    if options.opt == "rmsprop":
        return torch.optim.RMSprop(groups, options.lr, momentum=options.momentum, eps=0.0316, alpha=0.9)  # torchvision's constants
    return (torch.optim.Adam if options.opt == "adam" else torch.optim.AdamW)(groups, options.lr)


def _groups(network: nn.Module, options: Options) -> list[dict[str, object]]:
    parameters = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if options.norm_weight_decay < 0:
        return [{"params": [p for _, p in parameters], "weight_decay": options.weight_decay}]
    parts = {True: [], False: []}
    for _, p in parameters:
        parts[p.dim() < 2].append(p)
    decays = {True: options.norm_weight_decay, False: options.weight_decay}
    return [{"params": parts[norm], "weight_decay": decays[norm]} for norm in (False, True) if parts[norm]]


def schedule_of(optimizer: torch.optim.Optimizer, options: Options, updates_per_epoch: int) -> schedules.LRScheduler:
    """The learning rate of each update: the warm-up, then the schedule over the updates that are left."""
    total = options.epochs * updates_per_epoch
    warmup = min(round(options.lr_warmup_epochs * updates_per_epoch), total)
    main = _main(optimizer, options, max(1, total - warmup), updates_per_epoch, warmup)
    if not warmup:
        return main
    start = max(options.lr_warmup_decay, 1e-12)  # torch's LinearLR does not start at 0
    if options.lr_warmup_method == "linear":
        first = schedules.LinearLR(optimizer, start_factor=start, total_iters=warmup)
    else:
        first = schedules.ConstantLR(optimizer, factor=options.lr_warmup_decay, total_iters=warmup)
    return schedules.SequentialLR(optimizer, [first, main], [warmup])


def _main(optimizer: torch.optim.Optimizer, options: Options, updates: int, per_epoch: int, warmup: int) -> schedules.LRScheduler:
    if options.lr_scheduler == "step":
        return schedules.StepLR(optimizer, max(1, round(options.lr_step_size * per_epoch)), options.lr_gamma)
    if options.lr_scheduler == "cosine":
        return schedules.CosineAnnealingLR(optimizer, updates, options.lr_min)
    if options.lr_scheduler == "linear":
        end = options.lr_min / options.lr if options.lr else 0.0
        return schedules.LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=updates)
    if options.lr_scheduler == "polynomial":
        return schedules.PolynomialLR(optimizer, updates, options.lr_power)
    if options.lr_scheduler == "exponential":
        return schedules.ExponentialLR(optimizer, options.lr_gamma ** (1 / per_epoch))
    if options.lr_scheduler == "inverse_sqrt":  # Vaswani et al. 2017: from the end of the warm-up on, with the square root of the time
        origin = max(1, warmup)
        return schedules.LambdaLR(optimizer, lambda step: (origin / (origin + step)) ** 0.5)
    return schedules.ConstantLR(optimizer, factor=1.0, total_iters=0)


def advance(schedule: schedules.LRScheduler) -> None:
    """One update further."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its parts in a way that torch itself warns about
        schedule.step()
