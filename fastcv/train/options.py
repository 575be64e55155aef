"""The options of ``fastcv train``, spelled as in torchvision's reference scripts (and timm's where those have none), and their limits.

``Options`` is what the command line fills in, what a checkpoint stores and what the engine reads. ``check`` raises
OptionError, whose one sentence names the option and its value.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

__all__ = ["FREE", "OptionError", "Options", "check"]

OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "linear", "polynomial", "exponential", "inverse_sqrt")
SPELLINGS = {"steplr": "step", "cosineannealinglr": "cosine", "exponentiallr": "exponential"}  # torchvision's names
POLICIES = ("ra", "ta_wide", "imagenet", "cifar10", "svhn")
BACKENDS = ("off", "nn", "optimize")


class OptionError(ValueError):
    """An option cannot be used; the message is one sentence with the option and its value."""


def _option(default: Any, text: str, *flags: str) -> Any:
    """A field of Options. flags: spellings beside --the-name-of-the-field."""
    return field(default=default, metadata={"help": text, "flags": flags})


@dataclass(frozen=True)
class Options:
    data_path: str = _option("digits", "digits, digits-segmentation, or a folder: CIFAR, MNIST, VOC-style, one folder per class.")
    model: str = _option("resnet20", "A name of fastcv.models, or package.module:function taking num_classes and in_chans.")
    output_dir: str = _option("train-output", "Folder for checkpoints, logs, pictures and the report.", "-o")
    fastcv: str = _option("nn", "off: torch's layers; nn: fastcv's; optimize: torch's under fastcv.optimize.")
    epochs: int = _option(30, "How often the training part is gone through.")
    batch_size: int = _option(64, "Images per step and process.", "-b")
    device: str = _option("cpu", "cpu, cuda or cuda:N.")
    workers: int = _option(0, "Processes that decode images; 0: in this one.", "-j")
    threads: int = _option(0, "Threads of torch and fastcv; 0: torch's own number.")
    seed: int = _option(0, "Everything random depends on it, the epoch and the step alone.")
    # data and augmentation
    val_resize_size: int = _option(0, "Side to which photographs on disk are resized; 0: 256, with --train-crop-size its 8/7.")
    train_crop_size: int = _option(0, "Side of the squares cut out to train on; 0: the whole image.")
    val_crop_size: int = _option(0, "Side of the middle cut out to evaluate on; 0: --train-crop-size.")
    skip_corrupt: bool = _option(False, "Leave out images that cannot be read; they are named.")
    shift: int = _option(-1, "Move images by up to so many pixels; -1: an eighth of the side, none where there is a crop.")
    hflip_prob: float = _option(-1.0, "Probability of a mirrored image; -1: 0.5 where the data is known to allow it, else 0.")
    random_resized_crop: float = _option(0.0, "Zoom into this share of the image or more; 0: off (kornia).")
    rotate: float = _option(0.0, "Turn by up to so many degrees (kornia).")
    color_jitter: float = _option(0.0, "Change brightness, contrast and saturation by up to this share (kornia).")
    auto_augment: str = _option("", f"A policy of augmentations: {', '.join(POLICIES)} (kornia).")
    ra_magnitude: int = _option(9, "Strength of --auto-augment ra, 0 to 30.")
    random_erase: float = _option(0.0, "Probability of an erased rectangle (kornia).")
    mixup_alpha: float = _option(0.0, "Mix pairs of images, weights from Beta(alpha, alpha); 0: off.")
    cutmix_alpha: float = _option(0.0, "Paste a piece of another image, its area from Beta(alpha, alpha); 0: off.")
    # optimisation
    opt: str = _option("sgd", f"{', '.join(OPTIMIZERS)}.")
    lr: float = _option(0.1, "Learning rate at its highest.")
    momentum: float = _option(0.9, "Of sgd and rmsprop.")
    weight_decay: float = _option(1e-4, "Of all parameters that --norm-weight-decay does not cover.", "--wd")
    norm_weight_decay: float = _option(-1.0, "Weight decay of norms and biases; -1: as the others.")
    label_smoothing: float = _option(0.0, "Share of the target spread over all classes.")
    dropout: float = _option(-1.0, "Dropout probability, of models that have it; -1: the model's own.")
    lr_scheduler: str = _option("cosine", f"{', '.join(SCHEDULES)}.")
    lr_step_size: float = _option(30, "Epochs between steps, for step.")
    lr_gamma: float = _option(0.1, "Factor per step, or per epoch for exponential.")
    lr_power: float = _option(0.9, "Exponent of polynomial.")
    lr_min: float = _option(0.0, "Where cosine and linear end.")
    lr_warmup_epochs: float = _option(0.0, "Epochs of warm-up before the schedule.")
    lr_warmup_method: str = _option("linear", "linear or constant.")
    lr_warmup_decay: float = _option(0.01, "Share of the learning rate at the start of the warm-up.")
    clip_grad_norm: float = _option(0.0, "Largest norm of the gradient; 0: any.")
    grad_accum_steps: int = _option(1, "Batches per update.")
    amp: bool = _option(False, "bfloat16 arithmetic where it is safe (torch.autocast).")
    channels_last: bool = _option(False, "Parameters and images in channels_last.")
    model_ema: bool = _option(False, "Evaluate and keep an exponential moving average of the parameters.")
    model_ema_steps: int = _option(1, "Updates between averagings.")
    model_ema_decay: float = _option(0.998, "Share of the average that stays at each averaging.")
    early_stopping: int = _option(0, "Stop after so many epochs without a better validation result; 0: never.")
    parallel: str = _option("ddp", "Under torchrun, ddp: the whole network in each process; fsdp: its parameters spread over them.")
    sync_bn: bool = _option(False, "Batch norm over all processes.")
    weights: str = _option("", "A file of parameters to start from: a checkpoint of this program, or a state_dict.")
    weights_backbone: str = _option("", "A file of parameters for the backbone of a segmentation network to start from.")
    aux_loss: bool = _option(False, "Train an auxiliary head too, in segmentation networks that have one; its loss counts 0.5.")
    # the run
    resume: str = _option("", "auto: go on from the last checkpoint in --output-dir if there is one; or a checkpoint's file.")
    test_only: bool = _option(False, "Evaluate the checkpoint --resume on the test part, train nothing.")
    recovery_interval: int = _option(0, "Save after every so many updates too; 0: after each epoch.")
    checkpoint_hist: int = _option(0, "Keep the checkpoints of so many last epochs beside last.pt and best.pt.")
    compare_backends: bool = _option(False, "Train on torch's layers too, an epoch of each in turn, and tell losses and speeds apart.")
    print_freq: int = _option(0, "A line of progress every so many steps; 0: one per epoch.")
    tensorboard: bool = _option(False, "Write event files for TensorBoard too.")
    use_deterministic_algorithms: bool = _option(False, "torch.use_deterministic_algorithms(True).")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# What may differ between a run and its continuation. None of it changes a bit of the result but the number of threads (docs/train.md).
FREE = {
    "output_dir", "workers", "threads", "weights", "weights_backbone", "resume", "test_only", "recovery_interval", "checkpoint_hist",
    "print_freq", "tensorboard", "skip_corrupt",
}  # fmt: skip


def flag(name: str) -> str:
    """The option's spelling on the command line."""
    return "--" + name.replace("_", "-")


