"""One training run: epochs over shuffled batches, validation, checkpoints, and its exact continuation.

Everything random - the order of the data, augmentation, mixup, dropout - is drawn from generators that are seeded from the
seed, the epoch, the step and the process before each step. So a run that was stopped after any update and one that was not
do the same arithmetic: on the CPU the continued run has the same bits.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DistributedSampler

import fastcv

from . import checkpoint
from .augmentation import Augmentation, mixed
from .data import Images, Standardiser, split
from .evaluation import Scores, autocast, counted_of, cross_entropy, evaluate, ignored_of, inputs_of, loader_of
from .files import ImageFiles
from .log import Log
from .loop import Diverged
from .network import build, check_answers, outputs_of
from .optimizers import advance, optimizer_of, schedule_of
from .options import FREE, OptionError, Options, flag, normalized
from .processes import World
from .progress import task

__all__ = ["BEST", "LAST", "Engine", "Interrupted", "signals"]

LAST, BEST = "last.pt", "best.pt"
SUMS = ("loss", "batches", "right", "count")  # of the running epoch, in each process
AUXILIARY = 0.5  # weight of the auxiliary head's loss, as in torchvision's references


class Interrupted(Exception):
    """A signal asked the run to stop; it stands in the last checkpoint. signal: its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} received")
        self.signal = number


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list to which SIGTERM and the first SIGINT are added instead of ending the process; a second SIGINT ends it."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Engine:
    """A network, its optimiser and its data, at some epoch and step. Raises DataError, OptionError, CheckpointError, NotBuiltError."""

    def __init__(self, options: Options, data: Images | ImageFiles, world: World, console: Any) -> None:
        self.options, self.data, self.world, self.console = options, data, world, console
        self.device = torch.device(f"cuda:{world.local_rank}" if options.device == "cuda" else options.device)
        self.output = Path(options.output_dir)
        self.parts = split(data, options.seed)
        self.prepare = Standardiser.measured_on(data, self.parts.train).to(self.device)
        self.augmentation = Augmentation(options, data.task, data.shape, data.white, data.mirrored)
        if data.task == "segmentation" and (options.mixup_alpha or options.cutmix_alpha):
            raise OptionError("--mixup-alpha and --cutmix-alpha are for classification, the data has masks")
        shape = (data.shape[0], *[options.train_crop_size or side for side in data.shape[1:]])
        network = build(options, data.task, len(data.classes), shape)
        if options.sync_bn and world.size > 1:
            network = _synchronised(network, self.device)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.network = network.to(self.device, memory_format=layout)
        crops = {options.train_crop_size, options.val_crop_size or options.train_crop_size}
        for sides in {tuple(crop or side for side in data.shape[1:]) for crop in crops}:
            one = torch.zeros(1, data.shape[0], *sides, device=self.device).contiguous(memory_format=layout)
            check_answers(self.network, options, data.task, len(data.classes), one)
        own = len(self.parts.train) // world.size
        self.batch_size = min(options.batch_size, own)
        if not own:
            raise OptionError(f"{len(self.parts.train)} training images are too few for {world.size} processes")
        self.steps = own // self.batch_size
        self.updates_per_epoch = math.ceil(self.steps / options.grad_accum_steps)
        self.sharding = _sharding() if options.parallel == "fsdp" and world.size > 1 else None
        self.ema = self._average() if options.model_ema else None
        self.epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self.partial = _nothing()
        self.first_loss: float | None = None
        self.best: dict[str, Any] = {"metric": None, "epoch": 0}
        self.resumed_from = ""
        state = self._read() if options.resume else None
        self.trained = self._distributed()
        self.optimizer = optimizer_of(self.network, options)
        self.schedule = schedule_of(self.optimizer, options, self.updates_per_epoch)
        if state is not None:
            whole = state["optimizer"]
            self.optimizer.load_state_dict(whole if self.sharding is None else self.sharding.spread(whole, self.optimizer))
            self.schedule.load_state_dict(state["lr_scheduler"])

    def _average(self) -> AveragedModel:
        decay = self.options.model_ema_decay
        if self.sharding is not None:
            averaged = self.sharding.averaged
            return AveragedModel(self.network, avg_fn=lambda average, p, _: averaged(average, p, decay), use_buffers=True)
        return AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def _distributed(self) -> nn.Module:
        """The network that trains, whose parameters are this process's or shared with the others as --parallel says."""
        if self.sharding is not None:
            if self.ema is not None:
                self.sharding.shard(self.ema.module)
            return self.sharding.shard(self.network)
        if self.world.size > 1:
            return DistributedDataParallel(self.network, device_ids=[self.device.index] if self.device.type == "cuda" else None)
        return self.network

    @property
    def evaluated(self) -> nn.Module:
        """The network whose answers count: the average where there is one."""
        return self.ema.module if self.ema is not None else self.network

    @property
    def finished(self) -> bool:
        patience = self.options.early_stopping
        waited = len(self.history) - self.best["epoch"]
        return self.epoch >= self.options.epochs or (patience > 0 and self.step == 0 and waited >= patience and bool(self.history))

    # ---- checkpoints ----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that a continuation needs, as checkpoint.py lists it. Every process must ask for it."""
        found = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "args": self.options.as_dict(),
            "data": self.facts(),
            "history": self.history,
            "best": self.best,
            "world_size": self.world.size,
            "versions": {"fastcv": fastcv.__version__, "torch": str(torch.__version__)},
        }
        if self.ema is not None:
            found |= {"model_ema": self.ema.module.state_dict(), "ema_updates": int(self.ema.n_averaged)}
        return found if self.sharding is None else self.sharding.whole(found)

    def _share_buffers(self) -> None:
        """Every process takes the first one's running statistics, where DistributedDataParallel does not see to it."""
        if self.sharding is not None:
            for network in (self.network, *([self.ema.module] if self.ema is not None else [])):
                self.sharding.share_buffers(network)

    def facts(self) -> dict[str, Any]:
        """What is known of the data and must be known to use the network."""
        return {
            "name": self.data.name,
            "task": self.data.task,
            "classes": list(self.data.classes),
            "shape": list(self.data.shape),
            "white": self.data.white,
            "mean": self.prepare.mean.flatten().tolist(),
            "deviation": self.prepare.deviation.flatten().tolist(),
            "counts": {name: len(part) for name, part in vars(self.parts).items()},
        }

    def save(self, *names: str) -> None:
        """The state under these names in the output folder, every process's sums of the running epoch in it; the first writes."""
        sums = torch.zeros(self.world.size, len(SUMS), dtype=torch.float64, device=self.device)
        sums[self.world.rank] = torch.tensor([self.partial[name] for name in SUMS], dtype=torch.float64)
        sums = self.world.total(sums).tolist()
        self._share_buffers()
        state = self.state() | {"partial": {"seconds": self.partial["seconds"], "sums": sums}}
        if self.world.first:
            for name in names:
                checkpoint.save(state, self.output / name)

    def _read(self) -> dict[str, Any] | None:
        """The checkpoint to go on with, its network and its place in the run taken over."""
        file = self.output / LAST if self.options.resume == "auto" else Path(self.options.resume)
        if self.options.resume == "auto" and not file.exists():
            return None
        state = checkpoint.load(file)
        theirs, ours = normalized(state["args"]).as_dict(), self.options.as_dict()
        different = [name for name in ours if name not in FREE and theirs[name] != ours[name]]
        if different:
            name = different[0]
            raise OptionError(
                f"{flag(name)} is {ours[name]}, the checkpoint {file} was made with {theirs[name]}; it cannot go on with another"
            )
        if state["world_size"] != self.world.size:
            raise OptionError(f"{file} was made by {state['world_size']} processes, now there are {self.world.size}")
        for name, value in self.facts().items():
            if name != "name" and state["data"].get(name) != value:
                raise OptionError(f"the data is not what {file} was trained on: its {name} differs")
        self.network.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["model_ema"])
            self.ema.n_averaged.fill_(state["ema_updates"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.history, self.best = state["history"], state["best"]
        mine = zip(SUMS, state["partial"]["sums"][self.world.rank], strict=True)
        self.partial = {"seconds": state["partial"]["seconds"]} | {name: type(self.partial[name])(value) for name, value in mine}
        self.resumed_from = str(file)
        return state

    # ---- training -------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains until the last epoch or early stopping. Raises Interrupted and Diverged."""
        total = self.options.epochs * self.steps
        parameters = sum(p.numel() for p in self.network.parameters())
        title = f"{self.options.model}, {parameters:,} parameters, on {self.data.name}: {len(self.parts.train):,} images to train"
        log = Log(self.output, self.options, self.epoch) if self.world.first else None
        with signals() as received, task(self.console, title, total, self.epoch * self.steps + self.step) as progress:
            if self.resumed_from:
                progress.line(f"continuing {self.resumed_from} at epoch {self.epoch + 1}, step {self.step}")
            while not self.finished:
                self.run_epoch(received, progress, log)
            if log is not None:
                log.close()

    def run_epoch(self, received: list[int], progress: Any, log: Log | None) -> None:
        """Trains to the end of the epoch, validates, saves. received: signals' numbers. Raises Interrupted and Diverged."""
        self._train_epoch(received, progress)
        row, scores = self._close_epoch()
        if log is not None:
            log.add(self.history, scores, self.data)
        progress.line(self._line(row))
        number = self.world.any(received[0] if received else 0, self.device)
        if number:
            raise Interrupted(number)

    def _batches(self) -> list[list[int]]:
        """This process's batches of the running epoch that are still to come, as indices of the data."""
        sampler = DistributedSampler(
            range(len(self.parts.train)), self.world.size, self.world.rank, seed=_mix(self.options.seed, self.epoch) >> 1, drop_last=True
        )
        order = self.parts.train[torch.tensor(list(sampler))]
        return [part.tolist() for part in order.split(self.batch_size)][self.step : self.steps]

    def _train_epoch(self, received: list[int], progress: Any) -> None:
        options, accumulated = self.options, self.options.grad_accum_steps
        start, seconds_before = time.perf_counter(), self.partial["seconds"]
        images_here, start_here = 0, start
        for step, (images, labels) in enumerate(loader_of(self.data, self._batches(), options), self.step):
            self._seed(step)
            group = min(accumulated, self.steps - step // accumulated * accumulated)
            ends = (step + 1) % accumulated == 0 or step + 1 == self.steps
            loss = self._backward(images, labels, group, ends)
            self._stop_if_lost(loss)
            if self.epoch == step == 0:
                self.first_loss = loss
            images_here += len(images) * self.world.size
            self.partial["seconds"] = seconds_before + time.perf_counter() - start
            progress.advance()
            if ends:
                self._update()
                self.step = step + 1
                number = self.world.any(received[0] if received else 0, self.device)
                if number and self.step < self.steps:
                    self.save(LAST)
                    raise Interrupted(number)
                if options.recovery_interval and self.step < self.steps and (self.step // accumulated) % options.recovery_interval == 0:
                    self.save(LAST)
            rate = images_here / (time.perf_counter() - start_here)
            text = f"epoch {self.epoch + 1}/{options.epochs}  loss {loss:.4f}  {rate:.0f} img/s"
            progress.show(text)
            if options.print_freq and (step + 1) % options.print_freq == 0:
                progress.line(f"{text}  step {step + 1}/{self.steps}  lr {self.schedule.get_last_lr()[0]:.4g}  eta {self._eta(step + 1)}")

    def _seed(self, step: int) -> None:
        seed = _mix(self.options.seed, self.epoch, step, self.world.rank)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def _backward(self, images: Tensor, labels: Tensor, group: int, ends: bool) -> float:
        """Forward and backward of one batch, one of ``group`` of an update; returns its mean loss."""
        options = self.options
        images, labels = self.augmentation(images, labels)
        labels = labels.to(self.device)
        inputs, targets = mixed(inputs_of(images, self.prepare, options, self.device), labels, len(self.data.classes), options)
        self.trained.train()
        waiting = self.trained.no_sync() if isinstance(self.trained, DistributedDataParallel) and not ends else contextlib.nullcontext()
        if self.sharding is not None:
            self.trained.set_requires_gradient_sync(ends)
        with waiting:
            with autocast(options, self.device):
                logits, auxiliary = self._answers(inputs)
                loss = self._loss(logits, targets)
                if auxiliary is not None:
                    loss = loss + AUXILIARY * self._loss(auxiliary, targets)
            (loss / group).backward()
        counted = counted_of(labels)
        self.partial["loss"] += (value := float(loss.detach()))
        self.partial["batches"] += 1
        self.partial["right"] += int(((logits.detach().argmax(1) == labels) & counted).sum())
        self.partial["count"] += int(counted.sum())
        return value

    def _answers(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            return outputs_of(self.trained, inputs)
        except ValueError as error:  # batch norm's, of a single value per channel
            raise OptionError(f"--batch-size {len(inputs)} is too small for --model {self.options.model}: {error}") from error

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss, smoothing = cross_entropy(self.options), self.options.label_smoothing
        if targets.is_floating_point():  # of mixup: probabilities
            return loss(logits, targets, label_smoothing=smoothing)
        if not counted_of(targets).any():
            return logits.sum() * 0.0  # the mean over no pixel is NaN
        return loss(logits, targets, ignore_index=ignored_of(targets), label_smoothing=smoothing)

    def _stop_if_lost(self, loss: float) -> None:
        if self.world.any(int(not math.isfinite(loss)), self.device):
            value = f"{loss}" if not math.isfinite(loss) else "NaN or infinite in another process"
            raise Diverged(f"the training loss became {value} in epoch {self.epoch + 1}; a smaller --lr may help")

    def _update(self) -> None:
        if self.options.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        advance(self.schedule)
        if self.ema is None:
            return
        done = self.schedule.last_epoch
        if done % self.options.model_ema_steps == 0:
            if done <= self.options.lr_warmup_epochs * self.updates_per_epoch:
                self.ema.n_averaged.zero_()  # a copy while the learning rate warms up
            self.ema.update_parameters(self.network)

    def _close_epoch(self) -> tuple[dict[str, Any], Scores]:
        """Validation, the epoch's row, checkpoints."""
        options = self.options
        rate = self.schedule.get_last_lr()[0]
        self._share_buffers()
        scores = evaluate(self.evaluated, self.data, self.parts.validation, self.prepare, options, self.device, self.world)
        sums = torch.tensor([self.partial[name] for name in SUMS], dtype=torch.float64, device=self.device)
        loss, batches, right, count = self.world.total(sums).tolist()
        seconds = self.partial["seconds"]
        row = {
            "epoch": self.epoch + 1,
            "lr": rate,
            "train_loss": loss / batches,
            "train_accuracy": right / max(1.0, count),
            "val_loss": scores.loss,
            "val_accuracy": scores.accuracy,
        }
        if self.data.task == "segmentation":
            row["val_mean_iou"] = scores.mean_iou
        metric = scores.metric(self.data.task)
        row |= {"seconds": seconds, "images_per_second": self.steps * self.batch_size * self.world.size / max(seconds, 1e-9)}
        self.history.append(row)
        self.epoch, self.step, self.partial = self.epoch + 1, 0, _nothing()
        names = [LAST]
        if self.best["metric"] is None or metric > self.best["metric"]:
            self.best = {"metric": metric, "epoch": self.epoch}
            names.insert(0, BEST)  # before LAST: a run killed in between repeats the epoch and writes it again
        if options.checkpoint_hist:
            names.insert(0, f"checkpoint_{self.epoch}.pt")
        self.save(*names)
        if options.checkpoint_hist and self.world.first:
            (self.output / f"checkpoint_{self.epoch - options.checkpoint_hist}.pt").unlink(missing_ok=True)
        return row, scores

    def _eta(self, steps_of_epoch: int) -> str:
        """Hours, minutes and seconds to the last epoch at the pace so far, validation left out."""
        past = sum(row["seconds"] for row in self.history) + self.partial["seconds"]
        done = len(self.history) * self.steps + steps_of_epoch
        left = round(past / max(1, done) * (self.options.epochs * self.steps - done))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"

    def _line(self, row: dict[str, Any]) -> str:
        quality = f"mIoU {100 * row['val_mean_iou']:.1f} %" if "val_mean_iou" in row else f"acc {100 * row['val_accuracy']:.2f} %"
        return (
            f"epoch {row['epoch']:>3}/{self.options.epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  val {quality}"
            f"  lr {row['lr']:.4g}  {row['images_per_second']:.0f} img/s  eta {self._eta(0)}"
        )


def _sharding() -> ModuleType:
    """Imported where it is used: it takes long, and a torch that was built without distributed lacks what it needs."""
    from . import sharding

    return sharding


def _nothing() -> dict[str, float]:
    return {"loss": 0.0, "batches": 0, "right": 0, "count": 0, "seconds": 0.0}


def _synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """torch's SyncBatchNorm refuses the CPU; fastcv's serves both."""
    kind = fastcv.nn.SyncBatchNorm if device.type == "cpu" else nn.SyncBatchNorm
    return kind.convert_sync_batchnorm(network)
