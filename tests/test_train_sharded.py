"""``fastcv train --parallel fsdp`` in two processes of gloo.

Under torchrun this file is a program: a run of ``fastcv train``, one that is asked to stop in the midst of an epoch, and its continuation.
"""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastcv
from fastcv.train import checkpoint
from fastcv.train.engine import Engine

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch has no gloo", allow_module_level=True)
pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")
from test_train import TESTS, _run, _same, _train, _words, digits  # noqa: F401

from fastcv.train import sharding

# resnet8: 10 layers with filters or a matrix, each a unit, and the norms. 140 images to train; nothing random but their order.
RUN = _words(
    "--model resnet8 --epochs 2 --lr 0.05 --opt adamw --lr-warmup-epochs 1 --grad-accum-steps 2 --clip-grad-norm 1 --model-ema"
    " --model-ema-decay 0.9 --shift 0 --hflip-prob 0 --threads 1"
)
EACH = 14  # images per step of each of two processes: 5 steps and 3 updates an epoch
STOP = 2  # updates


class Attentive(nn.Module):
    """Attention, whose output layer is read without being called, before a norm, a linear layer and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.attention(x, x, x, need_weights=False)[0]) * self.scale)


def _attention_is_sharded() -> None:
    """Three steps of a sharded network with attention are those of the whole one; so is its optimiser's state, there and back."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    whole, x = Attentive(), torch.randn(4, 5, 8)
    sharded = sharding.shard(copy.deepcopy(whole))
    assert all(hasattr(p, "full_tensor") for p in sharded.parameters())
    optimizers = [torch.optim.AdamW(network.parameters(), 0.01) for network in (whole, sharded)]
    for _ in range(3):
        for network, optimizer in zip((whole, sharded), optimizers, strict=True):
            network(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in sharding.whole(sharded.state_dict()).items():
        torch.testing.assert_close(value, whole.state_dict()[name])
    state = sharding.whole(optimizers[1].state_dict())
    assert not any(hasattr(value, "full_tensor") for values in state["state"].values() for value in values.values())
    optimizers[1].load_state_dict(sharding.spread(state, optimizers[1]))
    _same(sharding.whole(optimizers[1].state_dict()), state)
    dist.destroy_process_group()


def _program(folder: Path, arguments: list[str]) -> None:
    from fastcv.cli import main

    def run(attempt: int, output: str) -> int:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)  # as if torchrun had started it again: keys of its own
        sys.argv = ["fastcv", "train", *arguments, "--output-dir", str(folder / output)]
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def stopped(self: Engine) -> None:
        nonlocal done
        update(self)
        done += 1
        if done == STOP and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    _attention_is_sharded()
    assert run(1, "alone") == 0
    done, update = 0, Engine._update
    Engine._update = stopped
    assert run(2, "stopped") == 128 + signal.SIGTERM
    Engine._update = update
    if os.environ["RANK"] == "0":  # who has written it
        assert checkpoint.load(folder / "stopped" / "last.pt")["epoch"] == 0
    assert run(3, "stopped") == 0


def test_fsdp_trains_as_one_process_and_goes_on_with_the_same_bits(digits: Path, tmp_path: Path) -> None:  # noqa: F811
    """Stopped after the second update, in the midst of the first epoch, and continued: the bits of a run left alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "test_train_sharded"]
    command += [str(tmp_path), "--data-path", str(digits), "--resume", "auto", *RUN, "--batch-size", str(EACH), "--parallel", "fsdp"]
    paths = os.pathsep.join([str(Path(fastcv.__file__).parents[1]), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    result = subprocess.run([*command, "--sync-bn"], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-20000:]
    sharded = checkpoint.load(tmp_path / "alone" / "last.pt")
    _same(checkpoint.load(tmp_path / "stopped" / "last.pt"), sharded)
    assert sharded["world_size"] == 2 and not any(hasattr(value, "full_tensor") for value in sharded["model"].values())
    whole = _train(digits, tmp_path / "whole", *RUN, "--batch-size", 2 * EACH)
    for theirs, ours in zip(whole["history"], sharded["history"], strict=True):
        for name in ("train_loss", "val_loss"):
            # Six updates; the sums of a batch are made in two orders, in float32.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
        assert ours["val_accuracy"] == theirs["val_accuracy"]
    status, _, error = _run("evaluate", tmp_path / "alone" / "best.pt", "-o", tmp_path / "scores.json")
    assert (status, error) == (0, "")
    scores, results = (json.loads(file.read_text()) for file in (tmp_path / "scores.json", tmp_path / "alone" / "results.json"))
    assert scores["accuracy"] == results["test"]["accuracy"]


if __name__ == "__main__":
    _program(Path(sys.argv[1]), sys.argv[2:])
