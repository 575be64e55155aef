"""Measured choices of variants: the file that ``fastcv tune`` writes, and obeying it, which nothing does of itself.

A choice says: this layer (all its sizes, layout, dtype and precision, but not its batch) takes this variant. It holds for every
batch and every number of threads, so an answer still depends on neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import _ext

SCHEMA = 2
KIND = "fastcv tune"
Choice = tuple[str, list[int], str]  # op, the numbers of the layer (csrc/common/layer.h), variant


def layer_words(op: str, numbers: Sequence[int]) -> dict[str, Any]:
    """The numbers of a layer under their names; a number that stands for a word as that word."""
    words: dict[str, Any] = {}
    at = 0
    for name, count, names in _ext.module().layer_fields(op):
        part = list(numbers[at : at + count])
        words[name] = names[part[0]] if names else part[0] if count == 1 else part
        at += count
    return words


def layer_numbers(op: str, words: Any) -> list[int]:
    """The inverse of ``layer_words``. Raises ValueError, which names the field that is wrong."""
    fields = _ext.module().layer_fields(op)
    if not isinstance(words, dict) or set(words) != {name for name, _, _ in fields}:
        raise ValueError(f"the layer has not exactly the fields {', '.join(name for name, _, _ in fields)}")
    numbers: list[int] = []
    for name, count, names in fields:
        value = words[name]
        if names and value not in names:
            raise ValueError(f"{name} {value!r} is none of {', '.join(names)}")
        part = [names.index(value)] if names else value if count > 1 else [value]
        if not (isinstance(part, list) and len(part) == count and all(type(v) is int and 0 <= v < 2**31 for v in part)):
            raise ValueError(f"{name} {value!r} is not {f'{count} whole numbers' if count > 1 else 'a whole number'} from 0 to 2^31")
        numbers += part
    return numbers


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of ``fastcv tune``, checked as far as any machine can. Raises ValueError, one sentence that names the file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no file of fastcv tune: it is no text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: damaged, {error.msg}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is no file of fastcv tune")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')!r}, this fastcv reads schema {SCHEMA}: tune again")
    if not isinstance(content.get("machine"), dict) or not isinstance(content.get("layers"), list):
        raise ValueError(f"{path} is damaged: it names no machine or no layers")
    return content


def choices_of(content: dict[str, Any], path: str | os.PathLike[str]) -> list[Choice]:
    """The choices of a file that was read, for this machine.

    Raises ValueError, one sentence: another processor or instruction set, an op, a layer or a variant that this build has not.
    """
    from .bench.machine import processor

    module = _ext.module()
    here = {"processor": processor(), "isa": module.cpu_isa()}
    for name, value in here.items():
        if content["machine"].get(name) != value:
            raise ValueError(
                f"{path} was measured on another machine: its {name} is {content['machine'].get(name)!r}, here it is {value!r}"
            )
    choices: list[Choice] = []
    ops = module.variant_ops()
    for number, entry in enumerate(content["layers"], 1):
        op, variant = (entry.get("op"), entry.get("variant")) if isinstance(entry, dict) else (None, None)
        if op not in ops or not isinstance(variant, str):
            raise ValueError(f"{path}, layer {number}: damaged, its op is {op!r} and its variant {variant!r}")
        try:
            numbers = layer_numbers(op, entry.get("layer"))
        except ValueError as error:
            raise ValueError(f"{path}, layer {number} ({op}): {error}") from None
        if why := module.why_not_tuned(op, numbers, variant):
            raise ValueError(f"{path}, layer {number}: {op} {why}")
        choices.append((op, numbers, variant))
    return choices


class tuned:
    """``with fastcv.tuned("tuned.json"):`` obeys the choices of a file of ``fastcv tune`` within the block; called without
    ``with`` from then on. They hold in all threads, and add to those that hold already, before which they go;
    ``fastcv.tuned(None)`` leaves none. ``fastcv.use`` goes before them.

    Files are consulted here alone, never by an environment variable or a place where one may lie. A layer that the file does not
    have takes the variant it always takes.

    Raises ValueError, one sentence, and changes nothing: no such file, a damaged one, one of another schema, processor or
    instruction set, a variant that this build does not have or that is less exact than the accuracy rule allows.
    Raises NotBuiltError without the compiled module.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        module = _ext.module()
        before = module.tuned_choices()
        fresh = [] if path is None else choices_of(read(path), path)
        held = {(op, tuple(numbers)): variant for op, numbers, variant in ([] if path is None else [*before, *fresh])}
        module.set_tuned([(op, list(numbers), variant) for (op, numbers), variant in held.items()])
        _ext.choices_changed()
        self._before = before

    def __enter__(self) -> tuned:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _ext.module().set_tuned(self._before)
        _ext.choices_changed()


def tuned_choices() -> list[dict[str, Any]]:
    """The measured choices that hold now, each {"op": ..., "layer": {...}, "variant": ...}; empty unless ``fastcv.tuned`` was called.

    Raises NotBuiltError without the compiled module.
    """
    rows = sorted(_ext.module().tuned_choices())
    return [{"op": op, "layer": layer_words(op, numbers), "variant": variant} for op, numbers, variant in rows]
