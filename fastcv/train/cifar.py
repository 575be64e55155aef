"""CIFAR-10 and CIFAR-100 on disk, binary and Python version (https://www.cs.toronto.edu/~kriz/cifar.html), checked byte by byte.

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

__all__ = ["find"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32


def find(folder: Path) -> Images | None:
    """The set in ``folder``, or in the folder within it that its archive unpacks to; None if there is none. Raises DataError."""
    inside = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python")
    for candidate in (folder, *(folder / name for name in inside)):
        if (candidate / "test_batch.bin").exists() or (candidate / "data_batch_1.bin").exists():
            return _ten(candidate, ".bin")
        if (candidate / "test_batch").exists() or (candidate / "data_batch_1").exists():
            return _ten(candidate, "")
        if (candidate / "train.bin").exists() or (candidate / "test.bin").exists():
            return _hundred(candidate, ".bin")
        if (candidate / "train").is_file() or (candidate / "test").is_file():
            return _hundred(candidate, "")
    return None


def _ten(folder: Path, suffix: str) -> Images:
    """CIFAR-10. data_batch_1, data_batch_2, ... and test_batch with the suffix: records of one label byte and 3,072 pixel bytes
    (".bin"), or pickled dicts with b'data' uint8 [N, 3072] and b'labels' ("")."""
    classes = _names(folder / f"batches.meta{'.txt' if suffix else ''}", "label_names", 10) or CLASSES
    numbers = [
        int(n) for f in folder.glob(f"data_batch_*{suffix}") if (n := f.name.removeprefix("data_batch_").removesuffix(suffix)).isdigit()
    ]
    files = [folder / f"data_batch_{i}{suffix}" for i in range(1, max(numbers, default=1) + 1)] + [folder / f"test_batch{suffix}"]
    read = _binary_batch if suffix else _python_batch
    return _assemble("CIFAR-10", files, lambda file: read(file, "labels", 10), classes)


def _hundred(folder: Path, suffix: str) -> Images:
    """CIFAR-100 with its fine labels. train and test with the suffix: records of a coarse label, a fine label and the pixels
    (".bin"), or pickled dicts with b'fine_labels' ("")."""
    classes = _names(folder / ("fine_label_names.txt" if suffix else "meta"), "fine_label_names", 100)
    read = _binary_batch if suffix else _python_batch
    files = [folder / f"{part}{suffix}" for part in ("train", "test")]
    return _assemble("CIFAR-100", files, lambda file: read(file, "fine_labels", 100), classes or tuple(f"class {i}" for i in range(100)))


def _names(file: Path, field: str, count: int) -> tuple[str, ...]:
    """The classes by name, from a text file or from this field of a pickle; none if there is no such file."""
    if not file.exists():
        return ()
    if file.suffix == ".txt":
        lines = [line.strip() for line in _read(file).decode("utf-8", "replace").splitlines() if line.strip()]
        if len(lines) != count:
            raise DataError(f"{file} names {len(lines)} classes, expected {count}")
        return tuple(lines)
    found = _field(_unpickle(file), field, file)
    if not isinstance(found, list) or len(found) != count or not all(isinstance(name, (bytes, str)) for name in found):
        raise DataError(f"{file}: {field} is not a list of {count} names")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in found)


def _assemble(name: str, files: list[Path], read: Callable[[Path], tuple[Tensor, Tensor]], classes: tuple[str, ...]) -> Images:
    """files: the training part's, then the test part's one."""
    for file in files:
        if not file.exists():
            raise DataError(f"{file} is missing")
    batches = [read(file) for file in files]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    test = torch.arange(len(labels) - len(batches[-1][1]), len(labels))
    return Images(name, images.reshape(-1, 3, 32, 32), labels, classes, test=test, mirrored=True)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _check_labels(labels: Tensor, file: Path, classes: int) -> Tensor:
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        raise DataError(f"{file}: record {int(wrong[0])} has label {int(labels[wrong[0]])}, CIFAR-{classes} has 0 to {classes - 1}")
    return labels


def _binary_batch(file: Path, field: str, classes: int) -> tuple[Tensor, Tensor]:
    content = _read(file)
    place = 0 if field == "labels" else 1
    record = place + 1 + PIXELS
    if not content or len(content) % record:
        raise DataError(f"{file} is truncated: {len(content):,} bytes are not a whole number of {record:,}-byte records")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, record)
    return records[:, place + 1 :], _check_labels(records[:, place].long(), file, classes)


def _python_batch(file: Path, field: str, classes: int) -> tuple[Tensor, Tensor]:
    batch = _unpickle(file)
    data, labels = _field(batch, "data", file), _field(batch, field, file)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS or not len(data):
        shape = f"{data.dtype} array {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{file}: data is {shape}, expected a uint8 array [N, {PIXELS}]")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{file}: {field} is not a list of integers")
    if len(labels) != len(data):
        raise DataError(f"{file} has {len(data):,} images but {len(labels):,} labels")
    if any(abs(label) >= 1 << 31 for label in labels):
        raise DataError(f"{file}: a label is far outside 0 to {classes - 1}")
    return torch.from_numpy(np.array(data, order="C")), _check_labels(torch.tensor(labels, dtype=torch.long), file, classes)


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
        raise DataError(f"{file} is not a pickled CIFAR batch: {reason}") from error
