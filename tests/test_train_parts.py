"""The parts of training that need no run: options, augmentation, schedules, scores, checkpoints."""

import errno
import math
import resource
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcv.train import checkpoint
from fastcv.train.augmentation import Augmentation, center_crop, cutmix, mixup
from fastcv.train.data import IGNORED, DataError, augment
from fastcv.train.evaluation import Scores, confusion_matrix
from fastcv.train.optimizers import advance, optimizer_of, schedule_of
from fastcv.train.options import OptionError, Options, check, normalized

SHAPE = (3, 16, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs must lie between 1 and 1e+06, got 0"),
        ({"lr": float("nan")}, "--lr must lie between 0 and 1e+06, got nan"),
        ({"lr": -0.1}, "--lr must lie between"),
        ({"opt": "lion"}, "--opt must be one of sgd, sgd_nesterov, rmsprop, adam, adamw, got 'lion'"),
        ({"fastcv": "on"}, "--fastcv must be one of off, nn, optimize, got 'on'"),
        ({"lr_scheduler": "warm"}, "--lr-scheduler must be one of"),
        ({"hflip_prob": 1.5}, "--hflip-prob must lie between 0 and 1, got 1.5"),
        ({"epochs": 2, "lr_warmup_epochs": 3}, "--lr-warmup-epochs 3 is more than --epochs 2"),
        ({"test_only": True}, "--test-only needs a checkpoint: --resume FILE"),
        ({"lr": 0.01, "lr_min": 0.1}, "--lr-min 0.1 is larger than --lr 0.01"),
    ],
)
def test_options_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as error:
        check(Options(**values))
    assert str(error.value).startswith(message)


def test_options_of_a_checkpoint() -> None:
    check(Options())
    assert normalized({"lr_scheduler": "cosineannealinglr", "epochs": 3, "of another version": 1}) == Options(epochs=3)


# ---- augmentation ------------------------------------------------------------------------------------------------------------------


def _augmentation(
    task: str = "classification", shape: tuple[int, int, int] = SHAPE, mirrored: bool = False, **values: object
) -> Augmentation:
    return Augmentation(Options(**values), task, shape, 255, mirrored)


def test_masks_move_with_their_images_and_what_comes_in_is_ignored() -> None:
    images = torch.randint(1, 256, (8, 1, 16, 16), dtype=torch.uint8)
    masks = torch.where(images[:, 0] > 128, 1, 0).to(torch.uint8)
    masks[:, 3, 3] = IGNORED
    moved, targets = _augmentation("segmentation", (1, 16, 16), True, shift=5)(images, masks)
    assert targets.dtype == torch.int64 and not torch.equal(moved, images)
    outside = moved[:, 0] == 0
    assert outside.any() and (targets[outside] == IGNORED).all()
    kept = ~outside & (targets != IGNORED)
    assert torch.equal(targets[kept], (moved[:, 0][kept] > 128).long())
    assert (targets == IGNORED).sum() > outside.sum()  # the pixels that were ignored are so still


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.data())
def test_crops_are_pieces_of_the_image(height: int, width: int, shift: int, data: st.DataObject) -> None:
    crop = data.draw(st.integers(1, min(height, width)))
    images = torch.randint(0, 256, (3, 2, height, width), dtype=torch.uint8)
    pieces = augment(images, shift, False, torch.Generator().manual_seed(1), crop)
    assert pieces.shape == (3, 2, crop, crop)
    for image, piece in zip(images, pieces, strict=True):
        padded = F.pad(image, [shift] * 4)
        windows = padded.unfold(1, crop, 1).unfold(2, crop, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows == piece).flatten(1).all(1).any()


def test_crop_larger_than_the_images() -> None:
    with pytest.raises(DataError, match="--train-crop-size 17 is larger than the images, which are 16x16"):
        _augmentation(train_crop_size=17)
    with pytest.raises(DataError, match="--val-crop-size 17 is larger"):
        center_crop(torch.zeros(1, 3, 16, 16), 17)
    assert center_crop(torch.arange(25).reshape(5, 5), 3).tolist() == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]


