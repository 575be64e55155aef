"""``fastcv segment`` and ``fastcv knn``: pictures from a command line."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import _ext

__all__ = ["register"]

PACKAGES = {"matplotlib": "plots", "sklearn": "data", "scipy": "data", "PIL": "plots"}
KNN_FILES = ("k.png", "neighbours.png", "report.json")


def register(app: typer.Typer) -> None:
    """Adds the two commands."""
    app.command("segment")(segment)
    app.command("knn")(knn)


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
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
    """The image (H, W, 3) as uint8. Raises ValueError for what cannot be read."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an image file")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _write(path: Path, content: bytes) -> None:
    """The whole file or nothing."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def segmentation_figure(image: Any, labels: Any, title: str) -> bytes:
    """PNG of the image, its segments in their mean colours, and their borders drawn on the image."""
    import numpy as np
    from matplotlib.figure import Figure

    from .segmentation import mean_colors

    height, width = labels.shape
    border = np.zeros((height, width), bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    drawn = image.copy()
    drawn[border] = (255, 40, 40)
    panel = 5.0
    figure = Figure(figsize=(3 * panel, panel * height / width + 0.6), layout="constrained", dpi=110)
    for axes, picture, name in zip(
        figure.subplots(1, 3), (image, mean_colors(image, labels), drawn), ("image", "mean colours", "borders"), strict=True
    ):
        axes.imshow(picture, interpolation="nearest" if width < 400 else "antialiased")
        axes.set_title(name, fontsize=11)
        axes.axis("off")
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
    seed: int = typer.Option(0, help="For the draws."),
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("segments.png"),
    labels: Annotated[Path | None, typer.Option(help="Also write the labels here, as a 16-bit PNG.")] = None,
) -> None:
    """Segments a photograph and draws it: the image, the mean colours, the borders."""
    with _one_sentence("segment"):
        import numpy as np
        from PIL import Image

        pixels = _picture(image)
        for path in (output, labels):
            if path is not None and path.suffix.lower() != ".png":
                raise ValueError(f"{path} must end in .png")
            if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
                raise ValueError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder does not exist'}")
            if path is not None and path.exists() and path.samefile(image):
                raise ValueError(f"{path} is the image itself; choose another name")
        if bandwidth < 0 or sigma < 0:
            raise ValueError(f"{'bandwidth' if bandwidth < 0 else 'sigma'} must be at least 0, got {min(bandwidth, sigma)}")
        start = time.perf_counter()
        if method == "unet":
            found = _network_labels(pixels, checkpoint)
        else:
            from .segmentation import METHODS
            from .segmentation import segment as segment_image

            if method not in METHODS:
                raise ValueError(f"--method must be one of {', '.join(METHODS)}, unet, got {method!r}")
            options = {"clusters": clusters, "color": color, "position": position, "seed": seed}
            found = segment_image(pixels, method, bandwidth=bandwidth or None, sigma=sigma or None, **options)
        seconds = time.perf_counter() - start
        count = len(np.unique(found))
        title = f"{image.name}: {count} segment{'s' * (count != 1)} by {method}"
        picture = segmentation_figure(pixels, found, title)
        if labels is not None:
            if found.max() > 65535:
                raise ValueError(f"{count} segments do not fit a 16-bit PNG")
            buffer = io.BytesIO()
            Image.fromarray(found.astype(np.uint16)).save(buffer, format="png")
            _write(labels, buffer.getvalue())
        _write(output, picture)
        print(f"{title}, {pixels.shape[1]}x{pixels.shape[0]} pixels in {seconds:.2f} s; {output}")


def _network_labels(pixels: Any, checkpoint: Path | None) -> Any:
    """The classes (H, W) that a trained segmentation network gives the pixels."""
    if checkpoint is None:
        raise ValueError("--method unet needs --checkpoint, a file that `fastcv train` wrote for a segmentation model")
    if not checkpoint.is_file():
        raise ValueError(f"--checkpoint {checkpoint} does not exist")
    try:
        from ..train.predict import restored
    except ImportError:
        raise ValueError("--method unet needs the segmentation networks of `fastcv train`, which this version does not have") from None
    state, _, network, prepare = restored(checkpoint, {})
    if state["data"]["task"] != "segmentation":
        raise ValueError(f"--checkpoint {checkpoint} is of a network for {state['data']['task']}")
    network.eval()
    with torch.inference_mode():
        outputs = network(prepare(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]))
    logits = outputs["out"] if isinstance(outputs, dict) else outputs
    return logits[0].argmax(0).numpy()


def knn(
    data: str = typer.Option("digits", help="digits (scikit-learn's), or a folder: CIFAR-10, or one folder of images per class."),
    ks: str = typer.Option("1,2,3,5,8,10,15,20,50", help="Candidates for k."),
    folds: int = typer.Option(5, help="Of the cross-validation."),
    limit: int = typer.Option(10_000, help="Training images at most, drawn by the seed."),
    seed: int = typer.Option(0, help="For the split and the folds."),
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of pictures to write.")] = Path("knn-output"),
) -> None:
    """Chooses k and L1 or L2 by cross-validation, reads the test images once, and draws both."""
    with _one_sentence("knn"):
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
