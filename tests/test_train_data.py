"""Readers of CIFAR-100, MNIST's idx files and VOC-style folders, the composed set, files read lazily and corrupt ones named."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data import _image_folder

from fastcv.train import composed
from fastcv.train.data import IGNORED, DataError, Standardiser, split
from fastcv.train.files import ImageFiles
from fastcv.train.sources import find, open_data

Image = pytest.importorskip("PIL.Image")


def _hundred(count: int, seed: int) -> np.ndarray:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3074), dtype=np.uint8)
    records[:, 1] = np.arange(count) % 100
    return records


def test_cifar100_binary_and_python_agree(tmp_path: Path) -> None:
    binary, python = tmp_path / "cifar-100-binary", tmp_path / "p" / "cifar-100-python"
    binary.mkdir()
    python.mkdir(parents=True)
    names = [f"fine {i}" for i in range(100)]
    (binary / "fine_label_names.txt").write_text("\n".join(names))
    (python / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in names]}))
    for part, count, seed in (("train", 120, 1), ("test", 30, 2)):
        records = _hundred(count, seed)
        (binary / f"{part}.bin").write_bytes(records.tobytes())
        labels = {b"fine_labels": records[:, 1].tolist(), b"coarse_labels": records[:, 0].tolist()}
        (python / part).write_bytes(pickle.dumps({b"data": records[:, 2:].copy()} | labels))
    first, second = find(tmp_path, 32), find(tmp_path / "p", 32)
    assert first.name == "CIFAR-100" and first.classes == tuple(names) == second.classes
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    assert first.labels[119] == 19 and first.test.tolist() == list(range(120, 150))
    assert first.images[3, 2, 31, 31] == _hundred(120, 1)[3, -1]
    (binary / "train.bin").write_bytes(_hundred(4, 1).tobytes()[:-1])
    with pytest.raises(DataError, match=r"train\.bin is truncated: 12,295 bytes are not a whole number of 3,074-byte records"):
        find(tmp_path, 32)
    wrong = _hundred(4, 1)
    wrong[2, 1] = 100
    (binary / "train.bin").write_bytes(wrong.tobytes())
    with pytest.raises(DataError, match="record 2 has label 100, CIFAR-100 has 0 to 99"):
        find(tmp_path, 32)


def _idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape) + values.tobytes()


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path: Path, mark: str, zipped: bool) -> None:
    random = np.random.default_rng(0)
    parts = {"train": random.integers(0, 256, (12, 7, 5), dtype=np.uint8), "t10k": random.integers(0, 256, (4, 7, 5), dtype=np.uint8)}
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, images in parts.items():
        for kind, values in (("images{}idx3", images), ("labels{}idx1", np.arange(len(images), dtype=np.uint8) % 10)):
            content = _idx(values)
            name = f"{part}-{kind.format(mark)}-ubyte"
            (raw / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    data = find(tmp_path, 32)
    assert data.images.shape == (16, 1, 7, 5) and data.test.tolist() == [12, 13, 14, 15] and data.labels[13] == 1
    assert data.images[13, 0].tolist() == parts["t10k"][1].tolist() and len(data.classes) == 10
    file = next(raw.glob("t10k-images*"))
    whole = file.read_bytes()
    for damaged, message in (
        (whole[:-3], "t10k-images.*(truncated|cannot be read)"),
        (b"\x7fELF" + whole[4:], "t10k-images.*(is no idx file of bytes|cannot be read)"),
        (b"", "t10k-images.*(is no idx file of bytes: it begins with nothing|cannot be read)"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            find(tmp_path, 32)
    file.unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is missing"):
        find(tmp_path, 32)


def _voc(root: Path, lists: dict[str, list[str]], size: tuple[int, int] = (20, 10)) -> Path:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for part, names in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image = Image.new("RGB", size, (50 + i, 0, 200))
            image.paste((50 + i, 90, 200), (size[0] // 2, 0, *size))
            image.save(root / "JPEGImages" / f"{name}.png")
            mask = np.zeros(size[::-1], np.uint8)
            mask[:, : size[0] // 2], mask[0] = 20, IGNORED
            picture = Image.fromarray(mask, "L")
            picture.putpalette(list(range(256)) * 3)
            picture.save(root / "SegmentationClass" / f"{name}.png")
    return root


def test_voc_folder(tmp_path: Path) -> None:
    _voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": ["a", "b", "c"], "val": ["d", "e"]})
    files = find(tmp_path, 10)
    assert isinstance(files, ImageFiles) and files.task == "segmentation" and len(files.classes) == 21 and files.shape == (3, 10, 10)
    data = files.in_memory()
    assert data.images.shape == (5, 3, 10, 10) and data.labels.shape == (5, 10, 10) and data.test.tolist() == [3, 4]
    # 20x10 fits into 10x10 as 10x5: the rest is ignored, and black
    assert (data.labels[:, 5:] == IGNORED).all() and (data.images[:, :, 5:] == 0).all()
    assert (data.labels[0, 1:5, :5] == 20).all() and (data.labels[0, 1:5, 5:] == 0).all()
    assert data.images[1, :, 2, 2].tolist() == [51, 0, 200]
    found = Standardiser.measured_on(data, torch.tensor([0, 2]))
    expected = data.images[[0, 2], :, :5].double().mean((0, 2, 3))  # padding does not count
    torch.testing.assert_close(found.mean.flatten(), expected.float())
    parts = split(data, 0)
    assert parts.test.tolist() == [3, 4] and len(parts.validation) == 1 and len(parts.train) == 2


def test_voc_errors_name_the_file(tmp_path: Path) -> None:
    root = _voc(tmp_path, {"train": ["a", "b", "c"], "val": ["d", "e"]})
    mask = root / "SegmentationClass" / "b.png"
    Image.new("L", (20, 10), 21).save(mask)
    with pytest.raises(DataError, match=r"b\.png holds the class 21, there are 21"):
        open_data(str(tmp_path), 16)
    Image.new("RGB", (20, 10)).save(mask)
    with pytest.raises(DataError, match=r"b\.png is an image of mode RGB, expected a mask"):
        open_data(str(tmp_path), 16)
    Image.new("L", (10, 20)).save(mask)
    with pytest.raises(DataError, match=r"b\.png is 10x20 pixels, its image 20x10"):
        open_data(str(tmp_path), 16)
    skipping = open_data(str(tmp_path), 16, skip_corrupt=True)
    assert len(skipping) == 4 and skipping.test.tolist() == [2, 3] and len(skipping.skipped) == 1 and "b.png" in skipping.skipped[0]
    mask.unlink()
    with pytest.raises(DataError, match=r"train\.txt names b, which has no mask"):
        open_data(str(tmp_path), 16)
    (root / "classes.txt").write_text("paper\n")
    Image.new("L", (20, 10)).save(mask)
    with pytest.raises(DataError, match=r"classes\.txt names 1 classes, expected 2 to 255"):
        open_data(str(tmp_path), 16)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"a is named more than once"):
        (root / "classes.txt").unlink()
        open_data(str(tmp_path), 16)


def test_corrupt_images_are_named_and_skipped_only_if_asked(tmp_path: Path) -> None:
    folder = _image_folder(tmp_path / "pets", 6)
    for name, content in (("1.png", b"text"), ("2.jpg", (folder / "dog" / "2.jpg").read_bytes()[:200])):
        (folder / "dog" / name).write_bytes(content)
    with pytest.raises(DataError, match=r"dog/1\.png cannot be read as an image"):
        open_data(str(folder), 16)
    data = open_data(str(folder), 16, skip_corrupt=True)
    assert len(data) == 10 and [line.split()[0] for line in data.skipped] == [str(folder / "dog" / n) for n in ("1.png", "2.jpg")]
    for file in (folder / "cat").iterdir():
        file.write_bytes(b"")
    for file in (folder / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"pets has no image that can be read; the first: .*cat/0\.jpg"):
        open_data(str(folder), 16, skip_corrupt=True)


def test_files_read_lazily_are_those_in_memory(tmp_path: Path) -> None:
    folder = _image_folder(tmp_path / "pets", 6, (33, 20))
    (folder / "cat" / "3.png").write_bytes(b"")
    lazy, memory = (find(folder, 12).checked(skip_corrupt=True, limit=limit) for limit in (0, 1 << 20))
    assert isinstance(lazy, ImageFiles) and not isinstance(memory, ImageFiles)
    indices = torch.tensor([10, 0, 4])
    for a, b in zip(lazy.read(indices), memory.read(indices), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(lazy.sums, memory.sums)
    train = torch.arange(7)
    measured, counted = Standardiser.measured_on(lazy, train), Standardiser(memory.images[train])
    assert torch.equal(measured.mean, counted.mean) and torch.equal(measured.deviation, counted.deviation)
    assert [torch.equal(a, b) for a, b in zip(vars(split(lazy, 1)).values(), vars(split(memory, 1)).values(), strict=True)] == [True] * 3


def test_composed_set_is_exact_and_repeatable() -> None:
    pytest.importorskip("sklearn")
    first = composed.load()
    assert first.task == "segmentation" and first.images.shape == (2200, 3, 48, 48) and first.labels.dtype == torch.uint8
    assert first.labels.unique().tolist() == list(range(11)) and len(first.classes) == 11
    parts = split(first, 0)
    assert [len(part) for part in vars(parts).values()] == [1600, 200, 400]
    for part in vars(parts).values():
        assert first.labels[part].unique().tolist() == list(range(11))
    again = composed.load()
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, composed.load(seed=1).images)
