"""CIFAR-10 on disk, binary and Python version (https://www.cs.toronto.edu/~kriz/cifar.html), checked byte by byte.

The pickles of the Python version are read by an unpickler that can build NumPy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import DataError, Images

__all__ = ["load_binary", "load_python"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS


def load_binary(folder: Path) -> Images:
    """data_batch_1.bin, data_batch_2.bin, ... and test_batch.bin: records of one label byte and 3,072 pixel bytes."""
    classes = CLASSES
    names = folder / "batches.meta.txt"
    if names.exists():
        lines = [line.strip() for line in _read(names).decode("utf-8", "replace").splitlines() if line.strip()]
        if len(lines) != 10:
            raise DataError(f"{names} names {len(lines)} classes, expected 10")
        classes = tuple(lines)
    return _assemble(folder, ".bin", _binary_batch, classes)


def load_python(folder: Path) -> Images:
    """data_batch_1, data_batch_2, ... and test_batch: pickled dicts with b'data' uint8 [N, 3072] and b'labels'."""
    classes = CLASSES
    names = folder / "batches.meta"
    if names.exists():
        found = _field(_unpickle(names), "label_names", names)
        if not isinstance(found, list) or len(found) != 10 or not all(isinstance(name, (bytes, str)) for name in found):
            raise DataError(f"{names}: label_names is not a list of 10 names")
        classes = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in found)
    return _assemble(folder, "", _python_batch, classes)


def _assemble(folder: Path, suffix: str, read: Callable[[Path], tuple[Tensor, Tensor]], classes: tuple[str, ...]) -> Images:
    numbers = [
        int(n) for f in folder.glob(f"data_batch_*{suffix}") if (n := f.name.removeprefix("data_batch_").removesuffix(suffix)).isdigit()
    ]
    train = [folder / f"data_batch_{i}{suffix}" for i in range(1, max(numbers, default=1) + 1)]
    for file in (*train, folder / f"test_batch{suffix}"):
        if not file.exists():
            raise DataError(f"{file} is missing")
    batches = [read(file) for file in (*train, folder / f"test_batch{suffix}")]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    test = torch.arange(len(labels) - len(batches[-1][1]), len(labels))
    return Images("CIFAR-10", images.reshape(-1, 3, 32, 32), labels, classes, test=test, mirrored=True)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _check_labels(labels: Tensor, file: Path) -> Tensor:
    wrong = ((labels < 0) | (labels > 9)).nonzero().flatten()
    if len(wrong):
        raise DataError(f"{file}: record {int(wrong[0])} has label {int(labels[wrong[0]])}, CIFAR-10 has 0 to 9")
    return labels


def _binary_batch(file: Path) -> tuple[Tensor, Tensor]:
    content = _read(file)
    if not content or len(content) % RECORD:
        raise DataError(f"{file} is truncated: {len(content):,} bytes are not a whole number of {RECORD:,}-byte records")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, RECORD)
    return records[:, 1:], _check_labels(records[:, 0].long(), file)


def _python_batch(file: Path) -> tuple[Tensor, Tensor]:
    batch = _unpickle(file)
    data, labels = _field(batch, "data", file), _field(batch, "labels", file)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS or not len(data):
        shape = f"{data.dtype} array {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{file}: data is {shape}, expected a uint8 array [N, {PIXELS}]")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{file}: labels is not a list of integers")
    if len(labels) != len(data):
        raise DataError(f"{file} has {len(data):,} images but {len(labels):,} labels")
    if any(abs(label) >= 1 << 31 for label in labels):
        raise DataError(f"{file}: a label is far outside 0 to 9")
    return torch.from_numpy(np.array(data, order="C")), _check_labels(torch.tensor(labels, dtype=torch.long), file)


def _field(batch: Any, name: str, file: Path) -> Any:
    if not isinstance(batch, dict):
        raise DataError(f"{file} holds a {type(batch).__name__}, expected a dict")
    for key in (name.encode(), name):
        if key in batch:
            return batch[key]
    raise DataError(f"{file} has no field {name!r}")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce_ex__(2)[0]
_FROMBUFFER = np.empty(0).__reduce_ex__(5)[0]
_GLOBALS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays from any NumPy's pickles; every other global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image data does not need")
        return _GLOBALS[module, name]


def _unpickle(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return _ArrayUnpickler(stream, encoding="bytes").load()
    except EOFError as error:
        raise DataError(f"{file} is truncated") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged pickles raise nearly anything
        reason = "it is truncated" if "truncated" in str(error) else str(error) or type(error).__name__
        raise DataError(f"{file} is not a pickled CIFAR-10 batch: {reason}") from error