def normalized(values: dict[str, Any]) -> Options:
    """Options from a dict such as a checkpoint holds; unknown names are left out, torchvision's schedules renamed."""
    known = {f.name for f in fields(Options)}
    options = {name: value for name, value in values.items() if name in known}
    if "lr_scheduler" in options:
        options["lr_scheduler"] = SPELLINGS.get(options["lr_scheduler"], options["lr_scheduler"])
    return Options(**options)


# name -> (least, most), both allowed
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 10**6), "batch_size": (1, 2**31), "workers": (0, 1024), "threads": (0, 4096), "seed": (0, 2**63 - 1),
    "val_resize_size": (0, 65536), "train_crop_size": (0, 65536), "val_crop_size": (0, 65536), "shift": (-1, 65536),
    "random_resized_crop": (0, 1), "rotate": (0, 180), "color_jitter": (0, 1), "ra_magnitude": (0, 30), "random_erase": (0, 1),
    "mixup_alpha": (0, 1e3), "cutmix_alpha": (0, 1e3), "lr": (0, 1e6), "momentum": (0, 1), "weight_decay": (0, 1e3),
    "label_smoothing": (0, 1), "lr_step_size": (1e-9, 1e6), "lr_gamma": (0, 1), "lr_power": (0, 100), "lr_min": (0, 1e6),
    "lr_warmup_epochs": (0, 1e6), "lr_warmup_decay": (0, 1), "clip_grad_norm": (0, 1e9), "grad_accum_steps": (1, 10**6),
    "model_ema_steps": (1, 10**9), "model_ema_decay": (0, 1), "early_stopping": (0, 10**6), "recovery_interval": (0, 10**9),
    "checkpoint_hist": (0, 10**6), "print_freq": (0, 10**9),
}  # fmt: skip
CHOICES = {
    "fastcv": BACKENDS,
    "parallel": ("ddp", "fsdp"),
    "opt": OPTIMIZERS,
    "lr_scheduler": SCHEDULES,
    "lr_warmup_method": ("linear", "constant"),
    "auto_augment": ("", *POLICIES),
}


def check(options: Options) -> None:
    """Raises OptionError for the first value that cannot be."""
    for name in ("data_path", "model", "output_dir"):
        if not getattr(options, name).strip():
            raise OptionError(f"{flag(name)} must not be empty")  # a shell's unset variable, not the current folder
    for name, (least, most) in RANGES.items():
        value = getattr(options, name)
        if not least <= value <= most:
            raise OptionError(f"{flag(name)} must lie between {least:g} and {most:g}, got {value}")
    for name, choices in CHOICES.items():
        value = getattr(options, name)
        if value not in choices:
            raise OptionError(f"{flag(name)} must be one of {', '.join(filter(None, choices))}, got {value!r}")
    for name in ("hflip_prob", "norm_weight_decay", "dropout"):
        value = getattr(options, name)
        if value != -1 and not 0 <= value <= 1:
            raise OptionError(f"{flag(name)} must lie between 0 and 1, got {value}")
    if options.lr_warmup_epochs > options.epochs:
        raise OptionError(f"--lr-warmup-epochs {options.lr_warmup_epochs:g} is more than --epochs {options.epochs}")
    if options.lr_scheduler in ("cosine", "linear") and options.lr_min > options.lr:
        raise OptionError(f"--lr-min {options.lr_min:g} is larger than --lr {options.lr:g}")
    if options.random_erase and options.auto_augment == "ra" and not options.ra_magnitude:
        raise OptionError("--auto-augment ra with --ra-magnitude 0 changes nothing")
    if options.compare_backends and (options.test_only or options.resume not in ("", "auto")):
        raise OptionError("--compare-backends trains two runs; it goes with --resume auto, not with a checkpoint's file or --test-only")
    if options.test_only and not options.resume:
        raise OptionError("--test-only needs a checkpoint: --resume FILE")


def defaults() -> dict[str, Any]:
    return {f.name: f.default for f in fields(Options) if f.default is not MISSING}
