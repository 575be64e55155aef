"""A small architecture search: Optuna over a space of ResNets, each candidate trained by the same loop, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch

import fastcv.nn

from ..models.resnet_cifar import ResNetCifar
from ..train.data import Images, Split, Standardiser, split
from ..train.loop import Diverged, Recipe, Trainer

__all__ = ["draw_search", "search_architecture"]

FILES = ("search.journal", "search.json", "search.png")


def _suggested(trial: optuna.Trial) -> tuple[tuple[int, int, int], tuple[int, int, int], dict[str, Any]]:
    """Blocks per stage, channels per stage, and the recipe's numbers of one candidate."""
    blocks = tuple(trial.suggest_int(f"blocks{stage}", 1, 3) for stage in (1, 2, 3))
    width, growth = trial.suggest_categorical("width", [4, 8, 16, 24]), trial.suggest_categorical("growth", [1.0, 1.5, 2.0])
    widths = tuple(max(4, round(width * growth**stage)) for stage in range(3))
    return blocks, widths, {"learning_rate": trial.suggest_float("learning_rate", 0.01, 0.5, log=True)}


def _describe(data: Images, epochs: int, seed: int) -> dict[str, Any]:
    """What must not change between two runs of one search."""
    shape = [len(data.labels), *data.images.shape[1:]]
    return {"data": data.name, "shape": shape, "classes": len(data.classes), "epochs": epochs, "seed": seed}


def search_architecture(
    data: Images,
    folder: str | Path,
    trials: int = 20,
    epochs: int = 5,
    seed: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
    on_trial: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains up to ``trials`` ResNets on ``data`` and returns the best: its parameters and its validation accuracy.

    The space: one to three blocks in each of three stages, 4 to 24 channels growing by 1 to 2 per stage, and the learning rate. Every
    candidate is trained by the same loop, split, seed and epochs; those whose validation accuracy falls behind the median of the
    others are stopped early. The test part is not read. folder: gets ``search.journal`` (Optuna's), from which a second
    call goes on where an interrupted one stopped, ``search.json`` and ``search.png``. on_epoch is called after each epoch,
    on_trial with each finished candidate.
    Raises ValueError for numbers below one, for a folder whose search was of other data, epochs or seed, and where every candidate
    diverges.
    """
    for name, value in (("trials", trials), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / FILES[0])))
        study = optuna.create_study(
            storage=storage,
            study_name="resnet",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / FILES[0]} is not the journal of a search: {error}") from None
    described = _describe(data, epochs, seed)
    before = study.user_attrs.get("search")
    if before is not None and before != described:
        other = ", ".join(f"{name} {before.get(name)} (not {value})" for name, value in described.items() if before.get(name) != value)
        raise ValueError(f"{folder} holds a search with {other}; choose another folder")
    study.set_user_attr("search", described)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # an interrupted candidate does not count and is drawn anew
    parts = split(data, seed)
    while True:
        done = _finished(study)
        if len(done) >= trials:
            break
        # The sampler's state is not stored: seeded by the number of the candidate, a resumed search draws what a straight one does.
        study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + len(done)) % 2**32, n_startup_trials=min(10, trials))
        study.optimize(lambda trial: _trained(trial, data, parts, epochs, seed, on_epoch), n_trials=1)
        on_trial(_row(study.trials[-1]))
        _write(study, folder)
    _write(study, folder)
    if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        raise ValueError(f"none of {trials} candidates was trained to the end: the loss of each became infinite")
    return _row(study.best_trial)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def _trained(trial: optuna.Trial, data: Images, parts: Split, epochs: int, seed: int, on_epoch: Callable[[], None]) -> float:
    """The validation accuracy of one candidate after its last epoch."""
    blocks, widths, numbers = _suggested(trial)
    torch.manual_seed(seed)
    network = ResNetCifar(blocks, widths, data.images.shape[1], len(data.classes), layers=fastcv.nn)
    trial.set_user_attr("parameters", sum(p.numel() for p in network.parameters()))
    recipe = Recipe(epochs, batch_size=64, warmup_epochs=min(1, epochs / 4), shift=1, mirror=data.mirrored, seed=seed, **numbers)
    prepare = Standardiser(data.images[parts.train])
    trainer = Trainer(network, fastcv.nn.CrossEntropyLoss(), data.images[parts.train], data.labels[parts.train], prepare, recipe)
    accuracy = 0.0
    for epoch in range(epochs):
        try:
            accuracy = trainer.run_epoch(epoch, data.images[parts.validation], data.labels[parts.validation]).validation_accuracy
        except Diverged:
            raise optuna.TrialPruned from None
        on_epoch()
        trial.report(accuracy, epoch)
        if epoch + 1 < epochs and trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    values = trial.intermediate_values
    last = values[max(values)] if values else 0.0
    return {
        "number": trial.number,
        "stopped": trial.state == optuna.trial.TrialState.PRUNED,
        "validation_accuracy": trial.value if trial.state == optuna.trial.TrialState.COMPLETE else last,
        "parameters": trial.user_attrs.get("parameters", 0),
        "epochs": len(values),
        **trial.params,
    }


def _write(study: optuna.Study, folder: Path) -> None:
    rows = [_row(trial) for trial in _finished(study)]
    beside = folder / f".{FILES[1]}.part"
    beside.write_text(json.dumps(rows, indent=2) + "\n")
    beside.replace(folder / FILES[1])
    draw_search(rows, folder / FILES[2])


def draw_search(rows: list[dict[str, Any]], file: Path) -> None:
    """Accuracy over the order of the candidates with the best so far, and over the number of parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=110)
    order, size = figure.subplots(1, 2, sharey=True)
    whole = [r for r in rows if not r["stopped"]]
    best, marks = 0.0, []
    for row in rows:
        best = max(best, 0.0 if row["stopped"] else row["validation_accuracy"])
        marks.append(100 * best)
    for stopped, style in (
        (False, {"color": "#1f5fa8", "label": "trained to the end"}),
        (True, {"color": "#999999", "marker": "x", "label": "stopped"}),
    ):
        mine = [(i, r) for i, r in enumerate(rows, start=1) if r["stopped"] is stopped]
        if mine:
            values = [100 * r["validation_accuracy"] for _, r in mine]
            order.scatter([i for i, _ in mine], values, **style)
            size.scatter([r["parameters"] for _, r in mine], values, **style)
    order.step(range(1, len(rows) + 1), marks, where="post", color="#e07b1f", label="best so far")
    front, reached = [], -1.0
    for row in sorted(whole, key=lambda r: (r["parameters"], -r["validation_accuracy"])):
        if row["validation_accuracy"] > reached:
            reached = row["validation_accuracy"]
            front.append((row["parameters"], 100 * reached))
    if front:
        size.plot(*zip(*front, strict=True), color="#e07b1f", label="best of its size and below")
    order.set(xlabel="candidate", ylabel="validation accuracy (%)")
    size.set(xlabel="parameters", xscale="log")
    for axes in (order, size):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    beside = file.with_name(f".{file.name}.part")
    figure.savefig(beside, format="png")
    beside.replace(file)
