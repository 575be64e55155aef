"""Readers of CIFAR-10 and of folders of images, splits and augmentation: on tiny data made here, and on what is broken about it."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcv.train.data import DataError, Images, Standardiser, augment, load, split
from fastcv.vision.knn import folds_of, majority

Image = pytest.importorskip("PIL.Image")


def _records(count: int, seed: int) -> np.ndarray:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records


def _cifar_binary(folder: Path, train: int = 20, test: int = 10) -> Path:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(["data_batch_1", "data_batch_2"]):
        (folder / f"{name}.bin").write_bytes(_records(train, i).tobytes())
    (folder / "test_batch.bin").write_bytes(_records(test, 9).tobytes())
    return folder


def _batch(count: int, seed: int, **changes: object) -> dict[bytes, object]:
    records = _records(count, seed)
    batch: dict[bytes, object] = {b"data": records[:, 1:].copy(), b"labels": records[:, 0].tolist(), b"batch_label": b"one"}
    return batch | {name.encode(): value for name, value in changes.items()}


def _cifar_python(folder: Path, protocol: int = 2, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(["data_batch_1", "data_batch_2"]):
        (folder / name).write_bytes(pickle.dumps(_batch(20, i), protocol))
    (folder / "test_batch").write_bytes(pickle.dumps(_batch(10, 9, **changes), protocol))
    return folder


def _image_folder(folder: Path, count: int = 6, size: tuple[int, int] = (20, 12)) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (100 * label + i, 50, 200)).save(folder / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder


def test_cifar_binary_and_python_agree(tmp_path: Path) -> None:
    binary = load(_cifar_binary(tmp_path / "bin"))
    assert binary.images.shape == (50, 3, 32, 32) and binary.images.dtype == torch.uint8
    assert binary.test.tolist() == list(range(40, 50)) and binary.labels[:20].tolist() == [i % 10 for i in range(20)]
    assert binary.images[21, 1, 0, 5] == _records(20, 1)[1, 1 + 1024 + 5]  # record, then channel, row, column
    for protocol in range(6):
        python = load(_cifar_python(tmp_path / "py", protocol))
        assert torch.equal(python.images, binary.images) and torch.equal(python.labels, binary.labels)


def test_cifar_class_names_and_unpacked_archive(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(10)]
    folder = _cifar_binary(tmp_path / "cifar-10-batches-bin")
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    assert load(tmp_path).classes == tuple(names)
    (folder / "batches.meta.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"batches\.meta\.txt names 2 classes, expected 10"):
        load(tmp_path)
    folder = _cifar_python(tmp_path / "py")
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in names]}))
    assert load(folder).classes == tuple(names)


def test_cifar_binary_errors_name_the_file(tmp_path: Path) -> None:
    folder = _cifar_binary(tmp_path / "bin")
    whole = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(whole[:-7])
    with pytest.raises(DataError, match=r"data_batch_2\.bin is truncated: 61,453 bytes are not a whole number of 3,073-byte records"):
        load(folder)
    (folder / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"data_batch_2\.bin is truncated"):
        load(folder)
    wrong = _records(20, 1)
    wrong[7, 0] = 10
    (folder / "data_batch_2.bin").write_bytes(wrong.tobytes())
    with pytest.raises(DataError, match=r"data_batch_2\.bin: record 7 has label 10, CIFAR-10 has 0 to 9"):
        load(folder)
    (folder / "data_batch_2.bin").rename(folder / "data_batch_3.bin")
    with pytest.raises(DataError, match=r"data_batch_2\.bin is missing"):
        load(folder)
    (folder / "data_batch_3.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin is missing"):
        load(folder)
    (folder / "test_batch.bin").mkdir()
    with pytest.raises(DataError, match=r"test_batch\.bin cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0] * 9}, "test_batch has 10 images but 9 labels"),
        ({"labels": [0] * 9 + [10]}, "test_batch: record 9 has label 10"),
        ({"labels": [0] * 9 + [1 << 70]}, "a label is far outside 0 to 9"),
        ({"labels": "0123456789"}, "labels is not a list of integers"),
        ({"data": np.zeros((10, 3071), np.uint8)}, r"data is uint8 array \[10, 3071\], expected a uint8 array \[N, 3072\]"),
        ({"data": np.zeros((10, 3072))}, r"data is float64 array"),
        ({"data": [1, 2]}, "data is list"),
    ],
)
def test_cifar_python_errors_name_the_file(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(_cifar_python(tmp_path / "py", **changes))


def test_cifar_python_truncated_anywhere(tmp_path: Path) -> None:
    folder = _cifar_python(tmp_path / "py")
    whole = (folder / "test_batch").read_bytes()
    for length in (0, 1, 50, 1000, len(whole) - 1):
        (folder / "test_batch").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"test_batch is .*truncated"):
            load(folder)
    (folder / "test_batch").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="test_batch holds a list, expected a dict"):
        load(folder)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}))
    with pytest.raises(DataError, match="test_batch has no field 'labels'"):
        load(folder)


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_cifar_pickles_run_no_code(tmp_path: Path) -> None:
    folder = _cifar_python(tmp_path / "py", labels=_Attack(tmp_path / "attacked"))
    with pytest.raises(DataError, match=r"test_batch is not a pickled CIFAR batch: it asks for (posix|nt)\.mkdir"):
        load(folder)
    assert not (tmp_path / "attacked").exists()


def test_image_folder(tmp_path: Path) -> None:
    data = load(_image_folder(tmp_path / "pets"), size=16)
    assert data.images.shape == (12, 3, 16, 16) and data.classes == ("cat", "dog") and data.test is None
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    assert data.images[7, :, 3, 3].tolist() == [101, 50, 200]  # dog/1.png


def test_image_folder_with_its_own_parts(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3)):
        _image_folder(tmp_path / part, count)
    data = load(tmp_path)
    assert data.test.tolist() == list(range(12, 18)) and data.validation is None
    _image_folder(tmp_path / "test", 2)
    data = load(tmp_path)
    assert data.test.tolist() == list(range(12, 16)) and data.validation.tolist() == list(range(16, 22))
    parts = split(data, 0)
    assert parts.train.tolist() == list(range(12))
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(DataError, match=r"val/bird is a class that .*train does not have"):
        load(tmp_path)


def test_undecodable_names_become_printable(tmp_path: Path) -> None:
    _image_folder(tmp_path)
    try:
        (tmp_path / "dog").rename(tmp_path / os.fsdecode(b"d\xffg"))
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    assert load(tmp_path).classes == ("cat", "d?g")


def test_image_modes(tmp_path: Path) -> None:
    folder = _image_folder(tmp_path / "pets")
    Image.new("P", (8, 8)).save(folder / "cat" / "a.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(folder / "cat" / "b.png")
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(folder / "cat" / "c.png")
    Image.new("L", (8, 8), 77).save(folder / "cat" / "d.PNG")
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "cat" / "._0.png").write_bytes(b"not an image either")
    data = load(folder, size=8)
    assert len(data.labels) == 16
    assert data.images[8, :, 0, 0].tolist() == [128] * 3 and data.images[9, :, 0, 0].tolist() == [77] * 3
    # Numbers of 32 bits keep their tones; of which nobody knows the white are refused.
    Image.fromarray(np.full((8, 8), 0x8080, np.int32)).save(folder / "cat" / "b.tif")
    Image.fromarray(np.full((8, 8), 0.2, np.float32)).save(folder / "cat" / "c.tif")
    data = load(folder, size=8)
    assert {tuple(image[:, 0, 0].tolist()) for image in data.images} >= {(128,) * 3, (51,) * 3}
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(folder / "cat" / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif cannot be read as an image: its pixels go from 70000 to 70000, expected 0 to 65535"):
        load(folder, size=8)


def test_image_folder_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither CIFAR-10 batches .* nor a folder of images"):
        load(tmp_path)
    folder = _image_folder(tmp_path / "pets")
    with pytest.raises(DataError, match=r"0\.jpg is a file, expected a folder"):
        load(folder / "cat" / "0.jpg")
    with pytest.raises(DataError, match=r"has one class folder \(pets\), at least two are needed"):
        load(tmp_path)
    whole = (folder / "dog" / "3.png").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        (folder / "dog" / "3.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"dog/3\.png cannot be read as an image: "):
            load(folder)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        load(folder)
    (tmp_path / "parts").mkdir()
    _image_folder(tmp_path / "parts" / "train")
    with pytest.raises(DataError, match=r"has train/ but neither val/ nor test/"):
        load(tmp_path / "parts")


def _labelled(counts: list[int]) -> Images:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Images("made", torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, tuple(map(str, range(len(counts)))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=5), st.integers(0, 1000))
def test_split_parts_are_disjoint_and_complete(counts: list[int], seed: int) -> None:
    data = _labelled(counts)
    parts = split(data, seed)
    joined = torch.cat([parts.train, parts.validation, parts.test])
    assert joined.sort().values.tolist() == list(range(len(data.labels)))
    for part in vars(parts).values():
        assert data.labels[part].unique().tolist() == list(range(len(counts)))  # each class stands in each part
    again = split(data, seed)
    assert all(torch.equal(a, b) for a, b in zip(vars(parts).values(), vars(again).values(), strict=True))
    assert torch.equal(parts.development, torch.cat([parts.train, parts.validation]).sort().values)


def test_split_says_which_class_is_too_small() -> None:
    with pytest.raises(DataError, match="made: class '1' has 2 images to train on, at least 3 are needed"):
        split(_labelled([9, 2]), 0)


def test_image_and_label_counts_must_agree() -> None:
    with pytest.raises(DataError, match="made has 3 images but 2 labels"):
        Images("made", torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), ("a", "b"))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=50), st.integers(2, 5))
def test_folds_are_disjoint_complete_and_stratified(labels: list[int], folds: int) -> None:
    labels_, folds = torch.tensor(labels), min(folds, len(labels))
    parts = folds_of(labels_, folds, seed=3)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    counts = torch.stack([torch.bincount(labels_[part], minlength=4) for part in parts])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1


def test_majority_breaks_ties_for_the_nearest() -> None:
    rows = torch.tensor([[2, 1, 1, 2], [0, 1, 1, 1], [3, 0, 1, 2], [1, 2, 2, 1]])
    assert majority(rows, 4).tolist() == [2, 1, 3, 1]
    assert majority(rows[:, :1], 4).tolist() == [2, 0, 3, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 7), st.booleans(), st.integers(0, 99))
def test_augment_moves_and_mirrors_whole_images(n: int, height: int, width: int, shift: int, mirror: bool, seed: int) -> None:
    images = torch.randint(0, 256, (n, 2, height, width), dtype=torch.uint8)
    moved = augment(images, shift, mirror, torch.Generator().manual_seed(seed))
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    assert torch.equal(moved, augment(images, shift, mirror, torch.Generator().manual_seed(seed)))
    for before, after in zip(images, moved, strict=True):
        padded = [torch.nn.functional.pad(x, [shift] * 4) for x in ([before, before.flip(-1)] if mirror else [before])]
        steps = range(2 * shift + 1)
        assert any(torch.equal(after, p[:, y : y + height, x : x + width]) for p in padded for y in steps for x in steps)


def test_augment_uses_the_whole_range() -> None:
    images = torch.zeros(400, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 9
    places = augment(images, 2, False, torch.Generator().manual_seed(0)).flatten(1).argmax(1).unique()
    assert len(places) == 25
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)


def test_standardiser_gives_mean_zero_and_deviation_one() -> None:
    images = torch.randint(0, 200, (30, 3, 6, 6), dtype=torch.uint8)
    images[:, 2] = 17  # a constant channel stays finite
    result = Standardiser(images)(images)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((0, 2, 3), correction=0)[:2], torch.ones(2))
    assert torch.equal(result[:, 2], torch.zeros(30, 6, 6))
