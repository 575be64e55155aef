"""Whole runs of fastcv train, evaluate and predict on small real data: exact continuation, processes, output and bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import fastcv
from fastcv.train import checkpoint

typer = pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
from typer.testing import CliRunner  # noqa: E402

from fastcv.cli import _application  # noqa: E402
from fastcv.train.engine import Engine  # noqa: E402

Image = pytest.importorskip("PIL.Image")


def _words(text: str) -> list[str]:
    return text.split()


TESTS = Path(__file__).resolve().parent
# Everything random at once, four epochs of few steps: 160 digits of 8x8.
EVERYTHING = _words(
    "--model train_models:net --epochs 4 --batch-size 16 --lr 0.05 --grad-accum-steps 2 --model-ema --mixup-alpha 0.2 --cutmix-alpha 1"
    " --label-smoothing 0.1 --clip-grad-norm 5 --lr-warmup-epochs 1 --opt adamw --norm-weight-decay 0 --shift 1 --hflip-prob 0.3"
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 real digits as MNIST-style files: 160 to train (20 of them to validate), 40 to test."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    source = load_digits()
    for part, first, last in (("train", 0, 160), ("t10k", 160, 200)):
        for kind, values in (("images-idx3", source.images), ("labels-idx1", source.target)):
            values = (values[first:last] * (15 if "images" in kind else 1)).astype(np.uint8)
            head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
    return folder


def _run(*arguments: object) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of ``fastcv ...`` in this process."""
    sys.path.insert(0, str(TESTS))
    try:
        result = CliRunner().invoke(_application(), [str(a) for a in arguments])
    finally:
        sys.path.remove(str(TESTS))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def _train(data: Path | str, output: Path, *arguments: object) -> dict[str, object]:
    """The last checkpoint of a run that must succeed."""
    status, _, error = _run("train", "--data-path", data, "--output-dir", output, *arguments)
    assert (status, error) == (0, ""), error
    return checkpoint.load(output / "last.pt")


