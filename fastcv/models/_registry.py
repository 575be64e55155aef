"""The names of the zoo: ``register_model`` puts a builder under its own name, ``list_models`` and ``get_model`` find it."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .weights import load_weights

__all__ = ["TASKS", "get_model", "list_models", "register_model", "task_of"]

TASKS = ("classification", "segmentation", "reconstruction")
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class _Entry:
    build: Builder
    task: str


_ENTRIES: dict[str, _Entry] = {}


def register_model(task: str = "classification") -> Callable[[Builder], Builder]:
    """A decorator that registers a builder and adds two keywords to it.

    weights: a file that ``load_weights`` reads into the model; weights_backbone: one that it reads into ``model.backbone``. Keys
    that belong to a head are not required of the latter, and a head for another number of classes keeps its initial values.
    Raises ValueError for a task that is none of TASKS and for a name that is taken.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")

    def register(function: Builder) -> Builder:
        @functools.wraps(function)
        def build(
            *, weights: str | os.PathLike | None = None, weights_backbone: str | os.PathLike | None = None, **config: Any
        ) -> nn.Module:
            model = function(**config)
            if weights_backbone is not None:
                if not isinstance(getattr(model, "backbone", None), nn.Module):
                    raise ValueError(f"{function.__name__} has no backbone to load {os.fspath(weights_backbone)!r} into; use weights=")
                load_weights(model.backbone, weights_backbone, ignore_unexpected=True)
            if weights is not None:
                load_weights(model, weights)
            return model

        if function.__name__ in _ENTRIES:
            raise ValueError(f"a model named {function.__name__!r} is registered already")
        _ENTRIES[function.__name__] = _Entry(build, task)
        return build

    return register


def list_models(include: str = "*", exclude: str = "", task: str | None = None) -> list[str]:
    """The names that match the shell pattern ``include`` and not ``exclude``, of one task or all, sorted."""
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return sorted(
        name
        for name, entry in _ENTRIES.items()
        if fnmatch.fnmatchcase(name, include) and not fnmatch.fnmatchcase(name, exclude) and task in (None, entry.task)
    )


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, _ENTRIES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "fastcv.models.list_models() lists the names"
        raise ValueError(f"there is no model {name!r}; {hint}")
    return _ENTRIES[name]


def get_model(name: str, **config: Any) -> nn.Module:
    """The model of that name. Every model takes ``in_chans``, ``layers`` (fastcv.nn, the default, or torch.nn) and ``weights``.

    Those that classify pixels or images take ``num_classes``; further keywords are those of the model's class. Raises
    ValueError for an unknown name, naming those that are near, and TypeError for a keyword that the model does not have.
    """
    return _entry(name).build(**config)


def task_of(name: str) -> str:
    """One of TASKS: what the model of that name does. Raises ValueError for an unknown name."""
    return _entry(name).task
