"""fastcv tune and fastcv.tuned: the rule by which a variant is stored, the file, and that stored choices are obeyed where, and only
where, a program says so.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fastcv
from fastcv import functional
from fastcv.bench import layers, machine, tune
from fastcv.bench.guard import Guard
from fastcv.bench.race import measure
from fastcv.bench.rows import OK, UNRELIABLE, WRONG, Row
from fastcv.bench.timers import CpuTimer
from fastcv.testing import Case, cases_of, max_error

pytestmark = pytest.mark.skipif(not fastcv.is_built(), reason="needs the compiled module")


@pytest.fixture(autouse=True)
def _nothing_tuned() -> Iterator[None]:
    fastcv.tuned(None)
    yield
    fastcv.tuned(None)


# ---- the rule, on made-up measurements ----------------------------------------------------------------------------------------


def row(name: str, milliseconds: float, status: str = OK, error: float = 1e-7, reason: str = "") -> Row:
    """Forty rounds that spread by one percent around a median."""
    times = tuple(milliseconds * 1e-3 * (1 + 0.0005 * ((7 * i) % 21 - 10)) for i in range(40))
    return Row(
        "c", "conv2d", "f32", "fwd", "contiguous", name, "fastcv", "hot", 1, "cpu", status, reason, times, error=error, peer_error=1e-7
    )


def test_a_faster_variant_is_stored() -> None:
    d = tune.decide({"hot": [row("chosen", 10), row("a", 8), row("b", 7), row("c", 12)]}, "chosen")
    assert (d.variant, d.verdict, d.best) == ("b", "faster", "b")
    assert d.ratio == pytest.approx(0.7) and d.loss == pytest.approx(10 / 7 - 1)


def test_the_chosen_variant_is_kept_within_the_gate() -> None:
    d = tune.decide({"hot": [row("chosen", 10), row("a", 9.8)]}, "chosen")
    assert (d.variant, d.verdict, d.best, d.ratio) == ("chosen", "kept", "a", 1.0)
    assert d.loss == pytest.approx(10 / 9.8 - 1)
    assert tune.decide({"hot": [row("chosen", 10), row("a", 9.8)]}, "chosen", gate=0.0).variant == "a"


def test_an_interval_that_reaches_the_gate_keeps_the_chosen_variant() -> None:
    wide = replace(row("a", 9), times=tuple(1e-3 * (5 + i % 9) for i in range(40)))
    assert tune.decide({"hot": [row("chosen", 10), wide]}, "chosen").verdict == "kept"


def test_every_condition_must_agree() -> None:
    hot, cold = [row("chosen", 10), row("a", 5), row("b", 8)], [row("chosen", 10), row("a", 11), row("b", 8)]
    d = tune.decide({"hot": hot, "cold": cold}, "chosen")
    assert (d.variant, d.best) == ("b", "a")
    assert tune.decide({"hot": hot[:2], "cold": cold[:2]}, "chosen").verdict == "kept"


def test_a_less_exact_variant_is_named_and_never_stored() -> None:
    """The rule: twice torch's error and one eps, 3.2e-7 here."""
    d = tune.decide({"hot": [row("chosen", 10), row("a", 2, error=3.3e-7), row("b", 9, error=3.1e-7)]}, "chosen")
    assert (d.variant, d.best) == ("b", "b")
    assert d.notes == ("a is less exact than the rule allows: it is 3.3e-07 off float64, allowed 3.2e-07",)
    wrong = replace(row("a", 2, WRONG, reason="output 0 is 1 off float64, allowed 1e-07"), times=())
    d = tune.decide({"hot": [row("chosen", 10), wrong]}, "chosen")
    assert d.verdict == "kept" and "output 0 is 1 off float64" in d.notes[0]