def _same(a: object, b: object, where: str = "") -> None:
    """Bit by bit, times apart."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            if name not in ("seconds", "images_per_second", "output_dir", "resume", "recovery_interval", "workers", "threads"):
                _same(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            _same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run with everything on, never interrupted."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    _train(digits, output, *EVERYTHING)
    return output


def test_output_of_a_run(straight: Path) -> None:
    names = {"last.pt", "best.pt", "log.csv", "log.jsonl", "options.json", "results.json", "report.html"}
    assert names | {"curves.png", "confusion.png", "samples.png", "classes.png"} == {entry.name for entry in straight.iterdir()}
    with (straight / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4] == [line["epoch"] for line in lines]
    assert [float(row["val_loss"]) for row in rows] == [line["val_loss"] for line in lines]
    results, options = (json.loads((straight / name).read_text()) for name in ("results.json", "options.json"))
    assert results["best_epoch"] == 1 + int(np.argmax([line["val_accuracy"] for line in lines]))
    assert results["data"]["counts"] == {"train": 140, "validation": 20, "test": 40} and len(results["data"]["mean"]) == 1
    assert options["data"]["mean"] == results["data"]["mean"] and options["mixup_alpha"] == 0.2
    page = (straight / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "$" not in page and "http" not in page.split("<body>")[1]
    assert "--mixup-alpha 0.2" in page


def test_the_same_run_twice_has_the_same_bits(digits: Path, straight: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # the state of the process must not matter
    _same(checkpoint.load(straight / "last.pt"), _train(digits, tmp_path / "again", *EVERYTHING))


@pytest.mark.parametrize("stop", [1, 3, 4, 9])
def test_a_run_that_is_stopped_goes_on_with_the_same_bits(
    digits: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """SIGTERM after some update, in the midst of an epoch and at the end of one; then --resume auto. 4 updates an epoch."""
    updates = 0
    update = Engine._update

    def counted(self: Engine) -> None:
        nonlocal updates
        update(self)
        updates += 1
        if updates == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Engine, "_update", counted)
    arguments = ("train", "--data-path", digits, "--output-dir", tmp_path / "run", *EVERYTHING, "--resume", "auto")
    status, _, error = _run(*arguments)
    assert (status, error) == (143, "fastcv train: SIGTERM received; the run is saved and goes on with --resume auto\n")
    assert updates == stop and not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(Engine, "_update", update)
    torch.manual_seed(99)  # the state of the process must not matter
    status, out, error = _run(*arguments)
    assert (status, error) == (0, "") and f"continuing {tmp_path}/run/last.pt at epoch {stop // 4 + 1}" in " ".join(out.split())
    _same(checkpoint.load(straight / "last.pt"), checkpoint.load(tmp_path / "run" / "last.pt"))
    _same(checkpoint.load(straight / "best.pt")["model_ema"], checkpoint.load(tmp_path / "run" / "best.pt")["model_ema"])
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (straight, tmp_path / "run")]
    _same(*logs)
    assert (
        json.loads((straight / "results.json").read_text())["test"] == json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    )


def test_a_finished_run_is_reported_again(digits: Path, straight: Path) -> None:
    last = (straight / "last.pt").read_bytes()
    (straight / "report.html").unlink()
    _train(digits, straight, *EVERYTHING, "--resume", "auto")
    assert (straight / "last.pt").read_bytes() == last and (straight / "report.html").exists()


def test_kornia_goes_on_with_the_same_bits(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("kornia")
    arguments = _words("--model train_models:net --batch-size 32 --rotate 10 --random-erase 0.5 --random-resized-crop 0.7 --epochs 2")
    whole = _train(digits, tmp_path / "whole", *arguments, "--checkpoint-hist", 2)
    assert {"checkpoint_1.pt", "checkpoint_2.pt"} <= {entry.name for entry in (tmp_path / "whole").iterdir()}
    _same(whole, _train(digits, tmp_path / "half", *arguments, "--checkpoint-hist", 2, "--resume", tmp_path / "whole" / "checkpoint_1.pt"))


@pytest.mark.parametrize("backend", ["off", "optimize"])
def test_backends_train_alike(digits: Path, tmp_path: Path, backend: str) -> None:
    arguments = _words("--model train_models:net --batch-size 72 --epochs 2 --lr 0.02")
    ours = _train(digits, tmp_path / "nn", *arguments)
    other = _train(digits, tmp_path / backend, *arguments, "--fastcv", backend)
    for name, value in ours["model"].items():
        torch.testing.assert_close(value, other["model"][name])  # four updates on one seed: rounding has not grown yet


def test_early_stopping(digits: Path, tmp_path: Path) -> None:
    """Without a learning rate nothing improves once the running statistics stand."""
    arguments = _words("--model train_models:net --lr 0 --epochs 40 --early-stopping 2 --shift 0 --hflip-prob 0")
    state = _train(digits, tmp_path / "run", *arguments)
    assert state["epoch"] == len(state["history"]) == state["best"]["epoch"] + 2 < 40


def test_amp_channels_last_tensorboard_and_colour(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from test_data import _image_folder

    folder = _image_folder(tmp_path / "pets", 9, (24, 18))
    state = _train(
        folder, tmp_path / "run", "--amp", "--channels-last", "--tensorboard", "--model", "train_models:net", "--epochs", 1,
        "--train-crop-size", 12, "--val-resize-size", 14, "--batch-size", 4, "--lr", 0.01,
    )  # fmt: skip
    assert state["data"]["shape"] == [3, 14, 14] and len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_files_read_by_workers_train_as_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_data import _image_folder

    from fastcv.train import files

    folder = _image_folder(tmp_path / "pets", 9, (24, 18))
    (folder / "dog" / "5.png").write_bytes(b"")
    arguments = _words("--model train_models:net --epochs 2 --batch-size 4 --lr 0.01 --val-resize-size 16 --skip-corrupt")
    memory = _train(folder, tmp_path / "memory", *arguments)
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    _same(memory, _train(folder, tmp_path / "here", *arguments))
    _same(memory, _train(folder, tmp_path / "workers", *arguments, "-j", 2))
    assert "1 corrupt images left out" in (tmp_path / "workers" / "report.html").read_text()


def test_without_matplotlib_there_is_no_report_but_a_result(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcv.train import run

    monkeypatch.setattr(run, "_can_draw", lambda: False)
    _train(digits, tmp_path / "run", "--model", "train_models:net", "--epochs", 1)
    assert (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / "report.html").exists()


def test_segmentation(tmp_path: Path) -> None:
    """The auxiliary head trains, the report has IoU, and masks come back in the size of the pictures."""
    from test_train_data import _voc

    names = [f"n{i}" for i in range(12)]
    root = _voc(tmp_path / "voc", {"train": names[:9], "val": names[9:]})
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(21)))
    output = tmp_path / "run"
    arguments = _words("--model train_models:masks --epochs 6 --batch-size 2 --lr 0.1 --shift 0 --hflip-prob 0 --val-resize-size 16")
    state = _train(root, output, *arguments)
    assert state["history"][-1]["train_loss"] < 0.5 * state["history"][0]["train_loss"] and (output / "report.html").exists()
    test = json.loads((output / "results.json").read_text())["test"]
    assert test["iou"]["c5"] is None and test["pixel_accuracy"] > 0.5
    status, _, error = _run("evaluate", output / "best.pt", "-o", tmp_path / "scores.json")
    assert (status, error) == (0, "") and json.loads((tmp_path / "scores.json").read_text())["iou"] == test["iou"]
    Image.new("RGB", (31, 17), (50, 0, 200)).save(tmp_path / "new.png")
    status, _, error = _run("predict", output / "best.pt", tmp_path / "new.png", root / "JPEGImages", "-o", tmp_path / "answers")
    assert (status, error) == (0, ""), error
    mask = Image.open(tmp_path / "answers" / "00000_new_mask.png")
    assert mask.size == (31, 17) and mask.mode == "P" and set(np.unique(np.asarray(mask))) <= set(range(21))
    assert len(list((tmp_path / "answers").glob("*_overlay.png"))) == 13
    rows = json.loads((tmp_path / "answers" / "predictions.json").read_text())["images"]
    assert all(sum(row["shares"].values()) == pytest.approx(1) for row in rows)


def test_evaluate_and_predict(digits: Path, straight: Path, tmp_path: Path) -> None:
    results = json.loads((straight / "results.json").read_text())["test"]
    status, _, error = _run("evaluate", straight / "best.pt", "--knn", 5, "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (status, error) == (0, "") and scores["images"] == 40 and 0.3 < scores["knn_5_accuracy"] <= 1
    assert (scores["accuracy"], scores["top5"]) == (results["accuracy"], results["top5"])
    status, _, error = _run(
        "train", "--test-only", "--resume", straight / "best.pt", "--data-path", digits, "--output-dir", tmp_path / "unused"
    )
    assert (status, error) == (0, "") and "Test" not in error and not (tmp_path / "unused").exists()
    from fastcv.train.sources import find

    data = find(digits, 32)
    for i in range(40):
        Image.fromarray(data.images[160 + i, 0].numpy()).save(tmp_path / f"{i:02}.png")
    status, _, error = _run("predict", straight / "best.pt", *sorted(tmp_path.glob("*.png")), "-o", tmp_path / "answers", "--top", 2)
    assert (status, error) == (0, ""), error
    with (tmp_path / "answers" / "predictions.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["file", "class1", "probability1", "class2", "probability2"] and len(rows) == 41
    right = sum(row[1] == str(int(data.labels[160 + i])) for i, row in enumerate(rows[1:]))
    assert right / 40 == scores["accuracy"] and Image.open(tmp_path / "answers" / "predictions.png").size[0] > 500
    try:
        odd = (tmp_path / "00.png").rename(tmp_path / os.fsdecode(b"a$b$c[/red]\xff.png"))
    except OSError:
        return  # this file system refuses names that are not UTF-8
    status, output, error = _run("predict", straight / "best.pt", odd, "-o", tmp_path / "odd")
    assert (status, error) == (0, "") and "a$b$c[/red]?.png: " in output
    assert os.fsencode(odd) in (tmp_path / "odd" / "predictions.csv").read_bytes()
    odd.write_bytes(b"")
    status, _, error = _run("predict", straight / "best.pt", odd, "-o", tmp_path / "none", "--skip-corrupt")
    assert status == 2 and "a$b$c[/red]?.png cannot be read as an image" in error, error


# ---- bad input ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-path", "/nowhere"], "/nowhere does not exist"),
        (["--model", "resnet21"], "--model resnet21: there is no model 'resnet21'; did you mean"),
        (["--model", "no.such:thing"], "--model no.such:thing: No module named 'no'"),
        (["--model", "train_models:seven"], "--model train_models:seven gives a int, not a torch.nn.Module"),
        (["--model", "unet_small"], "--model unet_small: unet_small is a model for segmentation, the data is for classification"),
        (["--model", "train_models:net", "--dropout", "0.5"], "--model train_models:net does not take dropout="),
        (["--epochs", "0"], "--epochs must lie between 1 and 1e+06, got 0"),
        (["--weights", "/nowhere.pt"], "there is no weights file '/nowhere.pt'"),
        (["--resume", "/nowhere.pt"], "/nowhere.pt does not exist"),
        (["--device", "warp"], "--device warp cannot be used"),
        (["--output-dir", ""], "--output-dir must not be empty"),
        (["--data-path", ""], "--data-path must not be empty"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--model", "vgg11"], "--model vgg11 does not take images of 1x8x8: "),
        (["--model", "mlp2", "--val-crop-size", "3"], "--model mlp2 does not take images of 1x3x3: "),
        (["--model", "train_models:two"], "--model train_models:two answers an image of 1x8x8 by (1, 2), expected logits of shape (1, 10)"),
        (["--model", "train_models:raises"], "--model train_models:raises raised KeyError: 'width'"),
        (["--model", "train_models:nn"], "--model train_models:nn is a module, not a function"),
        (
            ["--model", "train_models:net", "--weights", __file__],
            f"{__file__!r} is not a file of tensors that torch.load(weights_only=True) reads: ",
        ),
        (["--resume", __file__], f"{__file__} is no checkpoint that can be read: Unsupported operand"),
        (["--model", "mlp2", "--aux-loss"], "--model mlp2: "),
        (["--weights-backbone", "x.pt"], "--model resnet20: resnet20 has no backbone to load 'x.pt' into"),
        (["--mixup-alpha", "-1"], "--mixup-alpha must lie between 0 and 1000, got -1.0"),
    ],
)
def test_bad_input_is_one_sentence(digits: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, _, error = _run("train", "--data-path", digits, "--output-dir", tmp_path / "out", "--epochs", 1, *arguments)
    assert status == 2 and error.startswith(f"fastcv train: {message}") and error.count("\n") == 1, error
    assert not list(tmp_path.glob("out/*"))


def test_an_earlier_run_is_not_overwritten(digits: Path, straight: Path, tmp_path: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in straight.iterdir()}
    status, _, error = _run("train", "--data-path", digits, "--output-dir", straight, *EVERYTHING)
    assert status == 2 and "of an earlier run; go on with it by --resume auto" in error
    status, _, error = _run("train", "--data-path", digits, "--output-dir", straight, *EVERYTHING, "--resume", "auto", "--lr", 0.06)
    assert status == 2 and "--lr is 0.06" in error and "made with 0.05" in error
    status, _, error = _run("train", "--data-path", "digits", "--output-dir", straight, *EVERYTHING, "--resume", "auto")
    assert status == 2 and "--data-path is digits" in error
    (tmp_path / "notes").write_text("mine")
    status, _, error = _run("train", "--data-path", digits, "--output-dir", tmp_path / "notes")
    assert status == 2 and "is a file" in error
    assert before == {entry.name: entry.read_bytes() for entry in straight.iterdir()} and (tmp_path / "notes").read_text() == "mine"


def test_bad_input_of_evaluate_and_predict(straight: Path, tmp_path: Path) -> None:
    from test_data import _image_folder

    best = straight / "best.pt"
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").write_text("dear")
    for arguments, message in (
        (["evaluate", tmp_path / "none.pt"], "none.pt does not exist"),
        (["evaluate", tmp_path / "text.png"], "text.png is no checkpoint that can be read"),
        (["evaluate", best, "--part", "all"], "--part must be train, validation or test, got 'all'"),
        (["evaluate", best, "--knn", "141"], "--knn 141 is more than the 140 training images"),
        (["evaluate", best, "--data-path", _image_folder(tmp_path / "pets")], "its classes are cat, dog, trained on 0, 1, 2"),
        (["predict", best, tmp_path / "text.png", "-o", tmp_path / "out"], "text.png cannot be read as an image"),
        (["predict", best, tmp_path / "text.png", "--skip-corrupt", "-o", tmp_path / "out"], "none of 1 images can be read"),
        (["predict", best, tmp_path / "no.png", "-o", tmp_path / "out"], "no.png does not exist"),
        (["predict", best, tmp_path / "text.png", "-o", tmp_path / "full"], "is not empty; choose a new folder"),
        (["predict", best, tmp_path / "full", "-o", tmp_path / "out"], "holds no images"),
    ):
        status, _, error = _run(*arguments)
        assert status == 2 and message in error and error.count("\n") == 1, (arguments, error)
    assert not (tmp_path / "out").exists() and [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis"]


def test_scores_do_not_replace_other_files(straight: Path, tmp_path: Path) -> None:
    before = (straight / "best.pt").read_bytes()
    for output, message in (
        (straight / "best.pt", "best.pt must end in .json"),
        (tmp_path / "absent" / "x.json", "x.json cannot be written: its folder does not exist"),
    ):
        status, printed, error = _run("evaluate", straight / "best.pt", "-o", output)
        assert status == 2 and message in error and not printed, error
    assert (straight / "best.pt").read_bytes() == before


def test_divergence_is_one_sentence_and_leaves_no_checkpoint(digits: Path, tmp_path: Path) -> None:
    status, _, error = _run("train", "--data-path", digits, "--output-dir", tmp_path / "out", "--model", "train_models:not_a_number")
    assert (status, error) == (1, "fastcv train: the training loss became nan in epoch 1; a smaller --lr may help\n")
    assert not list(tmp_path.glob("out/*.pt"))


# ---- processes ---------------------------------------------------------------------------------------------------------------------


def _torchrun(
    output: Path, digits: Path, restarts: int, log: Path, program: Sequence[str] = ("-m", "fastcv"), more: Sequence[str] = ()
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    arguments += [*program, "train", "--data-path", str(digits), "--output-dir", str(output), "--resume", "auto", "--threads", "1"]
    arguments += [*EVERYTHING, "--sync-bn", "--recovery-interval", "1", *more]
    paths = os.pathsep.join([str(Path(fastcv.__file__).parents[1]), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(arguments, stdout=log.open("w"), stderr=subprocess.STDOUT, text=True, env=environment)


def _children(parent: int) -> list[int]:
    """The processes that ``parent`` started, by /proc/PID/stat: the parent stands second after the name in parentheses."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers by /proc")
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_and_a_killed_worker(digits: Path, tmp_path: Path) -> None:
    """torchrun starts both again after one is killed; they go on from the last update with the bits of a run that was left alone."""
    killed = tmp_path / "killed"
    process = _torchrun(killed, digits, 1, tmp_path / "killed.txt")
    victim = None
    try:
        while victim is None and process.poll() is None:
            try:
                state = checkpoint.load(killed / "last.pt")
            except checkpoint.CheckpointError:
                time.sleep(0.05)
                continue
            if state["epoch"] >= 1:
                victim = max(_children(process.pid))
                os.kill(victim, signal.SIGKILL)
        assert process.wait(300) == 0, (tmp_path / "killed.txt").read_text()[-3000:]
    finally:
        process.kill()
    text = (tmp_path / "killed.txt").read_text()
    assert victim is not None and "continuing" in text, text[-3000:]
    alone = _torchrun(tmp_path / "alone", digits, 0, tmp_path / "alone.txt")
    assert alone.wait(300) == 0, (tmp_path / "alone.txt").read_text()[-3000:]
    first, second = (checkpoint.load(folder / "last.pt") for folder in (killed, tmp_path / "alone"))
    assert first["world_size"] == 2 and first["epoch"] == 4
    _same(first, second)
    status, _, error = _run("train", "--data-path", digits, "--output-dir", killed, *EVERYTHING, "--sync-bn", "--resume", "auto")
    assert status == 2 and "was made by 2 processes, now there are 1" in error


WATCHED = """
import gc
import os
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from fastcv.cli import main

leave = dist.destroy_process_group

def watched():
    alive = sum(type(o) is DistributedDataParallel for o in gc.get_objects())
    os.write(1, f"wrappers alive: {alive}\\n".encode())  # in one piece: print writes several, and both processes write to one file
    leave()

dist.destroy_process_group = watched
main()
"""


@pytest.mark.parametrize(("model", "status"), [("net", 0), ("not_a_number", 1)])
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_no_wrapped_network_outlives_the_process_group(digits: Path, tmp_path: Path, model: str, status: int) -> None:
    """Its destructor would wait, with Python's lock, for a thread of gloo that may wait for that lock: now and then a run never ended."""
    program = tmp_path / "program.py"
    program.write_text(WATCHED)
    log = tmp_path / "log.txt"
    done = _torchrun(tmp_path / "run", digits, 0, log, [str(program)], ["--model", f"train_models:{model}", "--epochs", "1"])
    assert done.wait(300) == status and log.read_text().count("wrappers alive: 0") == 2, log.read_text()[-3000:]