def test_mixup_and_cutmix_mix_images_and_targets_alike() -> None:
    images, targets = torch.eye(4).reshape(4, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3), torch.eye(4)
    images = torch.ones(4, 1, 16, 16) * torch.arange(4.0)[:, None, None, None]
    seen = set()
    for seed in range(20):
        for mix in (mixup, cutmix):
            torch.manual_seed(seed)
            mixed, soft = mix(images, targets, 1.0)
            torch.testing.assert_close(soft.sum(1), torch.ones(4))
            # an image of constant value v: its mean is the mean of the classes' values by the target
            torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ torch.arange(4.0), atol=1e-5, rtol=0)
            seen.add(round(float(soft[0, 0]), 3))
    assert len(seen) > 20 and torch.equal(images[2], torch.full((1, 16, 16), 2.0))


KORNIA = [
    {"random_resized_crop": 0.5},
    {"rotate": 20.0},
    {"color_jitter": 0.3},
    {"auto_augment": "ra"},
    {"auto_augment": "ta_wide"},
    {"auto_augment": "cifar10"},
    {"random_erase": 1.0},
]


@pytest.mark.parametrize("values", KORNIA, ids=lambda values: "-".join(map(str, values.values())))
def test_kornia_depends_on_torchs_generator_alone(values: dict[str, object]) -> None:
    pytest.importorskip("kornia")
    images, labels = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8), torch.arange(6)
    results = []
    for seed in (1, 1, 2):
        augmentation = _augmentation(**values)
        augmentation(images, labels)  # whatever it keeps from an earlier batch must not matter
        torch.manual_seed(seed)
        results.append(augmentation(images, labels))
    assert torch.equal(results[0][0], results[1][0]) and not torch.equal(results[0][0], results[2][0])
    assert results[0][0].shape == images.shape and float(results[0][0].min()) >= 0 and float(results[0][0].max()) <= 255
    assert torch.equal(results[0][1], labels)


def test_kornia_turns_masks_along_and_ignores_what_comes_in() -> None:
    pytest.importorskip("kornia")
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 8:24, 8:24] = 255
    masks = (image[:, 0] > 0).to(torch.uint8) * 7
    moved, targets = _augmentation("segmentation", (3, 32, 32), shift=0, rotate=45.0)(image, masks)
    assert set(targets.unique().tolist()) == {0, 7, IGNORED}
    known = targets != IGNORED
    agree = ((moved[:, 0] > 127) == (targets == 7))[known].double().mean()
    assert agree > 0.97  # bilinear edges of the image round either way against the nearest of the mask


def test_what_kornia_is_not_asked_for() -> None:
    pytest.importorskip("kornia")
    with pytest.raises(DataError, match="--auto-augment is for classification: the data has masks"):
        _augmentation("segmentation", auto_augment="ra")
    with pytest.raises(DataError, match="--color-jitter is for colour images, the data has 1 channel"):
        _augmentation(shape=(1, 8, 8), color_jitter=0.1)


def test_without_kornia_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kornia.augmentation", None)
    with pytest.raises(DataError, match=r"--rotate needs kornia .*pip install 'fastcv\[augment\]'"):
        _augmentation(rotate=5.0)
    _augmentation(shift=2, hflip_prob=0.5)


# ---- schedules ---------------------------------------------------------------------------------------------------------------------


