"""The commands behind ``fastcv train`` and ``fastcv evaluate``: data and output checked, the engine run, its best network scored."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..vision import knn as knn_room
from . import checkpoint, compare
from .data import DataError, Images, Standardiser, split
from .engine import BEST, LAST, Engine
from .evaluation import Scores, batches_of, evaluate, inputs_of
from .files import ImageFiles
from .log import FILES as LOG_FILES
from .network import build, features_of
from .options import OptionError, Options, check, normalized
from .output import OutputError
from .processes import World, joined
from .report import FILES as REPORT_FILES
from .report import Examples, write_report
from .sources import open_data

__all__ = ["evaluate_checkpoint", "test_only", "train_and_report"]

RESULTS = "results.json"


def reading_size(options: Options) -> int:
    """The side to which photographs on disk are resized."""
    if options.val_resize_size:
        return options.val_resize_size
    return round(options.train_crop_size * 8 / 7) if options.train_crop_size else 256


def _data(options: Options, console: Any) -> Images | ImageFiles:
    data = open_data(options.data_path, reading_size(options), options.skip_corrupt)
    for text in data.skipped:
        console.print(f"left out: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return data


def _check_output(options: Options) -> None:
    """Makes the output folder; one that holds a run is only touched if that run goes on. Raises OutputError."""
    folder = Path(options.output_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--output-dir {folder} is a file, expected a folder")
    goes_on = options.resume == "auto" and (folder / LAST).exists()
    if not goes_on:
        # The first BEST is written before the first LAST: a run killed in between begins anew.
        ours = (*LOG_FILES, RESULTS, *REPORT_FILES, LAST, *([] if options.resume == "auto" else [BEST]))
        held = [name for name in ours if (folder / name).exists()]
        own = options.resume and Path(options.resume).resolve().parent == folder.resolve()
        if held and not own:
            raise OutputError(f"{folder} holds {held[0]} of an earlier run; go on with it by --resume auto, or choose another --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise OutputError(f"--output-dir {folder} cannot be written: {error.strerror}") from error


def device_of(options: Options) -> torch.device:
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device).item()  # which a device without memory cannot give
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def train_and_report(options: Options, console: Any) -> None:
    """Trains, then scores the best network on the test part and writes the report; --compare-backends does it twice, in turn."""
    device_of(options)
    runs = compare.options_of(options) if options.compare_backends else {"": options}
    with joined(options.device) as world:
        if world.first:
            for run in runs.values():
                _check_output(run)
        else:
            console.quiet = True
        world.wait()
        if not _can_draw():
            console.print(
                "matplotlib is missing: the run will have no pictures and no report; pip install 'fastcv[plots]'", highlight=False
            )
        _train(options, runs, world, console)
        world.wait()


def _train(options: Options, runs: dict[str, Options], world: World, console: Any) -> None:
    start = time.perf_counter()
    data = _data(options, console)
    engines = {name: Engine(run, data, world, console) for name, run in runs.items()}
    for engine in engines.values() if world.first else ():
        content = json.dumps(engine.options.as_dict() | {"data": engine.facts()}, indent=2) + "\n"
        checkpoint.write(engine.output / "options.json", content.encode())
    if options.compare_backends:
        compare.in_turn(engines)
    else:
        engines[""].run()
    if world.first:
        tests = {name: _finish(engine, time.perf_counter() - start) for name, engine in engines.items()}
        if options.compare_backends:
            _finish_comparison(options, engines, tests)


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _finish(engine: Engine, seconds: float) -> float:
    """The test part, read once, by the network of the best epoch; returns its metric."""
    options, data, output = engine.options, engine.data, engine.output
    best, _, network, _ = restored(output / BEST, {})
    network.to(engine.device, memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
    examples = Examples(data)
    scores = evaluate(network, data, engine.parts.test, engine.prepare, options, engine.device, World(), examples.add)
    results = {
        "best_epoch": best["best"]["epoch"],
        "epochs": len(engine.history),
        "test": scores.as_dict(data.task, data.classes),
        "seconds": sum(row["seconds"] for row in engine.history),
        "data": engine.facts(),
        "versions": best["versions"],
    }
    checkpoint.write(output / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    if _can_draw():
        write_report(output, options, data, engine.history, scores, examples, results)
    engine.console.print(table(scores, data, f"Test part, {len(engine.parts.test):,} images, epoch {best['best']['epoch']}"))
    engine.console.print(
        f"{output}/{'report.html' if _can_draw() else RESULTS}; {seconds:.0f} s in all", markup=False, highlight=False, soft_wrap=True
    )
    return scores.metric(data.task)


def _finish_comparison(options: Options, engines: dict[str, Engine], tests: dict[str, float]) -> None:
    engine = next(iter(engines.values()))
    folder, histories = Path(options.output_dir), {name: e.history for name, e in engines.items()}
    found = compare.compared(histories) | {"test": tests}
    title = f"{options.model} on {engine.data.name}"
    firsts = {name: e.first_loss for name, e in engines.items()}
    if None not in firsts.values():  # neither goes on with an earlier run
        found["first_step_loss"] = firsts
    compare.write(folder, found, histories, title, _can_draw())
    engine.console.print(compare.table(found, f"{title}, {engine.options.fastcv} beside torch"))
    engine.console.print(f"{folder}/{compare.FILES[0]}", markup=False, highlight=False, soft_wrap=True)


def table(scores: Scores, data: Images | ImageFiles, title: str, more: dict[str, float] | None = None) -> Any:
    """The scores for the eye."""
    from rich.table import Table
    from rich.text import Text

    found = Table("", "%", title=Text(title, style="bold"), title_justify="left", min_width=len(title))
    found.columns[1].justify = "right"
    rows = scores.as_dict(data.task, data.classes) | (more or {})
    iou = rows.pop("iou", {})
    for name, value in rows.items():
        found.add_row(Text(name.replace("_", " ")), f"{value:.4f}" if name == "loss" else f"{100 * value:.2f}")
    if iou:
        found.add_section()
    for name, value in iou.items():
        found.add_row(Text(f"IoU of {name}"), "absent" if value is None else f"{100 * value:.2f}")
    return found


def restored(file: str | Path, changes: dict[str, Any]) -> tuple[dict[str, Any], Options, nn.Module, Standardiser]:
    """A checkpoint, its options with ``changes``, its network in evaluation mode, and what standardises its images.

    Raises CheckpointError, OptionError and NotBuiltError.
    """
    state = checkpoint.load(file)
    options = normalized(state["args"] | {"weights": "", "weights_backbone": "", "device": "cpu"} | changes)
    check(options)
    facts = state["data"]
    shape = (facts["shape"][0], *[options.train_crop_size or side for side in facts["shape"][1:]])
    network = build(options, facts["task"], len(facts["classes"]), shape)
    try:
        network.load_state_dict(state.get("model_ema", state["model"]))
    except RuntimeError as error:
        raise checkpoint.CheckpointError(f"{file} does not fit --model {options.model}: {str(error).splitlines()[-1].strip()}") from None
    return state, options, network.eval(), Standardiser.of(facts["mean"], facts["deviation"])


def test_only(options: Options, console: Any) -> None:
    """--test-only: the checkpoint --resume on the test part of --data-path."""
    file = Path(options.output_dir) / BEST if options.resume == "auto" else Path(options.resume)
    evaluate_checkpoint(file, {"data_path": options.data_path, "skip_corrupt": options.skip_corrupt}, "test", 0, "", console)


def evaluate_checkpoint(file: Path, changes: dict[str, Any], part: str, knn: int, output: str, console: Any) -> Scores:
    """Scores the checkpoint on a part of its data, or of other data with the same classes. Raises DataError and others."""
    if part not in ("train", "validation", "test"):
        raise OptionError(f"--part must be train, validation or test, got {part!r}")
    if knn < 0:
        raise OptionError(f"--knn must not be negative, got {knn}")
    _check_scores_file(output)
    state, options, network, prepare = restored(file, changes)
    data = _data(options, console)
    facts = state["data"]
    for name, ours in (("task", data.task), ("classes", list(data.classes)), ("shape", list(data.shape))):
        if facts[name] != ours:
            raise DataError(f"{options.data_path} does not fit {file}: its {name} are {_brief(ours)}, trained on {_brief(facts[name])}")
    parts = split(data, options.seed)
    indices = getattr(parts, part)
    device = torch.device("cpu")
    scores = evaluate(network, data, indices, prepare, options, device, World())
    more = {}
    if knn:
        more[f"knn_{knn}_accuracy"] = _knn(network, data, parts.train, indices, prepare, options, knn)
    console.print(table(scores, data, f"{data.name}, {part} part, {len(indices):,} images", more))
    if output:
        found = {"checkpoint": str(file), "part": part, "images": len(indices)} | scores.as_dict(data.task, data.classes) | more
        checkpoint.write(Path(output), (json.dumps(found, indent=2) + "\n").encode())
    return scores


def _check_scores_file(output: str) -> None:
    """Before anything is computed; a name that is no JSON file's may be the checkpoint's or a picture's. Raises OutputError."""
    file = Path(output)
    if output and file.suffix != ".json":
        raise OutputError(f"--output {output} must end in .json")
    if output and (file.is_dir() or not file.parent.is_dir()):
        raise OutputError(f"--output {output} cannot be written: {'it is a folder' if file.is_dir() else 'its folder does not exist'}")


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _knn(
    network: nn.Module, data: Images | ImageFiles, train: Tensor, queries: Tensor, prepare: Standardiser, options: Options, k: int
) -> float:
    """The accuracy of the k nearest training images' majority, by the features before the last linear layer."""
    if data.task == "segmentation":
        raise OptionError("--knn is for classification, the data has masks")
    if k > len(train):
        raise OptionError(f"--knn {k} is more than the {len(train)} training images")
    sides = []
    for part in (train, queries):
        features, labels = [], []
        for images, answers in batches_of(data, part, options):
            features.append(features_of(network, inputs_of(images, prepare, options, torch.device("cpu"))))
            labels.append(answers)
        sides.append((torch.cat(features), torch.cat(labels)))
    (points, labels), (asked, truth) = sides
    return float((knn_room.classify(points, labels, asked, k, 2, len(data.classes)) == truth).double().mean())
