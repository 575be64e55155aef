"""``fastcv train --compare-backends``, and what does not change the bits of a run: the number of threads, where no linear layer trains."""

import json
from pathlib import Path

import pytest
import torch

from fastcv.train import checkpoint
from fastcv.train.evaluation import counted_of, ignored_of

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")
from test_train import _run, _same, _train, _words, digits  # noqa: F401

SHORT = _words("--model train_models:net --batch-size 28 --epochs 2 --lr 0.02")


def test_two_runs_in_turn_are_the_runs_alone(digits: Path, tmp_path: Path) -> None:  # noqa: F811
    both = tmp_path / "both"
    arguments = ("train", "--data-path", digits, *SHORT)
    status, out, error = _run(*arguments, "--output-dir", both, "--compare-backends")
    assert (status, error) == (0, "") and "images per second (median)" in out
    found = json.loads((both / "compare.json").read_text())
    for name, backend in (("fastcv", "nn"), ("torch", "off")):
        alone = _train(digits, tmp_path / name, *SHORT, "--fastcv", backend)
        state = checkpoint.load(both / name / "last.pt")
        _same(state, alone)
        assert [row["train_loss"][name] for row in found["epochs"]] == [row["train_loss"] for row in state["history"]]
        assert (both / name / "results.json").exists()
    assert found["first_step_loss"]["fastcv"] == pytest.approx(found["first_step_loss"]["torch"], rel=1e-6)  # one forward, float32
    assert [row["train_loss"]["difference"] for row in found["epochs"]] == [
        row["train_loss"]["fastcv"] - row["train_loss"]["torch"] for row in found["epochs"]
    ]
    before = {file: file.read_bytes() for file in both.rglob("*") if file.is_file()}
    status, _, error = _run(*arguments, "--output-dir", both, "--compare-backends")
    assert status == 2 and "of an earlier run" in error
    assert before == {file: file.read_bytes() for file in both.rglob("*") if file.is_file()}
    (both / "torch" / "report.html").unlink(missing_ok=True)
    status, out, error = _run(*arguments, "--output-dir", both, "--compare-backends", "--resume", "auto")
    assert (status, error) == (0, "") and "first_step_loss" not in json.loads((both / "compare.json").read_text())


@pytest.mark.parametrize("more", [["--test-only", "--resume", "auto"], ["--resume", "some.pt"]])
def test_what_a_comparison_cannot_do_is_one_sentence(digits: Path, tmp_path: Path, more: list[str]) -> None:  # noqa: F811
    status, _, error = _run("train", "--data-path", digits, "--output-dir", tmp_path / "out", "--compare-backends", *more)
    assert status == 2 and error.startswith("fastcv train: --compare-backends trains two runs") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_bits_of_a_network_without_linear_layers_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    """A small U-Net on pictures; torch's matrix product in the gradient of a linear layer's weights is what depends on them."""
    from test_train_data import _voc

    names = [f"n{i}" for i in range(12)]
    root = _voc(tmp_path / "voc", {"train": names[:9], "val": names[9:]})
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(21)))
    arguments = _words("--model unet_small --opt adamw --epochs 2 --batch-size 3 --val-resize-size 32 --model-ema --clip-grad-norm 1")
    before = torch.get_num_threads()
    try:
        states = [_train(root, tmp_path / str(n), *arguments, "--threads", n) for n in (1, 2, 3)]
    finally:
        torch.set_num_threads(before)
    _same(states[0], states[1])
    _same(states[0], states[2])


def test_class_255_of_a_classifier_counts() -> None:
    labels = torch.tensor([0, 255, 256])
    assert counted_of(labels).all() and ignored_of(labels) not in labels
    assert counted_of(torch.tensor([[[0, 255]]])).tolist() == [[[True, False]]]
