"""``fastcv train --parallel fsdp`` in two processes of gloo, and ``--compare-backends``.

As a program (under torchrun) this file is ``fastcv`` whose second process is asked to stop in its first attempt, after a number of updates.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import fastcv
from fastcv.train import checkpoint
from fastcv.train.engine import Engine

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")
from test_train import TESTS, _run, _same, _train, _words, digits  # noqa: F401

# resnet8: 10 layers with filters or a matrix, each a unit, and the norms. 140 images to train; nothing random but their order.
RUN = _words(
    "--model resnet8 --epochs 2 --lr 0.05 --opt adamw --lr-warmup-epochs 1 --grad-accum-steps 2 --clip-grad-norm 1 --model-ema"
    " --model-ema-decay 0.9 --shift 0 --hflip-prob 0 --threads 1"
)
EACH = 14  # images per step of each of two processes: 5 steps and 3 updates an epoch


def _stopping() -> None:
    """``fastcv`` in which the last process receives SIGTERM after FASTCV_TEST_STOP updates, unless it was started again."""
    stop, done, update = int(os.environ["FASTCV_TEST_STOP"]), 0, Engine._update

    def counted(self: Engine) -> None:
        nonlocal done
        update(self)
        done += 1
        if done == stop and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)

    Engine._update = counted
    from fastcv.cli import main

    sys.exit(main())


def _two(output: Path, data: Path, *arguments: str, stop: int = 0) -> str:
    """What two processes print that must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "test_train_sharded", "train", "--data-path", str(data), "--output-dir", str(output), "--resume", "auto"]
    command += [*RUN, "--batch-size", str(EACH), "--sync-bn", *arguments]
    paths = os.pathsep.join([str(Path(fastcv.__file__).parents[1]), str(TESTS)])
    environment = os.environ | {
        "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "FASTCV_TEST_STOP": str(stop), "COLUMNS": "200",
    }  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-9000:]
    return result.stdout


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_fsdp_trains_as_one_process_and_goes_on_with_the_same_bits(digits: Path, tmp_path: Path) -> None:  # noqa: F811
    """Stopped after the second update, in the midst of the first epoch, and started again: the bits of a run left alone."""
    stopped, alone = tmp_path / "stopped", tmp_path / "alone"
    assert "continuing" in _two(stopped, digits, "--parallel", "fsdp", stop=2)
    _two(alone, digits, "--parallel", "fsdp")
    sharded = checkpoint.load(alone / "last.pt")
    _same(checkpoint.load(stopped / "last.pt"), sharded)
    assert sharded["world_size"] == 2 and not any(hasattr(value, "full_tensor") for value in sharded["model"].values())
    whole = _train(digits, tmp_path / "whole", *RUN, "--batch-size", 2 * EACH)
    for theirs, ours in zip(whole["history"], sharded["history"], strict=True):
        for name in ("train_loss", "val_loss"):
            # Six updates; the sums of a batch are made in two orders, in float32.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
        assert ours["val_accuracy"] == theirs["val_accuracy"]
    status, _, error = _run("evaluate", alone / "best.pt", "-o", tmp_path / "scores.json")
    assert (status, error) == (0, "")
    scores, results = (json.loads(file.read_text()) for file in (tmp_path / "scores.json", alone / "results.json"))
    assert scores["accuracy"] == results["test"]["accuracy"]


if __name__ == "__main__":
    _stopping()
