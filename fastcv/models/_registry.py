"""The names of the zoo: ``register_model`` puts a builder under its own name, ``list_models`` and ``get_model`` find it."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import numbers
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .weights import load_weights

__all__ = ["TASKS", "ModelInfo", "get_model", "list_models", "model_info", "register_model"]

TASKS = ("classification", "segmentation", "reconstruction")
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without building it.

    task: one of TASKS. input_size: channels, height and width of the images it was published for. sized: its parameters depend on
    the images' size, so that it takes ``image_size`` and square images of that size only.
    """

    name: str
    task: str
    input_size: tuple[int, int, int]
    sized: bool

    def config_for(self, channels: int, height: int, width: int) -> dict[str, int]:
        """The keywords of ``get_model`` that fit the model to such images. Raises ValueError where it takes square ones only."""
        if not self.sized:
            return {"in_chans": channels}
        if height != width:
            raise ValueError(f"{self.name} takes square images, got {height}x{width}")
        return {"in_chans": channels, "image_size": height}


_BUILDERS: dict[str, Builder] = {}
_INFO: dict[str, ModelInfo] = {}


def register_model(
    task: str = "classification", input_size: tuple[int, int, int] = (3, 224, 224), sized: bool = False
) -> Callable[[Builder], Builder]:
    """A decorator that registers a builder with its ``ModelInfo`` and adds two keywords to it.

    weights: a file that ``load_weights`` reads into the model; weights_backbone: one that it reads into ``model.backbone``. Keys
    that belong to a head are not required of the latter, and a head for another number of classes keeps its initial values.
    ``progress`` is taken because torchvision's builders take it; nothing is downloaded, so it changes nothing.
    Raises ValueError for a task that is none of TASKS and for a name that is taken.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")

    def register(function: Builder) -> Builder:
        @functools.wraps(function)
        def build(
            *,
            weights: str | os.PathLike | None = None,
            weights_backbone: str | os.PathLike | None = None,
            progress: bool = True,
            **config: Any,
        ) -> nn.Module:
            _check(config)
            model = function(**config)
            if weights_backbone is not None:
                if not isinstance(getattr(model, "backbone", None), nn.Module):
                    raise ValueError(f"{function.__name__} has no backbone to load {os.fspath(weights_backbone)!r} into; use weights=")
                load_weights(model.backbone, weights_backbone, ignore_unexpected=True)
            if weights is not None:
                load_weights(model, weights)
            return model

        if function.__name__ in _BUILDERS:
            raise ValueError(f"a model named {function.__name__!r} is registered already")
        _BUILDERS[function.__name__] = build
        _INFO[function.__name__] = ModelInfo(function.__name__, task, input_size, sized)
        return build

    return register


def _check(config: dict[str, Any]) -> None:
    """Raises ValueError for values of the keywords that all models share which no model could take."""
    for name, least in (("num_classes", 0), ("in_chans", 1)):
        value = config.get(name, least)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if "layers" in config and not hasattr(config["layers"], "Conv2d"):
        raise ValueError(f"layers must be a namespace of modules, fastcv.nn or torch.nn, got {config['layers']!r}")


def list_models(include: str | Iterable[str] = "*", exclude: str | Iterable[str] = (), task: str | None = None) -> list[str]:
    """The names that match ``include`` and not ``exclude``, shell patterns or several of them, of one task or all, sorted."""
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    wanted, unwanted = ([patterns] if isinstance(patterns, str) else list(patterns) for patterns in (include, exclude))

    def matches(name: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return sorted(
        name for name, info in _INFO.items() if matches(name, wanted) and not matches(name, unwanted) and task in (None, info.task)
    )


def model_info(name: str) -> ModelInfo:
    """What is known of the model of that name, in capitals or not. Raises ValueError for an unknown one, naming those that are near."""
    lower = name.lower()
    if lower not in _INFO:
        within = [known for known in sorted(_INFO) if lower and lower in known]
        near = list(dict.fromkeys([*within[:2], *difflib.get_close_matches(lower, _INFO, n=3)]))[:3]
        hint = f"did you mean {' or '.join(near)}?" if near else "fastcv.models.list_models() lists the names"
        raise ValueError(f"there is no model {name!r}; {hint}")
    return _INFO[lower]


def get_model(name: str, **config: Any) -> nn.Module:
    """The model of that name. Every model takes ``in_chans``, ``layers`` (fastcv.nn, the default, or torch.nn) and ``weights``.

    Those that label images or pixels take ``num_classes``; further keywords are those of the model's class. Raises ValueError for
    an unknown name, naming those that are near, and TypeError for a keyword that the model does not have.
    """
    return _BUILDERS[model_info(name).name](**config)