def test_no_verdict_on_a_noisy_machine() -> None:
    d = tune.decide({"hot": [row("chosen", 10, UNRELIABLE, reason="load 9"), row("a", 5, UNRELIABLE, reason="load 9")]}, "chosen")
    assert (d.variant, d.verdict, d.best) == ("chosen", "no verdict", "a")
    assert d.notes == ("no verdict: load 9",)


def test_a_chosen_variant_that_is_wrong_gets_no_verdict() -> None:
    d = tune.decide({"hot": [row("chosen", 10, WRONG, reason="off"), row("a", 5)]}, "chosen")
    assert (d.variant, d.verdict, d.loss) == ("chosen", "no verdict", 0.0)


def test_report_counts_slow_layers(layer: layers.Layer) -> None:
    def entry(loss: float, verdict: str = "kept") -> tune.Entry:
        return tune.Entry(layer, tune.Decision("a", verdict, 1.0, "b", loss))

    text = tune.report([entry(0.0)] * 18 + [entry(0.21), entry(0.06, "no verdict")])
    assert "on 2 of 20 layers (10%; beyond the allowed 5%)" in text
    assert "geometric mean of its loss 1.3%" in text and "1 layers without a verdict" in text
    assert text.index("21%: ") < text.index("6%: ")
    assert "on 1 of 20 layers (5%; within the allowed 5%)" in tune.report([entry(0.01)] * 19 + [entry(0.06)])
    assert tune.report([]) == "no layers"


# ---- layers -------------------------------------------------------------------------------------------------------------------

X = torch.randn(2, 64, 20, 20, generator=torch.Generator().manual_seed(1))
W = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(2)) / 24


def conv(batch: int = 1, **options: Any) -> torch.Tensor:
    return functional.conv2d(X[:batch], W, padding=1, **options)


def ran(call: Any = conv) -> str:
    """The variant of the raw op that a call takes first."""
    return layers.recorded(call)[0][2]


@pytest.fixture
def layer() -> layers.Layer:
    op, numbers, variant = layers.recorded(conv)[0]
    return layers.Layer(op, numbers, 1, variant, "test")


def test_a_layer_has_no_batch(layer: layers.Layer) -> None:
    with_bias = lambda: functional.conv2d_fused(X, W, torch.ones(64), padding=1, residual=X, activation="relu")  # noqa: E731
    for call in (lambda: conv(2), with_bias):
        assert layers.recorded(call)[0][:2] == layer.key
    assert layers.recorded(lambda: functional.conv2d(X, W))[0][:2] != layer.key
    assert layers.recorded(lambda: conv()[:0]) and not layers.recorded(lambda: None)


def test_words_of_a_layer(layer: layers.Layer) -> None:
    assert layer.title == "conv 64x20x20 to 64x20x20, 3x3, f32 contiguous"
    words = layer.words
    assert (words["input_size"], words["padding"], words["dtype"], words["precision"]) == ([1, 20, 20], [0, 1, 1], "f32", "highest")
    from fastcv._tuned import layer_numbers

    assert tuple(layer_numbers(layer.op, words)) == layer.numbers


CASES = [case for op in ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d") for case in cases_of(op) if not case.bench]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_layer_can_be_called_on_its_own(case: Any) -> None:
    """The call rebuilt from a layer's numbers is the same layer, and what judges it computes the same."""
    for layout in case.layouts:
        for mode in ("fwd", "bwd") if case.grad else ("fwd",):
            for found in layers.of_case(case, torch.float64, layout, mode):
                made, call = layers.race_of(found)
                args, _ = made.arguments(torch.float64)
                if any(t.numel() == 0 for t in args):
                    continue  # nothing runs
                assert layers.recorded(lambda call=call, args=args: call(*args))[0][:2] == found.key, found.title
                ours, exact = call(*args), made.torch_function()(*args)
                assert ours.shape == exact.shape and max_error(ours, exact) < 1e-12, found.title


def test_packed_weights_are_arranged_before_the_clock_starts(layer: layers.Layer) -> None:
    case, call = layers.race_of(layers.with_kept_weights(layer))
    args, _ = case.arguments(torch.float32)
    ready = call.prepare(*args)
    assert torch.equal(ready(), call(*args))
    plain = layers.race_of(layer)[1]
    assert plain._pack is None and call._pack is not None


def test_layers_of_a_model() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.Conv2d(16, 16, 3))
    found = layers.distinct(layers.of_model("m", model, torch.randn(2, 3, 12, 12), ("fwd", "bwd")))
    assert [x.op for x in found if x.packed] == ["conv"] * 3 and {x.batch for x in found} == {2}
    assert sorted(x.op for x in found if not x.packed) == ["conv_dgrad"] * 2 + ["conv_wgrad"] * 3
    with pytest.raises(ValueError, match="m does not run on 1x4x12x12"):
        layers.of_model("m", model, torch.randn(1, 4, 12, 12), ("fwd",))


