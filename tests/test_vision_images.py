"""Features, edges, segmentation and the commands: equal to scikit-image where it has the algorithm."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.datasets import load_digits, load_sample_image
from sklearn.metrics import adjusted_rand_score

from fastcv.vision import (
    HOG,
    BagOfVisualWords,
    ColorHistogram,
    SoftmaxClassifier,
    canny,
    color_histogram,
    hog,
    mean_colors,
    pixel_features,
    segment,
    superpixels,
)

CHINA, FLOWER = (load_sample_image(name)[::3, ::3] for name in ("china.jpg", "flower.jpg"))
needs_skimage = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs scikit-image")


@needs_skimage
@pytest.mark.parametrize("image", [CHINA, FLOWER], ids=["china", "flower"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sigma": 2, "low": 0.05, "high": 0.15}, {"sigma": 0.5, "low": 0.2, "high": 0.2}, {"sigma": 0, "low": 0.0, "high": 0.4}],
    ids=str,
)
def test_edges_are_scikit_images(image: np.ndarray, options: dict) -> None:
    """Every pixel must agree: with smoothing no magnitudes tie here within rounding, and without it they tie in both."""
    from skimage.feature import canny as peer

    for grey in (image.mean(-1) / 255, image[..., 1], image[..., 0].astype(np.uint16) * 257, image[..., 2] > 128):
        scale = np.iinfo(grey.dtype).max if grey.dtype.kind == "u" else 1  # scikit-image's thresholds are in units of the image
        low, high = (options.get(name, default) * scale for name, default in (("low", 0.1), ("high", 0.2)))
        theirs = peer(grey, options.get("sigma", 1), low, high)
        assert np.array_equal(canny(grey, **options), theirs) and theirs.any()


def test_edges_of_odd_images() -> None:
    step = np.zeros((9, 12))
    step[:, 6:] = 1
    found = canny(step)
    assert found[1:-1].any(1).all() and set(found.nonzero()[1]) <= {5, 6} and not canny(np.ones((5, 5))).any()
    assert canny(np.zeros((2, 9))).shape == (2, 9) and canny(step > 0).any()
    for bad, sentence in (
        (lambda: canny(CHINA), "takes a grey image"),
        (lambda: canny(step, sigma=-1), "sigma must be"),
        (lambda: canny(step, low=0.3), "low=0.3 must not be above high=0.2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            bad()


@needs_skimage
@pytest.mark.parametrize("options", [{}, {"orientations": 6, "pixels_per_cell": 10, "cells_per_block": 2}], ids=str)
def test_hog_is_scikit_images(options: dict) -> None:
    from skimage.feature import hog as peer

    names = {"pixels_per_cell": (options.get("pixels_per_cell", 8),) * 2, "cells_per_block": (options.get("cells_per_block", 3),) * 2}
    both = hog(np.stack([CHINA, FLOWER]), **options)
    for mine, image in zip(both, (CHINA, FLOWER), strict=True):
        theirs = peer(image, orientations=options.get("orientations", 9), channel_axis=-1, **names)
        np.testing.assert_allclose(mine, theirs, atol=1e-6)  # scikit-image sums the cells in float32
    grey = CHINA.mean(-1)
    np.testing.assert_allclose(hog(grey[None], **options)[0], peer(grey, orientations=options.get("orientations", 9), **names), atol=1e-6)
    with pytest.raises(ValueError, match="hold no block of 3x3 cells of 8 pixels"):
        hog(np.zeros((1, 20, 30)))


def test_color_histograms_count_pixels() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255]], [[255, 0, 0], [255, 0, 1]]], np.uint8)
    shares = color_histogram(image[None], bins=2)[0]
    assert shares.tolist() == [0.25, 0, 0, 0, 0.5, 0, 0, 0.25]
    direct = np.histogramdd(CHINA.reshape(-1, 3), bins=4, range=[(0, 255)] * 3)[0].ravel() / CHINA[..., 0].size
    np.testing.assert_allclose(color_histogram(CHINA[None], bins=4)[0], direct, atol=2e-2)  # histogramdd cuts bytes elsewhere
    assert color_histogram(np.ones((3, 4, 4)), bins=5).tolist() == [[0, 0, 0, 0, 1]] * 3
    with pytest.raises(ValueError, match="value_range must ascend"):
        color_histogram(image[None], value_range=(1, 1))


@pytest.mark.parametrize("make", [lambda: ColorHistogram(bins=5, value_range=(0, 16), shape=(8, 8)), lambda: HOG(9, 4, 2, shape=(8, 8))])
def test_transformers_fold_rows_into_images(make) -> None:
    x = load_digits().data[:20]
    flat = make().fit(x)
    assert np.array_equal(flat.transform(x), flat.set_params(shape=None).fit(x.reshape(-1, 8, 8)).transform(x.reshape(-1, 8, 8)))
    assert len(flat.get_feature_names_out()) == flat.transform(x.reshape(-1, 8, 8)).shape[1]
    with pytest.raises(ValueError, match="do not fold into images of shape"):
        make().fit(x[:, :60])


def test_visual_words_tell_digits_apart() -> None:
    x, y = load_digits(return_X_y=True)
    bag = BagOfVisualWords(60, patch=4, shape=(8, 8)).fit(x[:500])
    words = bag.transform(x)
    assert bag.codebook_.shape == (60, 16) and words.shape == (len(x), 60)
    np.testing.assert_allclose(words.sum(1), 1)
    assert SoftmaxClassifier(alpha=1e-5, random_state=0).fit(words[:500], y[:500]).score(words[500:], y[500:]) > 0.6  # no place, only parts
    assert np.array_equal(BagOfVisualWords(60, patch=4, shape=(8, 8)).fit(x[:500]).codebook_, bag.codebook_)
    # Patches drawn for the codebook are those that stand at the drawn places among all, in the drawn order.
    images, places = x[:500].reshape(-1, 8, 8, 1), torch.randperm(500 * 25, generator=torch.Generator().manual_seed(0))[:700]
    assert torch.equal(bag._sampled(images, 700), bag._patches(images).flatten(0, 1)[places])
    assert torch.equal(bag._sampled(images, 12_500), bag._patches(images).flatten(0, 1))
    with pytest.raises(ValueError, match="hold no patch of 9x9"):
        BagOfVisualWords(patch=9, shape=(8, 8)).fit(x)


# Segmentation -----------------------------------------------------------------------------------------------------------


def stripes() -> tuple[np.ndarray, np.ndarray]:
    """Four noisy regions of different colours and sizes: the image and the truth."""
    truth = np.zeros((60, 80), int)
    truth[:, 30:], truth[40:, 50:], truth[5:20, 60:75] = 1, 2, 3
    colors = np.array([[200, 60, 50], [40, 90, 200], [60, 190, 80], [230, 220, 60]])
    noise = np.random.default_rng(0).normal(0, 6, (60, 80, 3))
    return np.clip(colors[truth] + noise, 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize(
    ("method", "options"),
    [("kmeans", {"clusters": 4}), ("meanshift", {}), ("meanshift", {"bandwidth": 0.2}), ("ncut", {"clusters": 4})],
    ids=str,
)
def test_regions_are_found(method: str, options: dict) -> None:
    image, truth = stripes()
    found = segment(image, method, **options)
    assert found.shape == truth.shape and adjusted_rand_score(truth.ravel(), found.ravel()) > 0.95
    assert (np.diff(np.bincount(found.ravel())) <= 0).all()
    assert np.array_equal(found, segment(image, method, **options))


@pytest.mark.parametrize("method", ["kmeans", "meanshift", "ncut"])
def test_segmentation_of_odd_images(method: str) -> None:
    thin = np.tile(CHINA[:2], (1, 20, 1))  # fewer rows than half a superpixel's side
    for image in (
        *(np.zeros((7, 9)), np.full((5, 6, 3), 9, np.uint8), np.zeros((1, 1)), np.eye(4), CHINA[:3, :50], CHINA[..., 0] > 100),
        *(thin, thin.transpose(1, 0, 2)),
    ):
        found = segment(image, method)
        assert found.shape == image.shape[:2] and found.min() == 0
    for bad, sentence in (
        (lambda: segment(CHINA, "cut"), "method must be one of"),
        (lambda: segment(np.zeros(4), method), "an image is an array"),
        (lambda: segment(CHINA, method, clusters=0), "clusters must be"),
        (lambda: segment(CHINA, method, position=-1), "position must be"),
        (lambda: segment(np.full((3, 3), np.nan), method), "pixels that are not finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            bad()


def test_as_many_clusters_as_colours() -> None:
    image = (np.arange(1600).reshape(40, 40) % 300 * 200).astype(np.uint16)
    found = segment(image, clusters=100_000)
    assert len(np.unique(found)) == 300 and np.array_equal(mean_colors(image, found), image)


def test_pixel_features_and_mean_colors() -> None:
    features = pixel_features(CHINA, position=0.5)
    height, width = CHINA.shape[:2]
    assert features.shape == (height * width, 5) and features.dtype == np.float32
    assert features[width + 2].tolist() == pytest.approx([*(CHINA[1, 2] / 255), 0.5 / width, 1 / width])
    assert pixel_features(CHINA, color=False).shape == (height * width, 1)
    labels = np.arange(height * width).reshape(height, width) % 3
    painted = mean_colors(CHINA, labels)
    assert painted.dtype == np.uint8 and np.array_equal(
        painted[labels == 1], np.tile(np.round(CHINA[labels == 1].mean(0)), (np.sum(labels == 1), 1))
    )


def test_superpixels_follow_colors() -> None:
    image, truth = stripes()
    regions = superpixels(image, 150)
    assert regions.shape == truth.shape and 100 <= regions.max() + 1 <= 200
    purity = sum(np.bincount(truth[regions == r]).max() for r in range(regions.max() + 1)) / truth.size
    assert purity > 0.98


# Commands ---------------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "fastcv", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pillow = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    pytest.importorskip("typer")
    file = tmp_path_factory.mktemp("photo") / "a $photo.png"
    pillow.fromarray(stripes()[0]).save(file)
    return file


def test_segment_writes_a_picture_and_labels(photograph: Path, tmp_path: Path) -> None:
    from PIL import Image

    status, out, err = run(
        "segment", str(photograph), "--clusters", "4", "-o", str(tmp_path / "s.png"), "--labels", str(tmp_path / "l.png")
    )
    assert status == 0 and "4 segments by kmeans" in out, err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "l.png")), segment(stripes()[0], "kmeans", clusters=4))
    assert Image.open(tmp_path / "s.png").width > 1000 and sorted(p.name for p in tmp_path.iterdir()) == ["l.png", "s.png"]


def invoke(*arguments: object) -> object:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from fastcv.cli import _application

    return CliRunner().invoke(_application(), list(map(str, arguments)))


def test_segment_reads_what_files_hold(photograph: Path, tmp_path: Path) -> None:
    """One picture in many forms has one segmentation; grey values of 16 and 32 bits keep their tones."""
    from PIL import Image

    picture = Image.open(photograph)
    grey = np.asarray(picture.convert("L"))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[274] = 6  # shown turned back by 90 degrees
    forms = {
        "grey.png": Image.fromarray(grey),
        "bits16.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "float.tif": Image.fromarray(grey.astype(np.float32) / 255),
        "int32.tif": Image.fromarray(grey.astype(np.int32) * 257),
        "alpha.png": Image.fromarray(np.dstack([grey, grey])),
    }
    for name, form in forms.items():
        form.save(tmp_path / name)
        done = invoke("segment", tmp_path / name, "--clusters", 4, "-o", tmp_path / "s.png", "--labels", tmp_path / "l.png")
        assert done.exit_code == 0, (name, done.stderr)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "l.png")), segment(np.dstack([grey] * 3), clusters=4)), name
    turned.save(tmp_path / "turned.png", exif=exif)
    assert (
        invoke("segment", tmp_path / "turned.png", "--clusters", 4, "-o", tmp_path / "s.png", "--labels", tmp_path / "l.png").exit_code == 0
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "l.png")), segment(np.asarray(picture), clusters=4))
    Image.fromarray(np.asarray(picture)[:, :1]).save(tmp_path / "line.png")  # 60 times as high as wide: the picture stays small
    assert invoke("segment", tmp_path / "line.png", "-o", tmp_path / "s.png").exit_code == 0
    assert Image.open(tmp_path / "s.png").height < 2000
    Image.fromarray(np.full((4, 4), 3.0, np.float32)).save(tmp_path / "bright.tif")
    done = invoke("segment", tmp_path / "bright.tif", "-o", tmp_path / "t.png")
    assert done.exit_code == 2 and "its pixels go from 3 to 3, expected 0 to 1" in done.stderr and not (tmp_path / "t.png").exists()


def test_a_trained_network_segments_as_predict_does(photograph: Path, tmp_path: Path) -> None:
    from PIL import Image

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(8):
        image, truth = (np.roll(a, 7 * i, axis=1)[:40, :40] for a in stripes())
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray((truth == 1).astype(np.uint8)).save(tmp_path / "data" / "masks" / f"{i}.png")
    (tmp_path / "data" / "classes.txt").write_text("rest\nblue\n")
    run_ = tmp_path / "run"
    options = ["--model", "unet_small", "--epochs", 12, "-b", 4, "--opt", "adamw", "--lr", 0.01, "--val-resize-size", 32, "--threads", 1]
    done = invoke("train", "--data-path", tmp_path / "data", *options, "-o", run_)
    assert done.exit_code == 0, done.stderr
    found = {}
    for name, more in (("fit", []), ("full", ["--full-size"])):
        files = tmp_path / f"{name}.png", tmp_path / f"{name}-labels.png"
        given = ["segment", photograph, "--method", "unet", "--checkpoint", run_ / "last.pt", *more, "-o", files[0], "--labels", files[1]]
        done = invoke(*given)
        assert done.exit_code == 0 and "by unet_small, 80x60 pixels" in done.stdout, done.stderr
        assert Image.open(files[0]).width > 1000
        found[name] = np.asarray(Image.open(files[1]))
        assert found[name].shape == (60, 80) and set(np.unique(found[name])) <= {0, 1}
    assert invoke("predict", run_ / "last.pt", photograph, "-o", tmp_path / "answers").exit_code == 0
    (mask,) = (tmp_path / "answers").glob("*_mask.png")
    assert np.array_equal(found["fit"], np.asarray(Image.open(mask)))
    truth = stripes()[1] == 1
    assert (found["full"] == truth).mean() > 0.8
    Image.fromarray(stripes()[0][:1, :1]).save(tmp_path / "one.png")  # smaller than the network's poolings allow
    assert (
        invoke(
            "segment", tmp_path / "one.png", "--method", "unet", "--checkpoint", run_ / "last.pt", "--full-size", "-o", files[0]
        ).exit_code
        == 0
    )
    for checkpoint, sentence in (
        (photograph, "no checkpoint that can be read"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.pt", "does not exist"),
    ):
        done = invoke("segment", photograph, "--method", "unet", "--checkpoint", checkpoint, "-o", tmp_path / "x.png")
        assert done.exit_code == 2 and sentence in done.stderr and not (tmp_path / "x.png").exists(), done.stderr


def test_bad_input_is_one_sentence(photograph: Path, tmp_path: Path) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from fastcv.cli import _application

    text, kept = tmp_path / "text.jpg", tmp_path / "kept.png"
    text.write_text("no image")
    kept.write_bytes(b"kept")
    cases = {
        "does not exist": ["segment", str(tmp_path / "none.jpg")],
        "cannot be read as an image": ["segment", str(text), "-o", str(kept)],
        "must be one of kmeans, meanshift, ncut, unet": ["segment", str(photograph), "--method", "magic", "-o", str(kept)],
        "must end in .png": ["segment", str(photograph), "-o", str(tmp_path / "x.jpg")],
        "its folder does not exist": ["segment", str(photograph), "-o", str(tmp_path / "no" / "x.png")],
        "is the image itself": ["segment", str(photograph), "-o", str(photograph)],
        "clusters must be an integer of at least 1, got 0": ["segment", str(photograph), "--clusters", "0", "-o", str(kept)],
        "bandwidth must be a positive number or None, got -1": ["segment", str(photograph), "--bandwidth", "-1", "-o", str(kept)],
        "bandwidth=1e-06 is too small": ["segment", str(photograph), "--method", "meanshift", "--bandwidth", "1e-6", "-o", str(kept)],
        "sigma must be a positive number or None, got nan": [
            "segment",
            str(photograph),
            "--method",
            "ncut",
            "--sigma",
            "nan",
            "-o",
            str(kept),
        ],
        "position must be a number of at least 0, got inf": ["segment", str(photograph), "--position", "inf", "-o", str(kept)],
        "--seed must be from 0 to": ["segment", str(photograph), "--seed", "-1", "-o", str(kept)],
        "choose two names": ["segment", str(photograph), "-o", str(kept), "--labels", str(kept)],
        "is a folder, expected an image file": ["segment", str(tmp_path), "-o", str(kept)],
        "needs --checkpoint": ["segment", str(photograph), "--method", "unet", "-o", str(kept)],
        "--ks must be whole numbers": ["knn", "--ks", "1,x"],
        "expected a folder": ["knn", "--data", str(text), "-o", str(tmp_path / "k")],
        "which this program did not write": ["knn", "-o", str(tmp_path)],
    }
    runner = CliRunner()
    for sentence, arguments in cases.items():
        result = runner.invoke(_application(), arguments)
        message = " ".join(result.stderr.split())
        assert result.exit_code == 2 and (sentence in message or sentence == "does not exist"), (arguments, result.stderr, result.exception)
        assert message.startswith(f"fastcv {arguments[0]}: ") and "Traceback" not in message
    assert kept.read_bytes() == b"kept" and not (tmp_path / "k").exists()


def test_knn_writes_its_folder(photograph: Path, tmp_path: Path) -> None:
    status, out, err = run("knn", "--ks", "1,3", "--limit", "500", "-o", str(tmp_path / "k"))
    assert status == 0 and "test, read once with k =" in out, err
    assert sorted(p.name for p in (tmp_path / "k").iterdir()) == ["k.png", "neighbours.png", "report.json"]
    report = json.loads((tmp_path / "k" / "report.json").read_text())
    assert report["train"] == 500 and report["test_accuracy"] > 0.93 and report["k"] in (1, 3)
