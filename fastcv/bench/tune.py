"""Which variant is fastest on each layer, measured: races, the rule by which one is stored, the file, and what the cost model loses.

The rule. The variant that fastcv takes of itself is kept, unless another one is faster in every condition that was measured (the
states of the caches, the numbers of threads): the whole 95 % interval of the ratio of the medians must lie below 1 - gate. Of
several such variants the one with the least geometric mean of the ratios is stored. None is stored that is less exact than the
accuracy rule allows, that failed, or whose machine was too noisy for a verdict.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import _ext
from .._tuned import KIND, SCHEMA, layer_numbers, read, tuned
from .._variants import use, variants
from . import plan
from .contenders import Contender
from .guard import LIMITS, Limits
from .layers import Layer, race_of, recorded
from .page import _write
from .race import measure
from .roofs import DTYPES
from .rows import FAILED, IMPOSSIBLE, OK, UNRELIABLE, WRONG, Row
from .statistics import geometric_mean, ratio_interval
from .timers import CpuTimer

GATE = 0.03  # a gain up to this share is none
HOPELESS = 3.0  # a variant whose two first calls took so many times longer than the chosen one's is not raced
SLOW = 0.05  # of the report: the default may be this much slower than the best ...
SHARE = 0.05  # ... on this share of the rows
ANY_NOISE = Limits(*[math.inf] * 6)
INEXACT = "less exact than the accuracy rule allows"  # csrc/common/variant.h
SAME = ("processor", "isa", "torch", "fastcv", "commit", "changed", "built_from")  # a run goes on only where these are the same


@dataclass(frozen=True)
class Decision:
    """variant: the one to store. ratio: its time over the chosen one's, geometric mean over the conditions. verdict: "kept",
    "faster", or "no verdict" (then the chosen one is stored). best: the variant with the least geometric mean of the medians among
    the exact ones, whether or not the interval shows it. loss: how much slower than it the chosen one is. notes: one sentence
    for each variant that may not be stored.
    """

    variant: str
    verdict: str
    ratio: float
    best: str
    loss: float
    notes: tuple[str, ...] = ()


def inexact(row: Row) -> str:
    """How this row breaks the accuracy rule; "" if it does not."""
    if row.status == WRONG:
        return row.reason
    if row.error is None or row.peer_error is None or not math.isfinite(row.peer_error):
        return ""
    allowed = 2 * row.peer_error + torch.finfo(DTYPES[row.dtype]).eps
    return "" if row.error <= allowed else f"it is {row.error:.2g} off float64, allowed {allowed:.2g}"


def decide(conditions: Mapping[str, Sequence[Row]], chosen: str, gate: float = GATE) -> Decision:
    """The rule above. conditions: the rows of one race each, contenders named for their variants, the chosen one among them."""
    by_name: dict[str, list[Row]] = {}
    for rows in conditions.values():
        for row in rows:
            by_name.setdefault(row.contender, []).append(row)
    own = by_name[chosen]
    notes, exact, ratios = [], {}, {}
    for name, rows in by_name.items():
        if why := next(filter(None, map(inexact, rows)), ""):
            notes.append(f"{name} is less exact than the rule allows: {why}")
        elif bad := next((r for r in rows if not r.timed or r.status in (FAILED, IMPOSSIBLE)), None):
            notes.append(f"{name}: {bad.status}, {bad.reason}")
        else:
            exact[name] = geometric_mean(r.median for r in rows)
            if name != chosen and all(r.status == OK for r in (*rows, *own)):
                intervals = [ratio_interval(r.times, o.times) for r, o in zip(rows, own, strict=True)]
                if all(high < 1 - gate for _, _, high in intervals):
                    ratios[name] = geometric_mean(middle for _, middle, _ in intervals)
    if chosen not in exact:
        return Decision(chosen, "no verdict", 1.0, chosen, 0.0, tuple(notes))
    best = min(exact, key=exact.__getitem__)
    if ratios:
        variant = min(ratios, key=ratios.__getitem__)
        return Decision(variant, "faster", ratios[variant], best, exact[chosen] / exact[best] - 1, tuple(notes))
    noisy = next((r for rows in by_name.values() for r in rows if r.status == UNRELIABLE), None)
    if noisy is not None:
        notes.append(f"no verdict: {noisy.reason}")
    return Decision(chosen, "kept" if noisy is None else "no verdict", 1.0, best, exact[chosen] / exact[best] - 1, tuple(notes))


@dataclass(frozen=True)
class Options:
    """How layers are raced. noisy: the machine is shared; decide by the calls that were not interrupted."""

    cache: tuple[str, ...] = ("cold", "hot")
    threads: tuple[int, ...] = ()
    seconds: float = 1.0
    rounds: tuple[int, int] = (7, 200)
    gate: float = GATE
    noisy: bool = False
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "cache": list(self.cache),
            "threads": list(self.threads),
            "seconds": self.seconds,
            "gate": self.gate,
            "noisy": self.noisy,
        }


@dataclass
class Entry:
    """What is known of a layer. milliseconds: by condition, by variant, (median, low, high) of its 95 % interval."""

    layer: Layer
    decision: Decision
    milliseconds: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        d = self.decision
        return {
            "op": self.layer.op,
            "title": self.layer.title,
            "where": self.layer.where,
            "batch": self.layer.batch,
            "layer": self.layer.words,
            "variant": d.variant,
            "chosen": self.layer.chosen,
            "verdict": d.verdict,
            "ratio": round(d.ratio, 4),
            "best": d.best,
            "loss": round(d.loss, 4),
            "notes": list(d.notes),
            "milliseconds": {
                c: {v: [float(f"{t:.4g}") for t in times] for v, times in rows.items()} for c, rows in self.milliseconds.items()
            },
        }

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Entry:
        """Raises ValueError if something is missing or is of another kind."""
        try:
            op = values["op"]
            numbers = tuple(layer_numbers(op, values["layer"]))
            layer = Layer(op, numbers, int(values["batch"]), str(values["chosen"]), str(values["where"]))
            facts = [str(values["variant"]), str(values["verdict"]), float(values["ratio"]), str(values["best"]), float(values["loss"])]
            decision = Decision(*facts, tuple(map(str, values["notes"])))  # type: ignore[arg-type]
            times = {c: {v: tuple(map(float, t)) for v, t in rows.items()} for c, rows in values["milliseconds"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged, {type(error).__name__}: {error}") from None
        return cls(layer, decision, times)  # type: ignore[arg-type]


def candidates(layer: Layer) -> tuple[list[str], list[str]]:
    """(the variants that can run the layer and are exact, a note for each that is not): without the plain-loop reference, which
    is never the fastest, and the software model of AMX's tiles, which is no measure of them.
    """
    module = _ext.module()
    able, notes = [], []
    for name, needs in variants(layer.op):
        if name == "ref" or "amxmodel" in name or needs.startswith("sm"):
            continue
        why = module.why_not_tuned(layer.op, list(layer.numbers), name)
        if not why:
            able.append(name)
        elif INEXACT in why:
            notes.append(f"{name} is not raced: it {why.partition('which ')[2]}")
    return able, notes


def measure_layer(layer: Layer, options: Options, timer: CpuTimer | None = None) -> Entry:
    """Races the variants of a layer and decides. Raises ValueError if the layer cannot be called on its own."""
    case, call = race_of(layer)
    dtype = DTYPES[layer.words["dtype"]]
    arguments = case.arguments(dtype)[0]
    own = recorded(call.prepare(*arguments))
    if [(op, numbers) for op, numbers, _ in own] != [layer.key]:
        raise ValueError(f"{layer.title}: cannot be called on its own")
    layer = replace(layer, chosen=own[0][2])
    able, notes = candidates(layer)

    def forced(name: str) -> AbstractContextManager[None]:
        return use(**{layer.op: name})

    first: dict[str, float] = {}
    for name in able:
        with forced(name), torch.no_grad():
            ready = call.prepare(*arguments)
            times = []
            for _ in range(2):
                start = time.perf_counter()
                ready()
                times.append(time.perf_counter() - start)
            first[name] = min(times)
    entered = [name for name in able if name == layer.chosen or first[name] <= HOPELESS * first[layer.chosen]]
    if entered == [layer.chosen]:
        notes.append("no other variant comes near")
        return Entry(layer, Decision(layer.chosen, "kept", 1.0, layer.chosen, 0.0, tuple(notes)))
    contenders = [Contender(name, call, around=partial(forced, name), who="fastcv") for name in entered]
    conditions: dict[str, list[Row]] = {}
    for count in options.threads or (torch.get_num_threads(),):
        with plan.threads(count):
            rows = measure(
                case,
                contenders,
                dtype=dtype,
                cache=options.cache,
                seconds=options.seconds,
                rounds=options.rounds,
                seed=options.seed,
                timer=timer or CpuTimer(),
                limits=ANY_NOISE if options.noisy else LIMITS,
                shared=options.noisy,
            )
        for state in options.cache:
            conditions[f"{state}, {count} thread{'s' if count != 1 else ''}"] = [r for r in rows if r.cache == state]
    decision = decide(conditions, layer.chosen, options.gate)
    decision = replace(decision, notes=(*notes, *decision.notes))
    milliseconds = {
        condition: {r.contender: tuple(1e3 * t for t in (r.median, *r.interval)) for r in rows if r.timed}
        for condition, rows in conditions.items()
    }
    return Entry(layer, decision, milliseconds)  # type: ignore[arg-type]


class File:
    """The file that is being written, whole after every layer; without a path it is only kept in memory."""

    def __init__(self, path: str | Path | None, machine: dict[str, Any], options: Options, resume: bool = False) -> None:
        """resume: go on with a file of the same machine, code and options. Raises ValueError, one sentence, and leaves a file as it
        is: it exists and is not to be resumed, or cannot be, or there is none to resume.
        """
        self.path = None if path is None else Path(path)
        self.head = {
            "kind": KIND,
            "schema": SCHEMA,
            "about": "Obeyed only where a program says so: with fastcv.tuned(this file). Times are of one batch; choices hold for all.",
            "rule": f"another variant is stored if its time over the chosen one's is below {1 - options.gate:g} in every condition (95%)",
            "began": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "machine": machine,
            "options": options.as_dict(),
        }
        self.entries: list[Entry] = []
        if self.path is None:
            if resume:
                raise ValueError("--resume needs the file to go on with: --output FILE")
            return
        if self.path.exists() and not resume:
            raise ValueError(f"{self.path} exists: --resume goes on with it, another --output leaves it alone")
        if resume:
            content, self.entries = entries(self.path)
            now = {k: machine.get(k) for k in SAME} | options.as_dict()
            then = {k: content["machine"].get(k) for k in SAME} | (content.get("options") or {})
            if different := [k for k in now if now[k] != then.get(k)]:
                k = different[0]
                raise ValueError(f"{self.path} cannot be resumed: its {k} is {then.get(k)!r}, now it is {now[k]!r}")
            self.head["began"] = content.get("began", self.head["began"])

    def _save(self) -> None:
        if self.path is None:
            return
        text = json.dumps(self.head, indent=1, allow_nan=False).removesuffix("\n}") + ',\n "layers": ['
        text += ",".join(_lines(e.as_dict()) for e in self.entries) + "\n ]\n}\n"
        try:
            _write(self.path, text)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error.strerror}") from None

    def add(self, entry: Entry) -> None:
        """Keeps an entry, on disk when this returns."""
        self.entries.append(entry)
        self._save()

    def holds(self, layer: Layer) -> Entry | None:
        return next((e for e in self.entries if e.layer.key == layer.key), None)


def _lines(entry: dict[str, Any]) -> str:
    """A layer as JSON, a line for each of its fields and for each condition."""
    times = ",".join(f"\n    {json.dumps(c)}: {json.dumps(rows, allow_nan=False)}" for c, rows in entry["milliseconds"].items())
    fields = [f"\n   {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in entry.items() if k != "milliseconds"]
    return "\n  {" + ",".join([*fields, f'\n   "milliseconds": {{{times}}}']) + "\n  }"


def entries(path: str | Path) -> tuple[dict[str, Any], list[Entry]]:
    """(the head of a file of ``fastcv tune``, its entries). Raises ValueError as ``fastcv.tuned``, but for another machine."""
    content = read(path)
    found = []
    for number, values in enumerate(content["layers"], 1):
        try:
            found.append(Entry.of_dict(values))
        except ValueError as error:
            raise ValueError(f"{path}, layer {number}: {error}") from None
    return content, found


def run(
    layers: Sequence[Layer],
    options: Options,
    file: File,
    done: Callable[[Entry], None] = lambda entry: None,
    started: Callable[[Layer], None] = lambda layer: None,
) -> list[Entry]:
    """Measures the layers that the file does not hold yet; each is kept before the next begins. Measured choices that hold in this
    process do not while it runs.
    """
    measured = []
    with tuned(None):
        for layer in layers:
            entry = file.holds(layer)
            if entry is None:
                started(layer)
                entry = measure_layer(layer, options)
                file.add(entry)
            measured.append(entry)
            done(entry)
    return measured


def line(entry: Entry) -> str:
    """An entry for a terminal or a log."""
    d, chosen = entry.decision, entry.layer.chosen
    if d.verdict == "faster":
        return f"{entry.layer.title}: {d.variant} stored, {1 / d.ratio:.2f} times as fast as {chosen}"
    best = f"; {d.best} took {1 / (1 + d.loss):.2f} of its time, which the intervals or the gate leave open" if d.best != chosen else ""
    return f"{entry.layer.title}: {chosen} {d.verdict}{best}"


def report(entries: Sequence[Entry]) -> str:
    """How good the default choice is: on how many layers it is more than 5 % slower than the best variant, and what it loses."""
    if not entries:
        return "no layers"
    losses = [e.decision.loss for e in entries]
    slow = sorted((e for e in entries if e.decision.loss > SLOW), key=lambda e: -e.decision.loss)
    met = len(slow) <= SHARE * len(entries)
    text = (
        f"The default choice is more than {SLOW:.0%} slower than the best variant on {len(slow)} of {len(entries)} layers "
        f"({len(slow) / len(entries):.0%}; {'within' if met else 'beyond'} the allowed {SHARE:.0%}); "
        f"geometric mean of its loss {geometric_mean(1 + x for x in losses) - 1:.1%}"
    )
    sure = sum(e.decision.verdict == "faster" for e in entries)
    text += f"; on {sure} layers another variant is faster beyond the gate in every condition, with 95% confidence"
    doubtful = sum(e.decision.verdict == "no verdict" for e in entries)
    if doubtful:
        text += f"; {doubtful} layers without a verdict, for the machine was not quiet"
    worst = [f"{e.decision.loss:.0%}: {e.layer.title}: {e.layer.chosen}, {e.decision.best} is faster" for e in slow]
    return "\n  ".join([text, *worst])