# ---- the file, and obeying it ---------------------------------------------------------------------------------------------------


def other(layer: layers.Layer) -> str:
    """An exact variant that the layer does not take of itself."""
    return next(name for name in tune.candidates(layer)[0] if name != layer.chosen)


def store(layer: layers.Layer, path: Path) -> Path:
    file = tune.File(path, machine.describe(), tune.Options())
    times = {"hot, 1 thread": {layer.chosen: (2.0, 1.9, 2.1), other(layer): (1.0, 0.9, 1.1)}}
    file.add(tune.Entry(layer, tune.Decision(other(layer), "faster", 0.5, other(layer), 1.0, ("a note",)), times))
    return path


@pytest.fixture
def stored(layer: layers.Layer, tmp_path: Path) -> Path:
    return store(layer, tmp_path / "tuned.json")


def test_file_round_trip(layer: layers.Layer, stored: Path) -> None:
    head, (entry,) = tune.entries(stored)
    assert head["machine"]["isa"] == fastcv.cpu_isa() and head["schema"] == 2 and head["machine"]["commit"] is not None
    assert entry.layer == layer and entry.decision.variant == other(layer) and entry.milliseconds["hot, 1 thread"][other(layer)][0] == 1.0
    text = stored.read_text()
    assert json.loads(text)["layers"][0]["layer"]["kernel_size"] == [1, 3, 3]
    assert '"dtype": "f32"' in text and f'"variant": "{other(layer)}"' in text


def test_choices_are_obeyed_within_the_block_alone(layer: layers.Layer, stored: Path) -> None:
    before, changed = conv(), other(layer)
    with fastcv.tuned(stored):
        assert ran() == changed
        assert fastcv.tuned_choices() == [{"op": "conv", "layer": layer.words, "variant": changed}]
        reasons = {variant: reason for op, variant, reason in fastcv.why_not("conv2d", X, W, padding=1) if op == "conv"}
        assert reasons[changed] == "" and reasons[layer.chosen] == f"fastcv.tuned takes {changed}"
        with fastcv.use(conv=changed):
            forced = conv()
        assert torch.equal(conv(), forced)
        with fastcv.use(conv="ref"):
            assert ran() == "ref"
        assert ran(lambda: functional.conv2d(X, W)) == ran(lambda: functional.conv2d(X, W))  # another layer: untouched
    assert ran() == layer.chosen and fastcv.tuned_choices() == [] and torch.equal(conv(), before)


def test_choices_hold_for_every_batch_and_number_of_threads(layer: layers.Layer, stored: Path) -> None:
    with fastcv.tuned(stored):
        both = conv(2)
        assert ran(lambda: conv(2)) == other(layer)
        assert torch.equal(both[:1], conv(1))
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads % 2 + 1)
            assert torch.equal(both, conv(2))
        finally:
            torch.set_num_threads(threads)


