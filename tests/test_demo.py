"""The demo end to end in small, its command line, and that its output folder appears whole or not at all."""

import io
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastcv
from fastcv import demo
from fastcv.train.data import Images, load_digits
from fastcv.train.loop import Diverged, Recipe, Trainer, learning_rate
from fastcv.train.output import OutputError, check_output, replaced_folder

rich_console = pytest.importorskip("rich.console")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SMALL = demo.Settings(Recipe(epochs=2, batch_size=32, warmup_epochs=0.5), widths=(4, 8, 8), timing_images=8, rounds=3, threads=1)


def _console(**kwargs: object) -> "rich_console.Console":
    return rich_console.Console(file=io.StringIO(), width=100, **kwargs)


def _subset(count: int) -> Images:
    data = load_digits()
    return replace(data, images=data.images[:count], labels=data.labels[:count])


def test_end_to_end(tmp_path: Path) -> None:
    console = _console()
    output = tmp_path / "new" / "demo-output"
    assert demo.run(_subset(200), output, SMALL, console)
    assert sorted(os.listdir(output)) == sorted(demo.FILES) and os.listdir(output.parent) == ["demo-output"]
    for picture in demo.PICTURES:
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    report = json.loads((output / "report.json").read_text())
    assert set(report) == {
        *("versions", "machine", "data", "settings", "first_step", "fastcv", "torch"),
        *("folding", "inference", "knn", "checks", "seconds"),
    }
    assert sum(report["data"]["counts"].values()) == 200
    for library in ("fastcv", "torch"):
        assert len(report[library]["epochs"]) == 2 and report[library]["seconds_per_epoch"] > 0
    assert report["fastcv"]["epochs"][0]["train_loss"] == pytest.approx(report["torch"]["epochs"][0]["train_loss"], rel=1e-3)
    step = report["first_step"]
    assert step["largest_parameter_difference"] <= 1e-3 * step["largest_update"]
    assert report["folding"]["predictions_changed"] == 0
    for metric in ("L1", "L2"):
        found = report["knn"][metric]
        best = max(row["mean"] for row in found["cross_validation"])
        assert found["k"] == next(row["k"] for row in found["cross_validation"] if row["mean"] == best)
        assert found["test_accuracy"] > 0.8
    printed = console.file.getvalue()
    assert "epoch  1/2  loss " in printed and "kNN L1, k = " in printed
    assert "kNN L1, k = " in (output / "report.txt").read_text()


def test_a_failed_check_is_reported(tmp_path: Path) -> None:
    console = _console()
    tiny = replace(SMALL, recipe=replace(SMALL.recipe, epochs=1, learning_rate=1e-6))
    assert not demo.run(_subset(100), tmp_path / "out", tiny, console, least_accuracy=0.98)
    assert "FAILED: fastcv: test accuracy of at least 98 %" in console.file.getvalue()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["checks"]["torch: test accuracy of at least 98 %"] is False


def test_a_failing_run_leaves_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "report.json").write_text("old")

    def fail(self: demo.Demo, folder: Path) -> None:
        (folder / "curves.png").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Demo, "draw", fail)
    tiny = replace(SMALL, recipe=replace(SMALL.recipe, epochs=1))
    with pytest.raises(KeyboardInterrupt):
        demo.run(_subset(60), output, tiny, _console())
    assert os.listdir(tmp_path) == ["out"] and (output / "report.json").read_text() == "old" and os.listdir(output) == ["report.json"]


def test_replaced_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for text in ("one", "two"):
        with replaced_folder(output, ["a"]) as folder:
            (folder / "a").write_text(text)
        assert (output / "a").read_text() == text and os.listdir(tmp_path) == ["out"]
    with pytest.raises(RuntimeError), replaced_folder(output, ["a"]) as folder:
        raise RuntimeError
    assert (output / "a").read_text() == "two" and os.listdir(tmp_path) == ["out"]
    (output / "thesis.tex").write_text("dear")
    with pytest.raises(OutputError, match=r"out holds thesis\.tex, which this program did not write"), replaced_folder(output, ["a"]):
        pass
    assert sorted(os.listdir(output)) == ["a", "thesis.tex"]
    with pytest.raises(OutputError, match="is a file"):
        check_output(output / "a", [])
    with pytest.raises(OutputError, match="cannot be created"):
        check_output(output / "a" / "b" / "c", [])


def test_the_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(OutputError, match="holds notes"), replaced_folder(output, ["a"]):
        output.mkdir()
        (output / "notes").write_text("mine")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(output) == ["notes"]


