"""The pictures of a finished run and its one page, report.html, which holds them: nothing in it is loaded from elsewhere."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor

from .checkpoint import write
from .data import Images
from .evaluation import Scores
from .files import ImageFiles
from .options import Options, defaults, flag

__all__ = ["FILES", "Examples", "write_report"]

FILES = ("curves.png", "confusion.png", "samples.png", "classes.png", "report.html")
SHOWN = 24  # classified images, or
SEGMENTED = 8  # images with masks


class Examples:
    """What the sample pictures show, kept from the batches as they pass: the first images with masks; of classified images
    the wrong ones of highest confidence, then the right ones of lowest."""

    def __init__(self, data: Images | ImageFiles) -> None:
        self.segmentation = data.task == "segmentation"
        self.images: Tensor | None = None
        self.labels = self.logits = torch.empty(0)

    def add(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        new = [images, labels.cpu(), logits.argmax(1).cpu() if self.segmentation else logits.cpu()]
        both = new if self.images is None else [torch.cat(pair) for pair in zip((self.images, self.labels, self.logits), new, strict=True)]
        if self.segmentation:
            self.images, self.labels, self.logits = (values[:SEGMENTED] for values in both)
            return
        confidence, predictions = both[2].double().softmax(1).max(1)
        order = torch.where(predictions != both[1], -1 - confidence, confidence).argsort(stable=True)[:SHOWN]
        self.images, self.labels, self.logits = (values[order] for values in both)


def write_report(
    folder: Path,
    options: Options,
    data: Images | ImageFiles,
    history: list[dict[str, Any]],
    scores: Scores,
    examples: Examples,
    results: dict[str, Any],
) -> None:
    """Writes FILES into ``folder``, each whole. Needs matplotlib."""
    from . import plots

    title = f"{options.model} on {data.name}"
    classes, n = data.classes, int(scores.matrix.sum())
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        plots.run_curves(place / FILES[0], history, results["best_epoch"], title)
        if data.task == "segmentation":
            share = scores.matrix.double() / scores.matrix.sum(1, keepdim=True).clamp_min(1)
            plots.confusion(place / FILES[1], (100 * share).round().long(), classes, "Pixels of each true class, in %")
            plots.segmentations(
                place / FILES[2],
                examples.images,
                examples.labels,
                examples.logits,
                classes,
                data.white,
                "The first images of the test part",
            )
            plots.class_bars(place / FILES[3], scores.iou, classes, "intersection over union", "Test part, each class")
        else:
            wrong = n - int(scores.matrix.diagonal().sum())
            plots.confusion(place / FILES[1], scores.matrix, classes, f"{wrong:,} of {n:,} test images wrong")
            caption = "Wrong answers (red, true → answer), then the right ones of least confidence"
            plots.misclassified(place / FILES[2], examples.images, examples.labels, examples.logits, classes, data.white, caption, SHOWN)
            recall = scores.matrix.diagonal().double() / scores.matrix.sum(1)
            plots.class_bars(place / FILES[3], recall, classes, "right answers", "Test part, each class")
        pictures = {name: (place / name).read_bytes() for name in FILES[:4]}
    for name, content in pictures.items():
        write(folder / name, content)
    write(folder / FILES[4], _page(title, options, data, history, results, pictures).encode(errors="replace"))


def _page(
    title: str,
    options: Options,
    data: Images | ImageFiles,
    history: list[dict[str, Any]],
    results: dict[str, Any],
    pictures: dict[str, bytes],
) -> str:
    test, facts = results["test"], results["data"]
    numbers = [(f"{100 * value:.2f} %", name) for name, value in _shares(test).items()] + [(f"{test['loss']:.4f}", "test loss")]
    numbers += [(f"{results['best_epoch']} of {results['epochs']}", "best epoch"), (f"{results['seconds']:.0f} s", "spent training")]
    counts = facts["counts"]
    channels, height, width = facts["shape"]
    described = (
        f"{data.name}: {counts['train']:,} images to train, {counts['validation']:,} to validate, {counts['test']:,} to test; "
        f"{len(data.classes)} classes; {channels} channel{'s' * (channels > 1)} of {height} by {width} pixels, mean "
        f"{_list(facts['mean'])}, standard deviation {_list(facts['deviation'])} of {facts['white']}."
    )
    figures = {"Curves": 0, "Classes": 3, "Confusion": 1, "Samples": 2}
    template = Template(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    usual = defaults()
    chosen = {name: value for name, value in options.as_dict().items() if value != usual[name] or name in ("data_path", "model")}
    skipped = "".join(f"<li>{escape(text)}</li>" for text in data.skipped)
    return template.substitute(
        title=escape(title),
        described=escape(described),
        skipped=f"<details><summary>{len(data.skipped)} corrupt images left out</summary><ul>{skipped}</ul></details>" if skipped else "",
        versions=escape(", ".join(f"{name} {version}" for name, version in results["versions"].items())),
        totals="\n".join(f"<li><strong>{value}</strong>{escape(name)}</li>" for value, name in numbers),
        figures="\n".join(_figure(name, pictures[FILES[i]]) for name, i in figures.items()),
        history=_history(history),
        command=escape("fastcv train " + " ".join(_spelled(name, value) for name, value in chosen.items())),
        options="\n".join(
            f"<tr><th scope=row><code>{flag(name)}</code></th><td>{escape(str(value))}</td></tr>"
            for name, value in options.as_dict().items()
        ),
    )


def _figure(name: str, picture: bytes) -> str:
    content = base64.b64encode(picture).decode()
    return f'<h2>{name}</h2>\n<figure><img alt="{name}" src="data:image/png;base64,{content}"></figure>'


def _shares(test: dict[str, Any]) -> dict[str, float]:
    """The shares among the test part's scores, by their names for the eye."""
    names = {
        "mean_iou": "test mean IoU",
        "pixel_accuracy": "test pixel accuracy",
        "accuracy": "test accuracy",
        "top5": "test top-5 accuracy",
    }
    return {name: test[key] for key, name in names.items() if key in test}


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _spelled(name: str, value: Any) -> str:
    return flag(name) if value is True else f"{flag(name)} {value}"


def _history(history: list[dict[str, Any]]) -> str:
    head = "".join(f"<th class=n>{escape(name.replace('_', ' '))}</th>" for name in history[0])
    rows = "".join("<tr>" + "".join(f"<td class=n>{value:.4g}</td>" for value in row.values()) + "</tr>" for row in history)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