def test_a_plain_call_stays_and_files_add_up(layer: layers.Layer, stored: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.json"
    found = layers.recorded(lambda: functional.conv2d(X, W))[0]
    valid = layers.Layer(found[0], found[1], 1, found[2], "test")
    tune.File(second, machine.describe(), tune.Options()).add(
        tune.Entry(valid, tune.Decision(other(valid), "faster", 0.5, other(valid), 1.0))
    )
    fastcv.tuned(stored)
    with fastcv.tuned(second):
        assert len(fastcv.tuned_choices()) == 2 and ran() == other(layer)
        with fastcv.tuned(None):
            assert fastcv.tuned_choices() == [] and ran() == layer.chosen
        assert len(fastcv.tuned_choices()) == 2
    assert len(fastcv.tuned_choices()) == 1 and ran() == other(layer)
    fastcv.tuned(None)
    assert ran() == layer.chosen


def test_kept_weights_have_choices_of_their_own(layer: layers.Layer, stored: Path, tmp_path: Path) -> None:
    from fastcv.optimizer.packed_weights import PackedWeights

    of_kept = store(layers.with_kept_weights(layer), tmp_path / "kept.json")
    packs, geometry = PackedWeights(), ((1, 1), (1, 1), (1, 1), 1)

    def packed() -> torch.Tensor:
        kept = packs.of_conv(X, W, geometry, 0)
        assert kept is not None
        return kept

    assert packed().numel() == 0
    before = packed()
    with fastcv.tuned(of_kept):
        assert packed().numel() == 0, "what was arranged for another variant"
        assert ran() == layer.chosen  # a call that arranges its weights
        after = packed()
        assert before.shape != after.shape or not torch.equal(before, after)
        y = torch.ops.fastcv.conv(X, W, None, *geometry, None, 0, 0, after)
        assert torch.equal(y, torch.ops.fastcv.conv(X, W, None, *geometry, None, 0, 0, X.new_empty(0, dtype=torch.uint8)))
    with fastcv.tuned(stored):
        assert torch.equal(y, conv(2))
    assert packed().numel() == 0


def test_calls_of_other_threads_take_one_choice_or_the_other(stored: Path) -> None:
    default = conv()
    with fastcv.tuned(stored):
        tuned = conv()
    stop, wrong = threading.Event(), []

    def caller() -> None:
        while not stop.is_set():
            y = conv()
            if not (torch.equal(y, default) or torch.equal(y, tuned)):
                wrong.append(y)

    callers = [threading.Thread(target=caller) for _ in range(2)]
    for thread in callers:
        thread.start()
    for _ in range(200):
        with fastcv.tuned(stored):
            pass
    stop.set()
    for thread in callers:
        thread.join()
    assert not wrong and fastcv.tuned_choices() == []


def spoil(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def in_layer(**fields: Any) -> Any:
    return lambda c: c["layers"][0]["layer"].update(fields)


SPOILT = {
    "schema 7, this fastcv reads schema 2": lambda c: c.update(schema=7),
    "is no file of fastcv tune": lambda c: c.update(kind="other"),
    "names no machine or no layers": lambda c: c.update(layers={}),
    "its isa is 'avx1024', here it is": lambda c: c["machine"].update(isa="avx1024"),
    "its processor is 'abacus', here it is": lambda c: c["machine"].update(processor="abacus"),
    "layer 1: conv has no variant 'fastest'; it has": lambda c: c["layers"][0].update(variant="fastest"),
    "layer 1: damaged, its op is 'conv9'": lambda c: c["layers"][0].update(op="conv9"),
    "layer 1: damaged, its op is None": lambda c: c["layers"].insert(0, 3),
    "its variant 5": lambda c: c["layers"][0].update(variant=5),
    "has not exactly the fields input_channels": lambda c: c["layers"][0]["layer"].pop("groups"),
    "dtype 'f31' is none of f32": in_layer(dtype="f31"),
    "dtype ": in_layer(dtype=["f32"]),
    "kernel_size [3, 3] is not 3 whole numbers": in_layer(kernel_size=[3, 3]),
    "groups 1.0 is not a whole number": in_layer(groups=1.0),
    "groups is missing or out of range": in_layer(groups=0),
    "needs float32": in_layer(dtype="bf16"),
    "less exact than the accuracy rule allows": in_layer(input_channels=16),
    "softmax takes no measured choices": lambda c: c["layers"][0].update(op="softmax", layer={}),
    "which is a CUDA kernel": lambda c: c["layers"][0].update(variant="direct_sm80"),
}


@pytest.mark.parametrize("words", SPOILT)
def test_a_file_that_does_not_fit_changes_nothing(words: str, layer: layers.Layer, stored: Path) -> None:
    if "float32" in words or "exact" in words:
        winograd = next(name for name, _ in fastcv.variants("conv") if name.startswith("winograd4x2") and name.endswith("portable"))
        spoil(stored, lambda c: c["layers"][0].update(variant=winograd))
    spoil(stored, SPOILT[words])
    with pytest.raises(ValueError) as error:
        fastcv.tuned(stored)
    assert words in str(error.value) and str(stored) in str(error.value) and "\n" not in str(error.value)
    assert fastcv.tuned_choices() == [] and ran() == layer.chosen


def test_a_file_that_cannot_be_read(tmp_path: Path, stored: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file"):
        fastcv.tuned(tmp_path / "none.json")
    text = stored.read_text().splitlines()
    stored.write_text("\n".join([*text[:5], '"machine": ?', *text[5:]]))
    with pytest.raises(ValueError, match="line 6: damaged"):
        fastcv.tuned(stored)
    stored.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is no text"):
        fastcv.tuned(stored)
    stored.write_text("[1]")
    with pytest.raises(ValueError, match="no file of fastcv tune"):
        fastcv.tuned(stored)


def test_the_raw_table_refuses_what_the_file_reader_would_have(layer: layers.Layer) -> None:
    module = fastcv._ext.module()
    assert module.why_not_tuned("conv", list(layer.numbers), layer.chosen) == ""
    for numbers in ([], list(layer.numbers[:-1]), [*layer.numbers, 1], [-1, *layer.numbers[1:]], [2**40, *layer.numbers[1:]]):
        assert "no such layer" in module.why_not_tuned("conv", numbers, layer.chosen)
        with pytest.raises(ValueError, match="no such layer"):
            module.set_tuned([("conv", list(layer.numbers), layer.chosen), ("conv", numbers, layer.chosen)])
    assert module.tuned_choices() == []
    with pytest.raises(ValueError, match="no variants of 'nothing'"):
        module.why_not_tuned("nothing", [], "x")


# ---- measuring ------------------------------------------------------------------------------------------------------------------

QUICK = tune.Options(cache=("hot",), threads=(1,), seconds=0.0, rounds=(2, 2), noisy=True)


def test_inexact_variants_are_named_and_not_raced() -> None:
    small = layers.recorded(lambda: functional.conv2d(torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3), padding=1))[0]
    able, notes = tune.candidates(layers.Layer(small[0], small[1], 1, small[2], "test"))
    assert not any(name.startswith("winograd4") for name in able) and any(name.startswith("igemm") for name in able)
    assert not any("amxmodel" in name or name == "ref" or "sm80" in name for name in able)
    assert any(n.startswith("winograd4_f32") and "less exact than the accuracy rule allows: it needs more channels" in n for n in notes)


def test_a_layer_is_raced_by_its_variants(layer: layers.Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Row] = []
    monkeypatch.setattr(tune, "measure", lambda *a, **k: [seen.append(r) or r for r in measure(*a, **k)])
    monkeypatch.setattr(tune, "HOPELESS", 1e9)
    entry = tune.measure_layer(replace(layer, chosen="stale"), QUICK)
    assert entry.layer.chosen == layer.chosen
    assert {r.contender for r in seen} == set(tune.candidates(layer)[0])
    assert all(r.kernel == r.contender for r in seen), "a race must run the variant that it is named for"
    assert set(entry.milliseconds["hot, 1 thread"]) >= {r.contender for r in seen if r.status == OK}
    with pytest.raises(ValueError, match="cannot be called on its own"):
        tune.measure_layer(replace(layer, numbers=(*layer.numbers[:-2], 1, 0)), QUICK)


@pytest.mark.parametrize(("every", "shared", "longest"), [(3, False, 1.0), (3, True, 2e-3), (1, True, 1.0)])
def test_interrupted_calls_do_not_count_on_a_shared_machine(every: int, shared: bool, longest: float) -> None:
    """Every third call is interrupted and takes a thousand times longer, as the timer and the guard have it; where all are, they count."""

    class Interrupted(CpuTimer):
        calls = 0

        def time(self, call: Any) -> tuple[float, Any]:
            self.calls += 1
            return (1.0 if self.calls % every == 0 else 1e-3 + 1e-6 * (self.calls % 7)), call()

    timer = Interrupted()

    class Watching(Guard):
        def after(self) -> tuple[int, float]:
            return 100 * int(timer.calls % every == 0), 0.0  # in a second: more than a quiet system causes

    case = Case("softmax", "small", lambda g: ((torch.randn(4, 9, generator=g),), {"dim": 1}))
    how: Any = {"cache": ("hot",), "seconds": 0.0, "rounds": (12, 12), "timer": timer, "guard": Watching(), "limits": tune.ANY_NOISE}
    (row,) = measure(case, {"torch": F.softmax}, shared=shared, **how)
    assert len(row.times) == 12 and max(row.times) == pytest.approx(longest, rel=0.9) and (max(row.times) == 1.0) == (longest == 1.0)


def test_a_run_measures_what_the_file_does_not_hold(layer: layers.Layer, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def stand_in(one: layers.Layer, options: tune.Options) -> tune.Entry:
        assert fastcv.tuned_choices() == []
        measured.append(one.key)
        return tune.Entry(one, tune.Decision(one.chosen, "kept", 1.0, one.chosen, 0.0))

    monkeypatch.setattr(tune, "measure_layer", stand_in)
    found = layers.recorded(lambda: functional.conv2d(X, W))[0]
    fresh = layers.Layer(found[0], found[1], 1, found[2], "test")
    with fastcv.tuned(stored):
        tune.run([layer, fresh], tune.Options(), tune.File(stored, machine.describe(), tune.Options(), resume=True))
        assert ran() == other(layer)
    assert measured == [fresh.key]
    assert [e.layer.key for e in tune.entries(stored)[1]] == [layer.key, fresh.key]


def test_a_file_is_resumed_by_its_own_run_alone(stored: Path) -> None:
    facts = machine.describe()
    with pytest.raises(ValueError, match="exists: --resume goes on with it"):
        tune.File(stored, facts, tune.Options())
    with pytest.raises(ValueError, match=r"cannot be resumed: its gate is 0\.03, now it is 0\.1"):
        tune.File(stored, facts, tune.Options(gate=0.1), resume=True)
    with pytest.raises(ValueError, match="cannot be resumed: its commit is"):
        tune.File(stored, {**facts, "commit": "0000000"}, tune.Options(), resume=True)
    with pytest.raises(ValueError, match="--resume needs the file"):
        tune.File(None, facts, tune.Options(), resume=True)
    spoil(stored, lambda c: c["layers"][0].pop("loss"))
    before = stored.read_text()
    with pytest.raises(ValueError, match="layer 1: damaged, KeyError: 'loss'"):
        tune.File(stored, facts, tune.Options(), resume=True)
    assert stored.read_text() == before


# ---- the command ----------------------------------------------------------------------------------------------------------------

typer_testing = pytest.importorskip("typer.testing")


def command(*args: Any) -> Any:
    from fastcv.cli import _application

    return typer_testing.CliRunner().invoke(_application(), [*map(str, args)], env={"COLUMNS": "200"})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.json"
    rows = [{"op": "conv2d", "input": [1, 32, 10, 10], "out_channels": 32, "kernel": 3, "padding": 1}, {"op": "softmax", "input": [4, 9]}]
    path.write_text(json.dumps(rows))
    return path


FAST = ("--seconds", 0, "--rounds", 2, "--cache", "hot", "--threads", 1, "--layout", "nhwc")


@pytest.mark.parametrize("name", [("tune",), ("bench", "tune")])
def test_command(name: tuple[str, ...], sweep: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.json"
    done = command(*name, "--sweep", sweep, *FAST, "--mode", "fwd,bwd", "--output", output)
    assert done.exit_code == 0, done.output
    assert "3 layers" in done.output and "The default choice is more than 5% slower" in done.output
    assert [e.layer.op for e in tune.entries(output)[1]] == ["conv", "conv_dgrad", "conv_wgrad"]
    before = output.read_text()
    again = command(*name, "--sweep", sweep, *FAST, "--output", output)
    assert again.exit_code == 2 and "exists: --resume goes on" in again.output and output.read_text() == before
    assert command(*name, "--sweep", sweep, *FAST, "--mode", "fwd,bwd", "--output", output, "--resume").exit_code == 0
    assert len(tune.entries(output)[1]) == 3
    shown = command(*name, "--report", output)
    assert shown.exit_code == 0 and "of 3 layers" in shown.output
    with fastcv.tuned(output):
        assert len(fastcv.tuned_choices()) == 3


def test_command_on_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_tune_model.py").write_text("import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3))\n")
    monkeypatch.chdir(tmp_path)
    done = command("tune", "--model", "tiny_tune_model:build", "--size", "2x3x9x9", *FAST, "--output", "t.json")
    assert done.exit_code == 0, done.output
    (entry,) = tune.entries(tmp_path / "t.json")[1]
    assert entry.layer.packed and entry.layer.batch == 2 and entry.layer.where == "tiny_tune_model:build"


MISTAKES = {
    "no op 'conv2dd' to measure; did you mean conv2d": ("conv2dd",),
    "softmax takes no measured choices": ("softmax",),
    "no sweep 'nothing'": ("--sweep", "nothing"),
    "--dtype f8": ("conv2d", "--dtype", "f8"),
    "--mode fwd+bwd": ("conv2d", "--mode", "fwd+bwd"),
    "--cache warm": ("conv2d", "--cache", "warm"),
    "--threads '0'": ("conv2d", "--threads", "0"),
    "--gate 200%: expected a share from 0": ("conv2d", "--gate", "200%"),
    "no model 'nonet'": ("--model", "nonet"),
    "'1x3xa' is no size": ("--model", "torch.nn:Identity", "--size", "1x3xa"),
    "--model takes neither ops nor --sweep": ("conv2d", "--model", "resnet50"),
    "no layer whose variant is a choice": ("--model", "torch.nn:Identity", "--size", "1x3x9x9"),
    "cannot be read: No such file": ("--report", "none.json"),
    "--resume needs the file": ("conv2d", "--resume"),
    "cannot be written": ("conv2d", "--output", "no/such/folder/t.json"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_sentence(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("tune", *MISTAKES[words])
    assert done.exit_code == 2, done.output
    assert words in done.output and len(done.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_torch_is_what_judges() -> None:
    """The default conv2d against torch's, so that a wrong judge cannot pass for a right one."""
    case, call = layers.race_of(layers.Layer(*layers.recorded(conv)[0][:2], 2, "", "test"))
    args, _ = case.arguments(torch.float64)
    assert torch.equal(case.torch_function()(*args), F.conv2d(*args, padding=1))
    assert max_error(call(*case.arguments(torch.float32)[0]), F.conv2d(*args, padding=1)) < 1e-5
