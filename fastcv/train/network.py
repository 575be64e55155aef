"""From an option such as "resnet20" or "package.module:function" to the network, on torch's layers or fastcv's, and its answers."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

import fastcv

from .. import _ext, models
from .options import OptionError, Options

__all__ = ["build", "check_answers", "features_of", "outputs_of"]


def build(options: Options, task: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network for images of ``shape`` (C, H, W), initialised from --seed, --weights in it.

    Raises OptionError, WeightsError, and NotBuiltError where fastcv's layers are asked for and there is no compiled module.
    """
    if options.fastcv != "off":
        _ext.module()
    torch.manual_seed(options.seed)
    config = {"num_classes": classes, "layers": fastcv.nn if options.fastcv == "nn" else nn}
    if options.dropout >= 0:
        config["dropout"] = options.dropout
    network = _of_user(options, config | {"in_chans": shape[0]}) if ":" in options.model else _of_zoo(options, task, config, shape)
    if options.weights:
        report = models.load_weights(network, options.weights)
        if report.reset:
            names = ", ".join(key for key, _, _ in report.reset)
            print(f"--weights {options.weights}: {names} are for other classes and start anew", file=sys.stderr)
    return fastcv.optimize(network, mode="training", inplace=True) if options.fastcv == "optimize" else network


def _of_zoo(options: Options, task: str, config: dict[str, Any], shape: tuple[int, int, int]) -> nn.Module:
    if options.aux_loss:
        config["aux_loss"] = True
    if options.weights_backbone:
        config["weights_backbone"] = options.weights_backbone
    try:
        info = models.model_info(options.model)
        if info.task != task:
            raise ValueError(f"{options.model} is a model for {info.task}, the data is for {task}")
        return models.get_model(options.model, **config, **info.config_for(*shape))
    except (ValueError, TypeError) as error:
        raise OptionError(f"--model {options.model}: {error}") from error


def _of_user(options: Options, config: dict[str, Any]) -> nn.Module:
    package, _, name = options.model.partition(":")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(package), name)
    except Exception as error:  # the file is the user's and may raise anything
        raise OptionError(f"--model {options.model}: {error or type(error).__name__}") from error
    finally:
        sys.path.remove("")
    if not callable(function):
        raise OptionError(f"--model {options.model} is a {type(function).__name__}, not a function that gives a torch.nn.Module")
    accepted = _parameters(function)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        if "layers" not in accepted:
            config.pop("layers")
        missing = [name for name in config if name not in accepted]
        if missing:
            raise OptionError(f"--model {options.model} does not take {missing[0]}=")
    try:
        network = function(**config)
    except Exception as error:
        raise OptionError(f"--model {options.model} raised {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise OptionError(f"--model {options.model} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def _parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # of a function that is not written in Python nothing is known
        return {}


@torch.no_grad()
def check_answers(network: nn.Module, options: Options, task: str, classes: int, image: Tensor) -> None:
    """Asks the network about one image [1, C, H, W], in evaluation mode. Raises OptionError if it does not take it, or answers in
    another shape than one logit per class, and per pixel for masks."""
    shape = "x".join(map(str, image.shape[1:]))
    try:
        answer = outputs_of(network.eval(), image)[0]
    except Exception as error:  # a layer's that does not fit, or the user's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OptionError(f"--model {options.model} does not take images of {shape}: {reason[0]}") from error
    expected = (1, classes, *(image.shape[2:] if task == "segmentation" else ()))
    found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if found != expected:
        raise OptionError(f"--model {options.model} answers an image of {shape} by {found}, expected logits of shape {expected}")


def outputs_of(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits, and those of the auxiliary head where the model has one: segmentation models return a dict with "out" and "aux"."""
    outputs = network(images)
    if isinstance(outputs, dict):
        return outputs["out"], outputs.get("aux")
    return outputs, None


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer is given, float32 [B, D]. Raises OptionError if the network has none."""
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
