"""``fastcv segment`` and ``fastcv knn`` (and ``fastcv search``): pictures from a command line."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import _ext

__all__ = ["one_sentence", "register"]

PACKAGES = {"matplotlib": "plots", "sklearn": "data", "scipy": "data", "PIL": "plots", "optuna": "search"}
KNN_FILES = ("k.png", "neighbours.png", "report.json")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    from .search_command import search

    app.command("segment")(segment)
    app.command("knn")(knn)
    app.command("search")(search)


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Exit status 2 with one sentence for bad input."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = PACKAGES.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        text = f"needs {error.name}: pip install 'fastcv[{extra}]'"
    except (ValueError, _ext.NotBuiltError) as error:
        text = str(error)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        return
    print(f"fastcv {name}: {' '.join(text.split())}", file=sys.stderr)
    raise typer.Exit(2)


def _picture(path: Path) -> Any:
    """The image (H, W, 3) as uint8, upright. Raises ValueError for what cannot be read."""
    import numpy as np

    from ..train.files import read_picture, rgb

    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an image file")
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    return read_picture(path, lambda image: np.asarray(rgb(image)))


def _checked_output(path: Path, image: Path) -> None:
    """Raises ValueError unless a PNG can be written there without harm to the image."""
    parent = path.resolve().parent
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png")
    if path.is_dir() or not parent.is_dir():
        raise ValueError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder does not exist'}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: {parent} is not writable")
    if path.exists() and path.samefile(image):
        raise ValueError(f"{path} is the image itself; choose another name")


def _write(path: Path, content: bytes) -> None:
    """The whole file or nothing."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def segmentation_figure(image: Any, labels: Any, title: str, names: list[str] | None = None) -> bytes:
    """PNG of the image, its segments in their mean colours, and their borders drawn on the image.

    names: of classes, to which ``labels`` are the indices; they are then painted in VOC's colours, with a legend.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from scipy.ndimage import binary_dilation

    from ..train.predict import palette
    from .segmentation import mean_colors

    height, width = labels.shape
    border = np.zeros((height, width), bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    thickness = max(height, width) // 1500  # a line of one pixel of a large image would not be seen in the picture
    drawn = image.copy()
    drawn[binary_dilation(border, iterations=thickness) if thickness else border] = (255, 40, 40)
    painted, name = (mean_colors(image, labels), "mean colours") if names is None else (palette(len(names))[labels], "classes")
    panel, ratio = 5.0, min(max(height / width, 0.2), 2.0)
    figure = Figure(figsize=(3 * panel, panel * ratio + (0.6 if names is None else 1.2)), layout="constrained", dpi=110)
    for axes, picture, heading in zip(figure.subplots(1, 3), (image, painted, drawn), ("image", name, "borders"), strict=True):
        stretched = not 0.1 <= height / width <= 10  # a line of pixels would be too thin to see
        axes.imshow(picture, interpolation="nearest" if width < 400 else "antialiased", aspect="auto" if stretched else "equal")
        axes.set_title(heading, fontsize=11)
        axes.axis("off")
    if names is not None:
        counts = np.bincount(labels.ravel(), minlength=len(names))
        shown = [i for i in (-counts).argsort(kind="stable")[:12] if counts[i]]
        patches = [Patch(facecolor=palette(len(names))[i] / 255, edgecolor="#888888") for i in shown]
        texts = [f"{names[i][:20]}: {max(100 * counts[i] / labels.size, 0.1):.1f} %".replace("$", r"\$") for i in shown]
        figure.legend(patches, texts, loc="outside lower center", ncols=6, frameon=False, fontsize=10)
    figure.suptitle(title.replace("$", r"\$"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def segment(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    method: str = typer.Option("kmeans", help="kmeans, meanshift, ncut or unet."),
    clusters: int = typer.Option(6, help="Segments for kmeans and ncut."),
    color: bool = typer.Option(True, help="Cluster colours; --no-color clusters grey levels."),
    position: float = typer.Option(0.0, help="Weight of the pixels' positions, 0 for none."),
    bandwidth: float = typer.Option(0.0, help="Radius of mean-shift's kernel, black to white being 1; 0 finds one."),
    sigma: float = typer.Option(0.0, help="ncut: the colour distance that counts as unlike; 0 finds one."),
    checkpoint: Annotated[Path | None, typer.Option(help="unet: a checkpoint of `fastcv train` for segmentation.")] = None,
    full_size: bool = typer.Option(
        False,
        "--full-size",
        help="unet: do not scale the image to the training images' size; for networks trained on pieces.",
    ),
    seed: int = typer.Option(0, help="For the draws."),
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("segments.png"),
    labels: Annotated[Path | None, typer.Option(help="Also write the labels here, as a 16-bit PNG.")] = None,
) -> None:
    """Segments a photograph and draws it: the image, the mean colours (or classes), the borders."""
    with one_sentence("segment"):
        import numpy as np
        from PIL import Image

        from ..train.files import printable
        from .segmentation import METHODS
        from .segmentation import segment as segment_image

        if method not in (*METHODS, "unet"):
            raise ValueError(f"--method must be one of {', '.join(METHODS)}, unet, got {method!r}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")
        pixels, name = _picture(image), printable(image.name)
        for path in (output, labels):
            if path is not None:
                _checked_output(path, image)
        if labels is not None and labels.resolve() == output.resolve():
            raise ValueError(f"--output and --labels are both {output}; choose two names")
        start = time.perf_counter()
        if method == "unet":
            found, names, model = _by_network(pixels, checkpoint, full_size)
            count = len(np.unique(found))
            title = f"{name}: {count} class{'es' * (count != 1)} by {model}"
        else:
            options = {"clusters": clusters, "color": color, "position": position, "seed": seed}
            found, names = segment_image(pixels, method, bandwidth=bandwidth or None, sigma=sigma or None, **options), None
            count = len(np.unique(found))
            title = f"{name}: {count} segment{'s' * (count != 1)} by {method}"
        seconds = time.perf_counter() - start
        picture = segmentation_figure(pixels, found, title, names)
        if labels is not None:
            if found.max() > 65535:
                raise ValueError(f"{count} segments do not fit a 16-bit PNG")
            buffer = io.BytesIO()
            Image.fromarray(found.astype(np.uint16)).save(buffer, format="png")
            _write(labels, buffer.getvalue())
        _write(output, picture)
        print(f"{title}, {pixels.shape[1]}x{pixels.shape[0]} pixels in {seconds:.2f} s; {output}")


def _by_network(pixels: Any, checkpoint: Path | None, full_size: bool) -> tuple[Any, list[str], str]:
    if checkpoint is None:
        raise ValueError("--method unet needs --checkpoint, a file that `fastcv train` wrote for a segmentation model")
    if not checkpoint.is_file():
        raise ValueError(f"--checkpoint {checkpoint} {'is a folder' if checkpoint.is_dir() else 'does not exist'}")
    from .network import network_segments

    return network_segments(pixels, checkpoint, full_size)


def knn(
    data: str = typer.Option("digits", help="digits (scikit-learn's), or a folder: CIFAR-10, or one folder of images per class."),
    ks: str = typer.Option("1,2,3,5,8,10,15,20,50", help="Candidates for k."),
    folds: int = typer.Option(5, help="Of the cross-validation."),
    limit: int = typer.Option(10_000, help="Training images at most, drawn by the seed."),
    seed: int = typer.Option(0, help="For the split and the folds."),
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of pictures to write.")] = Path("knn-output"),
) -> None:
    """Chooses k and L1 or L2 by cross-validation, reads the test images once, and draws both."""
    with one_sentence("knn"):
        from ..train.output import check_output

        candidates = [int(k) if k.strip().isdecimal() else 0 for k in ks.split(",")]
        if min(candidates) < 1:
            raise ValueError(f"--ks must be whole numbers of at least 1 such as 1,3,5, got {ks!r}")
        if limit < 10:
            raise ValueError(f"--limit must be at least 10, got {limit}")
        check_output(output, KNN_FILES)
        report = _knn(data, candidates, folds, limit, seed, output)
        for row in report["distances"]:
            print(f"{row['distance']}: k = {row['k']}, cross-validated {100 * row['cross_validated']:.2f} %")
        print(
            f"test, read once with k = {report['k']} and {report['distance']}: {100 * report['test_accuracy']:.2f} % of {report['test']:,} "
            f"images, {report['train']:,} neighbours, {report['seconds']:.2f} s; {output}"
        )


def _knn(data: str, ks: list[int], folds: int, limit: int, seed: int, output: Path) -> dict[str, Any]:
    from ..neighbors import knn_chunked
    from ..train import data as data_room
    from ..train import plots
    from ..train.output import replaced_folder
    from .knn_classifier import KNNImageClassifier

    images = data_room.load_digits() if data == "digits" else data_room.load(data)
    if images.task != "classification":
        raise ValueError(f"--data {data} is for {images.task}, nearest neighbours need one label per image")
    parts = data_room.split(images, seed)
    train = parts.development
    if len(train) > limit:
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:limit].sort().values]
    rows = images.images.flatten(1)
    model = KNNImageClassifier(ks, folds=folds, seed=seed).fit(rows[train].numpy(), images.labels[train].numpy())
    start = time.perf_counter()
    predictions = torch.from_numpy(model.predict(rows[parts.test].numpy()))
    seconds = time.perf_counter() - start
    wrong = predictions != images.labels[parts.test]
    names = ["L1", "L2"]
    chosen = {name: int(model.ks_[a.mean(1).argmax()]) for name, a in zip(names, model.cv_accuracy_, strict=True)}
    report = {
        "data": images.name,
        "train": len(train),
        "test": len(parts.test),
        "k": model.best_k_,
        "distance": f"L{model.best_p_:g}",
        "test_accuracy": 1 - wrong.double().mean().item(),
        "seconds": seconds,
        "distances": [
            {"distance": n, "k": chosen[n], "cross_validated": float(a.mean(1).max())}
            for n, a in zip(names, model.cv_accuracy_, strict=True)
        ],
    }
    accuracies = {name: torch.from_numpy(a) for name, a in zip(names, model.cv_accuracy_, strict=True)}
    order = torch.cat([wrong.nonzero().flatten(), (~wrong).nonzero().flatten()])[:6]
    queries = parts.test[order]
    _, indices = knn_chunked(rows[queries], rows[train], min(8, len(train)), model.best_p_)
    with replaced_folder(output, KNN_FILES) as folder:
        title = f"kNN on {images.name}: {folds}-fold cross-validation, mean ± standard deviation"
        plots.neighbours(folder / "k.png", model.ks_.tolist(), accuracies, chosen, title)
        _neighbour_rows(folder / "neighbours.png", images, queries, train[indices], report["distance"])
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _neighbour_rows(file: Path, images: Any, queries: Any, neighbours: Any, distance: str) -> None:
    """One row per test image, the misclassified first: the image, then its nearest training images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * (neighbours.shape[1] + 1), 1.5 * len(queries) + 0.5), layout="constrained", dpi=110)
    grid = figure.subplots(len(queries), neighbours.shape[1] + 1, squeeze=False)
    for row, query, near in zip(grid, queries.tolist(), neighbours.tolist(), strict=True):
        for place, (axes, index) in enumerate(zip(row, [query, *near], strict=True)):
            picture = images.images[index]
            if len(picture) == 1:
                axes.imshow(picture[0].numpy(), cmap="gray_r", vmin=0, vmax=images.white)
            else:
                axes.imshow(picture.permute(1, 2, 0).numpy())
            right = images.labels[index] == images.labels[query]
            name = images.classes[int(images.labels[index])][:10].replace("$", r"\$")
            axes.set_title(
                f"test: {name}" if place == 0 else name, fontsize=9, color="black" if place == 0 else "#1f7a3a" if right else "#b3261e"
            )
            axes.axis("off")
    figure.suptitle(f"Test images (left, misclassified first) and their nearest training images in {distance}")
    figure.savefig(file)
