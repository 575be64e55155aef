"""From an option such as "resnet20" or "package.module:function" to the network, on torch's layers or fastcv's."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

import fastcv

from .. import _ext, models
from .checkpoint import CheckpointError, load_any
from .options import Options, OptionError

__all__ = ["build", "features_of", "load_weights", "outputs_of"]


def build(options: Options, classes: int, channels: int) -> nn.Module:
    """The network, initialised from --seed. Raises OptionError, and NotBuiltError where fastcv's layers are asked for."""
    if options.fastcv != "off":
        _ext.module()
    torch.manual_seed(options.seed)
    layers = fastcv.nn if options.fastcv == "nn" else nn
    extra = {} if options.dropout < 0 else {"dropout": options.dropout}
    if ":" in options.model:
        function = _function(options.model)
        accepted = inspect.signature(function).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        arguments = {"num_classes": classes, "in_chans": channels, "layers": layers} | extra
        left_out = [name for name in arguments if name not in accepted and not any_name]
        if left_out and left_out != ["layers"]:
            raise OptionError(f"--model {options.model} does not take {left_out[0]}=")
        network = function(**{name: value for name, value in arguments.items() if name not in left_out})
        if not isinstance(network, nn.Module):
            raise OptionError(f"--model {options.model} gives a {type(network).__name__}, not a torch.nn.Module")
    else:
        if options.model not in models.list_models():
            raise OptionError(f"--model {options.model} is none of {', '.join(models.list_models())}")
        try:
            network = models.get_model(options.model, num_classes=classes, in_chans=channels, layers=layers, **extra)
        except TypeError as error:
            raise OptionError(f"--model {options.model} cannot be built with these options: {error}") from None
    return fastcv.optimize(network, mode="training", inplace=True) if options.fastcv == "optimize" else network


def _function(spec: str) -> Any:
    package, _, function = spec.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(package), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"--model {spec}: {error}") from error
    finally:
        sys.path.remove("")


def load_weights(network: nn.Module, file: str) -> list[str]:
    """Parameters from a checkpoint or a state_dict, those that fit by name and shape. Returns what did not, one line each.

    Raises CheckpointError if the file cannot be read or nothing in it fits.
    """
    state = load_any(file)
    state = state.get("model_ema") or state.get("model") or state
    own = network.state_dict()
    fitting, lines = {}, []
    for name, value in state.items():
        if name not in own:
            lines.append(f"{name}: the model has no such parameter")
        elif not isinstance(value, Tensor) or value.shape != own[name].shape:
            lines.append(f"{name}: {list(getattr(value, 'shape', []))} in the file, {list(own[name].shape)} in the model")
        else:
            fitting[name] = value
    if not fitting:
        raise CheckpointError(f"{file} holds no parameter of this model (the first: {lines[0] if lines else 'it is empty'})")
    lines += [f"{name}: not in the file" for name in own if name not in state]
    network.load_state_dict(fitting, strict=False)
    return lines


def outputs_of(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits, and those of the auxiliary head where the model has one: segmentation models return a dict with "out" and "aux"."""
    outputs = network(images)
    if isinstance(outputs, dict):
        return outputs["out"], outputs.get("aux")
    return outputs, None


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer is given, [B, D]. Raises OptionError if the network has none."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not last:
        raise OptionError("this model has no linear layer whose input could serve as features")
    seen: list[Tensor] = []
    handle = last[-1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    return seen[-1].flatten(1).float()
