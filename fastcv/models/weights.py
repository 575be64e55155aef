"""Weights from a local file into a model, with an exact account of what did not fit. Nothing is fetched from a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightsError", "WeightsReport", "load_weights", "read_state_dict"]


class WeightsError(ValueError):
    """The file cannot be read, or does not fit the model; the message names the file and what is wrong."""


@dataclass(frozen=True)
class WeightsReport:
    """What happened to each key. loaded: copied into the model; missing: in the model only; unexpected: in the file only;
    mismatched: in both, as (key, shape in the file, shape in the model); reset: the mismatched keys of the model's head, which
    keep their initial values.
    """

    path: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    reset: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        """True if the file and the model have the same keys and shapes, the head apart."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded"]
        for title, keys in (("missing in the file", self.missing), ("unexpected in the file", self.unexpected)):
            lines += [f"{len(keys)} {title}:", *(f"  {key}" for key in keys)] if keys else []
        for title, rows in (("of another shape", self.mismatched), ("of the head left as initialised", self.reset)):
            if rows:
                lines.append(f"{len(rows)} {title}:")
                lines += [f"  {key}: {list(theirs)} in the file, {list(ours)} in the model" for key, theirs, ours in rows]
        return "\n".join(lines)


class UnreadableError(ValueError):
    """torch.load's reason, in a few words and without its advice to run the code in the file."""


def read_tensors(file: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, read without running code. Raises UnreadableError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it then refuses
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything
        whole = str(error)
        lines = (whole.partition("WeightsUnpickler error:")[2] or whole).strip().splitlines()
        unspoken = isinstance(error, (EOFError, KeyError)) or not lines
        raise UnreadableError("it is empty, cut off or of another kind" if unspoken else lines[0].strip().split(". ")[0]) from error


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that ``torch.save`` wrote (read with weights_only=True).

    Of a checkpoint the entry "model", "state_dict" or "model_state_dict" is taken; a prefix "module." of all keys is dropped.
    Raises WeightsError for a file that is not there, not readable, or holds no state_dict.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"there is no weights file {str(path)!r} (nothing is downloaded: give the path of a file)")
    if file.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise WeightsError(f"reading {str(path)!r} needs safetensors ({error}): pip install safetensors") from error
        try:
            content: Any = load_file(file)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    else:
        try:
            content = read_tensors(file)
        except UnreadableError as error:
            raise WeightsError(f"{str(path)!r} is not a file of tensors that torch.load(weights_only=True) reads: {error}") from error
    for entry in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise WeightsError(f"{str(path)!r} holds no state_dict: a mapping of names to tensors")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def load_weights(model: nn.Module, path: str | os.PathLike, strict: bool = True, ignore_unexpected: bool = False) -> WeightsReport:
    """Copies the tensors of a file into ``model``; returns the account of all keys.

    A layer named in ``model.HEAD`` whose shape differs, as for another number of classes, keeps its initial values, and keys of
    a part named in ``model.OPTIONAL`` that the model was built without are left: both are no error. strict: anything else that
    does not fit raises WeightsError with the whole account, and the model stays as it was; strict=False loads what fits.
    ignore_unexpected: keys that only the file has are listed and are no error. The counters ``num_batches_tracked`` of batch
    norms, which files from before 2018 lack, are not counted as missing.
    """
    own, state = model.state_dict(), read_state_dict(path)
    rename = getattr(model, "renamed_key", None)
    if rename is not None:
        state = {rename(key): value for key, value in state.items()}
    heads = tuple(f"{name}." for name in getattr(model, "HEAD", ()))
    optional = tuple(f"{name}." for name in getattr(model, "OPTIONAL", ()) if getattr(model, name) is None)
    differing = [
        (key, tuple(value.shape), tuple(own[key].shape)) for key, value in state.items() if key in own and value.shape != own[key].shape
    ]
    fits = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    report = WeightsReport(
        os.fspath(path),
        loaded=tuple(key for key in own if key in fits),
        missing=tuple(key for key in own if key not in state and not key.endswith(".num_batches_tracked")),
        unexpected=tuple(key for key in state if key not in own),
        mismatched=tuple(row for row in differing if not row[0].startswith(heads)),
        reset=tuple(row for row in differing if row[0].startswith(heads)),
    )
    surplus = [key for key in report.unexpected if not (ignore_unexpected or key.startswith(optional))]
    if strict and (report.missing or report.mismatched or surplus):
        raise WeightsError(f"the weights do not fit {type(model).__name__}; {report}")
    model.load_state_dict(fits, strict=False)
    return report