def _rates(updates_per_epoch: int = 10, **values: object) -> list[float]:
    options = Options(**({"epochs": 10, "lr": 1.0} | values))
    optimizer = optimizer_of(torch.nn.Linear(2, 2), options)
    schedule = schedule_of(optimizer, options, updates_per_epoch)
    rates = []
    for _ in range(options.epochs * updates_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        advance(schedule)
    return rates


def test_schedules() -> None:
    assert _rates(lr_scheduler="constant") == [1.0] * 100
    step = _rates(lr_scheduler="step", lr_step_size=4, lr_gamma=0.1)
    assert step[39] == 1.0 and step[40] == pytest.approx(0.1) and step[99] == pytest.approx(0.01)
    cosine = _rates(lr_scheduler="cosine", lr_min=0.1)
    assert cosine == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * i / 100)) for i in range(100)])
    assert _rates(lr_scheduler="linear") == pytest.approx([1 - i / 100 for i in range(100)])
    assert _rates(lr_scheduler="polynomial", lr_power=2) == pytest.approx([(1 - i / 100) ** 2 for i in range(100)])
    assert _rates(lr_scheduler="exponential", lr_gamma=0.5)[10::10] == pytest.approx([0.5**i for i in range(1, 10)])
    root = _rates(lr_scheduler="inverse_sqrt", lr_warmup_epochs=2)
    assert root[20:] == pytest.approx([(20 / (20 + i)) ** 0.5 for i in range(80)])


def test_warm_up() -> None:
    rates = _rates(lr_scheduler="cosine", lr_warmup_epochs=2, lr_warmup_decay=0.1)
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(0.55) and rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5) and rates[99] < 0.001
    flat = _rates(lr_scheduler="constant", lr_warmup_epochs=1, lr_warmup_method="constant", lr_warmup_decay=0.25)
    assert flat[:10] == [0.25] * 10 and flat[10:] == [1.0] * 90


def test_norms_and_biases_have_a_decay_of_their_own() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    weight, norm = optimizer_of(network, Options(norm_weight_decay=0.0, weight_decay=0.5)).param_groups
    assert weight["weight_decay"] == 0.5 and norm["weight_decay"] == 0.0
    assert [p.dim() for p in weight["params"]] == [4] and [p.dim() for p in norm["params"]] == [1, 1, 1]


# ---- scores and checkpoints --------------------------------------------------------------------------------------------------------


def test_scores() -> None:
    truth, answers = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 2])
    scores = Scores(confusion_matrix(answers, truth, 4), 0.5, {1: 4 / 6, 5: 0.9})
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.iou.tolist()[:3] == pytest.approx([2 / 4, 1 / 3, 1.0]) and math.isnan(scores.iou[3])
    assert scores.mean_iou == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)
    assert scores.as_dict("segmentation", ("a", "b", "c", "d"))["iou"]["d"] is None
    assert scores.as_dict("classification", ("a", "b", "c", "d")) == {"loss": 0.5, "accuracy": scores.accuracy, "top5": 0.9}


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.pt"
    state = {"model": {"w": torch.ones(3)}, "args": {}, "data": {}, "epoch": 1, "history": []}
    checkpoint.save(state, file)
    assert checkpoint.load(file)["model"]["w"].tolist() == [1.0] * 3

    def half(_state: object, stream: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({}, file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"] and checkpoint.load(file)["epoch"] == 1


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    """torch.save reports what it finds in a file cut short, not what cut it short."""
    file = tmp_path / "last.pt"
    checkpoint.save({"epoch": 1}, file)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for write in (lambda: checkpoint.save({"w": torch.ones(100_000)}, file), lambda: checkpoint.write(file, b"x" * 200_000)):
            with pytest.raises(OSError, match="File too large") as caught:
                write()
            assert caught.value.filename == str(file) and caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"] and file.read_bytes() == before
    with pytest.raises(OSError) as caught:
        checkpoint.write(tmp_path / "absent" / "x.json", b"")
    assert caught.value.filename == str(tmp_path / "absent" / "x.json")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.mkdir, (tmp_path / "attacked",)

    file = tmp_path / "x.pt"
    for content in ([1], {"model": {}}, Attack()):
        torch.save(content, file)
        with pytest.raises(checkpoint.CheckpointError, match=r"x\.pt is no checkpoint"):
            checkpoint.load(file)
    assert not (tmp_path / "attacked").exists()
    file.write_bytes(b"text")
    with pytest.raises(checkpoint.CheckpointError, match=r"x\.pt is no checkpoint that can be read"):
        checkpoint.load(file)
    with pytest.raises(checkpoint.CheckpointError, match="none does not exist"):
        checkpoint.load(tmp_path / "none")