def _main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = demo.main([str(a) for a in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return status, error


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    assert _main(capsys, "--data", tmp_path / "none", "--output", output) == (2, f"fastcv.demo: {tmp_path}/none does not exist\n")
    (tmp_path / "test_batch.bin").write_bytes(b"123")
    (tmp_path / "data_batch_1.bin").write_bytes(b"123")
    status, error = _main(capsys, "--data", tmp_path, "--output", output)
    assert status == 2 and "data_batch_1.bin is truncated" in error
    status, error = _main(capsys, "--output", tmp_path / "test_batch.bin")
    assert status == 2 and "is a file" in error
    status, error = _main(capsys, "--output", tmp_path)
    assert status == 2 and "data_batch_1.bin, which this program did not write" in error
    assert not output.exists()
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name in ("rich", "sklearn") else find(name))
    assert _main(capsys) == (2, "fastcv.demo: not installed: rich, scikit-learn; run: pip install rich scikit-learn\n")
    assert demo.needed_packages(with_data=True) == ["rich"]


def test_interruption_and_divergence_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: BaseException):
        def run(*_args: object) -> bool:
            raise error

        return run

    monkeypatch.setattr(demo, "run", raising(KeyboardInterrupt()))
    assert _main(capsys, "--output", tmp_path / "out") == (130, "fastcv.demo: interrupted, nothing was written\n")
    monkeypatch.setattr(demo, "run", raising(Diverged("the loss is gone")))
    assert _main(capsys, "--output", tmp_path / "out") == (1, "fastcv.demo: the loss is gone\n")


def test_data_folder_and_interrupt_of_a_real_process(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (600, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(600) % 10
    for name, part in (("data_batch_1", records[:500]), ("test_batch", records[500:])):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": part[:, 1:], b"labels": part[:, 0].tolist()}))
    command = [sys.executable, "-m", "fastcv.demo", "--data", str(tmp_path), "--output", str(tmp_path / "out"), "--epochs", "100000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(fastcv.__file__).parents[1],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests started in the background ignore it
    )
    try:
        assert process.stdout.readline().startswith("Training a ResNet of")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, "fastcv.demo: interrupted, nothing was written\n")
    assert sorted(os.listdir(tmp_path)) == ["data_batch_1", "test_batch"]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * i for i in range(1, 11)])
    assert rates[10] == 0.5 and rates[55] == pytest.approx(0.25) and rates[100] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[32] == pytest.approx(0.25 * (1 + math.cos(math.pi * 22 / 90)))


def _trainer(learning_rate: float = 0.1, batch_size: int = 8) -> Trainer:
    torch.manual_seed(3)
    images, labels = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8), torch.arange(20) % 2
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    recipe = Recipe(epochs=3, batch_size=batch_size, learning_rate=learning_rate, warmup_epochs=0)
    return Trainer(network, nn.CrossEntropyLoss(), images, labels, lambda x: x.float() / 255, recipe)


def test_trainers_of_one_seed_see_the_same_batches() -> None:
    ours, theirs = _trainer(), _trainer()
    for a, b in zip(ours.batches(1), theirs.batches(1), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    first, second = (next(ours.batches(epoch)) for epoch in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert ours.steps_per_epoch == 2 and _trainer(batch_size=64).steps_per_epoch == 1


def test_training_stops_when_the_loss_is_gone() -> None:
    trainer = _trainer(learning_rate=1e30)
    with pytest.raises(Diverged, match=r"the training loss became (nan|inf) in epoch \d"):
        for epoch in range(3):
            trainer.run_epoch(epoch, trainer.images, trainer.labels)


def test_confusion_matrix_counts() -> None:
    from fastcv.train.evaluation import confusion_matrix

    matrix = confusion_matrix(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 1, 2, 1]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("classes", [2, 30])
def test_pictures_of_colour_images_and_many_classes(tmp_path: Path, classes: int) -> None:
    from fastcv.train import plots
    from fastcv.train.evaluation import confusion_matrix

    n = 40
    labels = torch.arange(n) % classes
    logits = torch.randn(n, classes)
    names = [f"{i} $ a rather $ long class name" for i in range(classes)]
    images = torch.randint(0, 256, (n, 3, 9, 9), dtype=torch.uint8)
    plots.confusion(tmp_path / "c.png", confusion_matrix(logits.argmax(1), labels, classes), names, "a $ and a $")
    plots.misclassified(tmp_path / "m.png", images[:3], labels[:3], logits[:3], names, 255, "title")
    plots.filters(tmp_path / "f.png", torch.randn(5, 3, 3, 3), "title")
    assert len(list(tmp_path.glob("*.png"))) == 3
