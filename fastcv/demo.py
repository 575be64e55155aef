"""``python -m fastcv.demo``: a small ResNet and kNN on real images, fastcv beside torch, in one table, five pictures and a JSON.

Without ``--data`` it reads the 1,797 digits that ship with scikit-learn. It trains one network with fastcv's layers and
the same network with torch's from the same seed, epoch by epoch in turn, so that both see the same machine; folds the
batch norms; times inference; and classifies the same test images by their nearest neighbours. The output folder appears
whole at the end or not at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastcv

from .models.resnet_cifar import ResNetCifar
from .train import data as data_room
from .train.data import DataError, Images, Split, Standardiser
from .train.loop import Diverged, Epoch, Recipe, Trainer, logits_of
from .train.output import OutputError, check_output, replaced_folder
from .vision import knn as knn_room

PICTURES = ("curves.png", "confusion.png", "misclassified.png", "knn.png", "filters.png")
FILES = (*PICTURES, "report.json", "report.txt")
KS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)


@dataclass(frozen=True)
class Settings:
    """The sizes of a run. At most ``knn_limit`` images (drawn by the seed) serve as neighbours, ``timing_images`` are timed.

    threads: for both libraries; None is torch's own number.
    """

    recipe: Recipe
    blocks: tuple[int, int, int] = (1, 1, 1)
    widths: tuple[int, int, int] = (16, 32, 64)
    knn_limit: int = 10_000
    timing_images: int = 256
    rounds: int = 25
    threads: int | None = None


# On 8x8 images an op takes some ten microseconds: a second thread gains little, and on a busy machine waiting for it costs 40x.
DIGITS = Settings(Recipe(epochs=20, batch_size=64, learning_rate=0.1, warmup_epochs=2, shift=1), threads=1)
PHOTOS = Settings(Recipe(epochs=10, batch_size=128, learning_rate=0.1, warmup_epochs=1, shift=4))
FEW_PHOTOS = Settings(Recipe(epochs=30, batch_size=32, learning_rate=0.05, warmup_epochs=2, shift=4))
MANY = 5_000  # images from which PHOTOS holds


def needed_packages(with_data: bool) -> list[str]:
    """The packages, by their pip names, that this run needs and does not find."""
    modules = {"matplotlib": "matplotlib", "rich": "rich"} | ({} if with_data else {"sklearn": "scikit-learn"})
    return [package for module, package in modules.items() if importlib.util.find_spec(module) is None]


class Demo:
    """One run: the data, both networks and what was measured; each method is one part of the work."""

    def __init__(self, data: Images, settings: Settings, console: Any, layers: Any = fastcv.nn) -> None:
        self.data, self.console = data, console
        self.settings = replace(settings, recipe=replace(settings.recipe, mirror=data.mirrored))
        self.split: Split = data_room.split(data, settings.recipe.seed)
        self.prepare = Standardiser(data.images[self.split.train])
        self.layers = {"fastcv": layers, "torch": nn}
        self.networks: dict[str, ResNetCifar] = {}
        self.histories: dict[str, list[Epoch]] = {}
        self.logits: dict[str, Tensor] = {}
        self.cross_validation: dict[str, Tensor] = {}
        self.report: dict[str, Any] = {}

    def part(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.images[indices], self.data.labels[indices]

    def network(self, name: str) -> ResNetCifar:
        """A new network with this library's layers; the same parameters each time."""
        torch.manual_seed(self.settings.recipe.seed)
        shape = {"in_chans": self.data.images.shape[1], "num_classes": len(self.data.classes)}
        return ResNetCifar(self.settings.blocks, self.settings.widths, layers=self.layers[name], **shape)

    def trainer(self, name: str) -> Trainer:
        loss = self.layers[name].CrossEntropyLoss()
        return Trainer(self.network(name), loss, *self.part(self.split.train), self.prepare, self.settings.recipe)

    def first_step(self) -> None:
        """One update of each network on the same batch: how far do the parameters differ, and how far did they move?"""
        before = nn.utils.parameters_to_vector(self.network("torch").parameters())
        after = {}
        for name in self.layers:
            trainer = self.trainer(name)
            trainer.step(*next(trainer.batches(0)))
            after[name] = nn.utils.parameters_to_vector(trainer.network.parameters()).detach()
        self.report["first_step"] = {
            "largest_parameter_difference": _largest(after["fastcv"] - after["torch"]),
            "largest_update": _largest(after["torch"] - before),
        }

    def train(self) -> None:
        """Both networks, an epoch of each in turn; who goes first alternates."""
        from .train.progress import task

        trainers = {name: self.trainer(name) for name in self.layers}
        self.networks = {name: trainer.network for name, trainer in trainers.items()}
        self.histories = {name: [] for name in trainers}
        epochs = self.settings.recipe.epochs
        parameters = sum(p.numel() for p in self.networks["torch"].parameters())
        validation = self.part(self.split.validation)
        title = f"Training a ResNet of {parameters:,} parameters for {epochs} epoch{'s' * (epochs > 1)}: fastcv/torch"
        with task(self.console, title, sum(t.steps for t in trainers.values())) as progress:
            for epoch in range(epochs):
                for name in list(trainers)[:: 1 if epoch % 2 == 0 else -1]:
                    self.histories[name].append(trainers[name].run_epoch(epoch, *validation, progress.advance))
                last = [history[-1] for history in self.histories.values()]
                losses = "/".join(f"{e.train_loss:.4f}" for e in last)
                accuracies = "/".join(f"{100 * e.validation_accuracy:.1f}" for e in last)
                progress.say(f"epoch {epoch + 1:>2}/{epochs}  loss {losses}  val {accuracies} %")
        test_images, test_labels = self.part(self.split.test)
        for name, network in self.networks.items():
            self.logits[name] = logits_of(network, test_images, self.prepare)
            self.report[name] = {
                "test_accuracy": _accuracy(self.logits[name].argmax(1), test_labels),
                "seconds_per_epoch": statistics.median(e.seconds for e in self.histories[name]),
                "epochs": [e.as_dict() for e in self.histories[name]],
            }

    def fold_and_time(self) -> None:
        """fastcv's trained network in both libraries, as trained and folded: do the logits agree, and how long do they take?"""
        networks = {"fastcv": self.networks["fastcv"].eval(), "torch": self.network("torch").eval()}
        networks["torch"].load_state_dict(networks["fastcv"].state_dict())
        networks |= {f"{name}_folded": network.folded() for name, network in networks.items()}
        images = self.part(self.split.test)[0]
        logits = {name: logits_of(network, images, self.prepare) for name, network in networks.items()}
        scale = _largest(logits["fastcv"])
        self.report["folding"] = {
            "largest_logit_change": _largest(logits["fastcv_folded"] - logits["fastcv"]),
            "largest_logit": scale,
            "predictions_changed": int((logits["fastcv_folded"].argmax(1) != logits["fastcv"].argmax(1)).sum()),
            "largest_logit_difference_from_torch": _largest(logits["fastcv"] - logits["torch"]),
        }
        inputs = self.prepare(images[: self.settings.timing_images])
        with torch.inference_mode():
            seconds = interleaved({name: lambda n=n: n(inputs) for name, n in networks.items()}, self.settings.rounds)
        self.report["inference"] = {"images": len(inputs), "milliseconds": {name: 1e3 * s for name, s in seconds.items()}}

    def nearest_neighbours(self) -> None:
        """kNN in L1 and L2: k by 5-fold cross-validation on everything but the test part, then the test part once."""
        from .train.progress import task

        seed, limit = self.settings.recipe.seed, self.settings.knn_limit
        chosen = self.split.development
        if len(chosen) > limit:
            chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:limit]]
        points, labels = self.part(chosen)
        points = points.flatten(1).float() / self.data.white
        test_images, test_labels = self.part(self.split.test)
        queries = test_images.flatten(1).float() / self.data.white
        folds = min(5, len(points))
        ks = [k for k in KS if k <= len(points) - -(-len(points) // folds)]
        timed = queries[: self.settings.timing_images]
        self.report["knn"] = {"neighbours": len(points), "queries": len(queries), "folds": folds, "timed_queries": len(timed)}
        with task(
            self.console, f"Choosing k for kNN by {folds}-fold cross-validation on {len(points):,} images", 2 * folds + 2
        ) as progress:
            for name, p in (("L1", 1.0), ("L2", 2.0)):
                accuracies = knn_room.cross_validate(points, labels, ks, p, folds, seed, progress.advance)
                k = ks[int(accuracies.mean(1).argmax())]  # the smallest of the best
                seconds = interleaved(
                    {
                        "fastcv": lambda p=p, k=k: fastcv.functional.knn(timed, points, k, p),
                        "torch": lambda p=p, k=k: torch.cdist(timed, points, p).topk(k, largest=False),
                    },
                    max(3, self.settings.rounds // 3),
                )
                predictions = knn_room.classify(points, labels, queries, k, p, len(self.data.classes))
                self.cross_validation[name] = accuracies
                self.report["knn"][name] = {
                    "k": k,
                    "test_accuracy": _accuracy(predictions, test_labels),
                    "cross_validation": [
                        {"k": k, "mean": float(a.mean()), "deviation": float(a.std())} for k, a in zip(ks, accuracies, strict=True)
                    ],
                    "milliseconds": {library: 1e3 * s for library, s in seconds.items()},
                }
                progress.advance()
                progress.say(f"{name}: k = {k}, test accuracy {100 * self.report['knn'][name]['test_accuracy']:.2f} %")

    def checks(self, least_accuracy: float | None) -> dict[str, bool]:
        """What must hold for the run to count as a success."""
        folding = self.report["folding"]
        # Folding rounds each weight once: through ten layers of float32 that is some 1e-6 of the largest logit.
        found = {"folding leaves the logits": folding["largest_logit_change"] <= 1e-4 * folding["largest_logit"]}
        if least_accuracy is not None:
            for name in self.layers:
                label = f"{name}: test accuracy of at least {100 * least_accuracy:.0f} %"
                found[label] = self.report[name]["test_accuracy"] >= least_accuracy
        self.report["checks"] = found
        return found

    def table(self) -> Any:
        """The one table of the run."""
        from rich.table import Table
        from rich.text import Text

        report, parts = self.report, self.split
        counts = f"{len(parts.train):,} to train, {len(parts.validation):,} to validate, {len(parts.test):,} to test"
        threads = report["machine"]["threads"]
        table = Table(title=Text(f"{self.data.name}: {counts}; {threads} thread{'s' * (threads > 1)}", style="bold"), title_justify="left")
        table.add_column("")
        for column in ("fastcv", "torch", "torch / fastcv"):
            table.add_column(column, justify="right", no_wrap=True)

        def times(label: str, ours: float, theirs: float, digits: int) -> None:
            table.add_row(label, f"{ours:.{digits}f}", f"{theirs:.{digits}f}", f"{theirs / ours:.2f}")

        accuracies = [f"{100 * report[name]['test_accuracy']:.2f} %" for name in self.layers]
        table.add_row("ResNet, test accuracy", *accuracies, "")
        times("ResNet, seconds per epoch (median)", *(report[name]["seconds_per_epoch"] for name in self.layers), 3)
        milliseconds = report["inference"]["milliseconds"]
        times(f"Inference, {report['inference']['images']} images, ms", milliseconds["fastcv"], milliseconds["torch"], 2)
        times("  with batch norms folded, ms", milliseconds["fastcv_folded"], milliseconds["torch_folded"], 2)
        for name in ("L1", "L2"):
            found = report["knn"][name]
            table.add_row(f"kNN {name}, k = {found['k']}, test accuracy", f"{100 * found['test_accuracy']:.2f} %", "", "")
            label = f"  {report['knn']['timed_queries']} queries in {report['knn']['neighbours']:,} images, ms"
            times(label, found["milliseconds"]["fastcv"], found["milliseconds"]["torch"], 2)
        table.add_section()
        step, folding = report["first_step"], report["folding"]
        for label, value in (
            ("Step 1: parameters differ by at most", step["largest_parameter_difference"]),
            ("  and moved by up to", step["largest_update"]),
            ("Logits differ by at most", folding["largest_logit_difference_from_torch"]),
            ("  folding moves them by at most", folding["largest_logit_change"]),
            ("  and they are as large as", folding["largest_logit"]),
        ):
            table.add_row(label, f"{value:.1e}" if value < 1 else f"{value:.1f}", "", "")
        return table

    def draw(self, folder: Path) -> None:
        from .train import plots
        from .train.evaluation import confusion_matrix

        name, classes = self.data.name, self.data.classes
        test_images, test_labels = self.part(self.split.test)
        logits = self.logits["fastcv"]
        predictions = logits.argmax(1)
        wrong = int((predictions != test_labels).sum())
        plots.curves(folder / PICTURES[0], self.histories, f"ResNet on {name}")
        matrix = confusion_matrix(predictions, test_labels, len(classes))
        plots.confusion(folder / PICTURES[1], matrix, classes, f"ResNet on {name}: {wrong} of {len(test_labels):,} test images wrong")
        title = f"{wrong} wrong (red, true → predicted), then the right answers of least confidence (grey)"
        plots.misclassified(folder / PICTURES[2], test_images, test_labels, logits, classes, self.data.white, title)
        knn = self.report["knn"]
        ks = [row["k"] for row in knn["L1"]["cross_validation"]]
        title = f"kNN on {name}: {knn['folds']}-fold cross-validation, mean ± standard deviation"
        plots.neighbours(folder / PICTURES[3], ks, self.cross_validation, {metric: knn[metric]["k"] for metric in ("L1", "L2")}, title)
        plots.filters(folder / PICTURES[4], self.networks["fastcv"].conv1.weight, "The trained filters of the first convolution")


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; every round times all of them, after two rounds of warm-up, the first one rotating."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds + 2):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


def _accuracy(predictions: Tensor, labels: Tensor) -> float:
    return (predictions == labels).double().mean().item()


def run(
    data: Images, output: str | Path, settings: Settings, console: Any, least_accuracy: float | None = None, layers: Any = fastcv.nn
) -> bool:
    """The whole demo into the folder ``output``. Returns whether all checks held. Raises DataError, OutputError, Diverged."""
    start = time.perf_counter()
    output = check_output(output, FILES)
    demo = Demo(data, settings, console, layers)
    demo.report |= {
        "versions": {"fastcv": fastcv.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": settings.threads or torch.get_num_threads()},
        "data": {
            "name": data.name,
            "shape": list(data.images.shape[1:]),
            "classes": list(data.classes),
            "counts": {part: len(indices) for part, indices in vars(demo.split).items()},
        },
        "settings": asdict(demo.settings),
    }
    with _threads(settings.threads):
        demo.first_step()
        demo.train()
        demo.fold_and_time()
        demo.nearest_neighbours()
    checks = demo.checks(least_accuracy)
    demo.report["seconds"] = time.perf_counter() - start
    table = demo.table()
    with replaced_folder(output, FILES) as folder:
        demo.draw(folder)
        (folder / "report.json").write_text(json.dumps(demo.report, indent=2) + "\n", encoding="utf-8")
        with (folder / "report.txt").open("w", encoding="utf-8") as stream:
            type(console)(file=stream, width=100).print(table)
    console.print()
    console.print(table)
    for name in (name for name, held in checks.items() if not held):
        console.print(f"FAILED: {name}", style="bold red", highlight=False)
    pictures = ", ".join(PICTURES)
    console.print(
        f"{output}: report.json, {pictures}; {time.perf_counter() - start:.0f} s in all", markup=False, highlight=False, soft_wrap=True
    )
    return all(checks.values())


def _fail(message: str, status: int) -> int:
    print(f"fastcv.demo: {message}", file=sys.stderr)
    return status


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 0, 1 if a check failed, 2 for bad input or a missing package, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m fastcv.demo", description="A small ResNet and kNN on real images, fastcv beside torch."
    )
    parser.add_argument("--data", metavar="FOLDER", help="CIFAR-10 (binary or Python version) or one folder of images per class")
    parser.add_argument("--output", metavar="FOLDER", default="demo-output", help="where the results go (default: %(default)s)")
    epochs = f"{DIGITS.recipe.epochs}; with --data {PHOTOS.recipe.epochs}, or {FEW_PHOTOS.recipe.epochs} below {MANY:,} images"
    parser.add_argument("--epochs", type=int, help=f"default: {epochs}")
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        missing = needed_packages(options.data is not None)
        if missing:
            return _fail(f"not installed: {', '.join(missing)}; run: pip install {' '.join(missing)}", 2)
        fastcv.build_info()
        from rich.console import Console

        check_output(options.output, FILES)
        data = data_room.load_digits() if options.data is None else data_room.load(options.data)
        settings = DIGITS if options.data is None else PHOTOS if len(data.labels) >= MANY else FEW_PHOTOS
        if options.epochs is not None:
            settings = replace(settings, recipe=replace(settings.recipe, epochs=options.epochs))
        held = run(data, options.output, settings, Console(), 0.98 if options.data is None else None)
        return 0 if held else 1
    except (DataError, OutputError, fastcv.NotBuiltError) as error:
        return _fail(str(error), 2)
    except Diverged as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted, nothing was written", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
