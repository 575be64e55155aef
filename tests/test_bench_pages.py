"""Pictures, pages, ladders, whole models, call costs, history and the README's table: from rows to what a reader sees."""

import csv
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import ROOT, loaded

pytest.importorskip("matplotlib")
typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")

# After the checks for what they need.
from fastcv.bench import Row, guard, history, ladder, lessons, models, overhead, page, pictures, plan, probes, roofs, store, tables  # noqa: E402
from fastcv.bench.machine import describe  # noqa: E402
from fastcv.testing import cases_of  # noqa: E402
from fastcv.testing.cases.networks import case_of  # noqa: E402


@pytest.fixture(autouse=True)
def known_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "arithmetic", lambda dtype: 2e11)
    monkeypatch.setattr(roofs, "copy", lambda size: 5e10)


def rows(cases: int = 4, op: str = "conv2d", flops: int = 10**8, seed: int = 0) -> list[Row]:
    number = random.Random(seed)
    made = []
    for i in range(cases):
        for cache in ("hot", "cold"):
            for who, factor in (("fastcv", 1.0), ("torch", 1.5)):
                for layout in ("contiguous", "channels_last"):
                    base = 1e-3 * (i + 1) * factor * number.uniform(0.8, 1.2)
                    times = tuple(base * number.lognormvariate(0, 0.05) for _ in range(15))
                    row = Row(f"{op}-{i}", op, "f32", "fwd", layout, f"{who} {layout}", who, cache, 2, times=times, bytes=10**6 * (i + 1))
                    row.flops, row.roof, row.error, row.peer_error, row.repeatable = flops * (i + 1), 5e-4 * (i + 1), 2e-7, 3e-7, True
                    made.append(row)
    made[0].status, made[0].reason = "UNRELIABLE", "37% of the calls <had> switches"
    made[1].status, made[1].reason, made[1].times = "WRONG", "output 0 is 1 off float64", ()
    return made


class Tags(HTMLParser):
    """Opened and closed tags must match; what is loaded from elsewhere is collected."""

    VOID = frozenset(("meta", "br", "img", "link", "hr", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href", "data") and v and not v.startswith("#")]
        assert tag != "script"

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.loaded += [v for k, v in attrs if k in ("src", "href", "data", "xlink:href") and v and not v.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert not tags.open and not tags.loaded
    return tags


def test_a_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    page.write_page(tmp_path / "a.html", describe(), rows())
    tags = parsed((tmp_path / "a.html").read_text())
    for text in (
        "Roofline",
        "conv2d-3, f32, fwd, 2 threads",
        "37% of the calls <had> switches",
        "output 0 is 1 off float64",
        "How to read this",
    ):
        assert text in tags.text
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.parametrize("made", [rows(), rows(1), rows(flops=0), rows(13), [], rows(1)[1:2]])
def test_pictures_of_any_rows(made: list[Row], tmp_path: Path) -> None:
    written = {p.stem for p in pictures.write_all(tmp_path / "p", made)}
    assert all((tmp_path / "p" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in written)
    timed = [r for r in made if r.timed]
    assert ("roofline" in written) == any(r.flops for r in timed) and ("bandwidth" in written) == any(not r.flops for r in timed)
    assert ("speedups" in written) == bool(timed)


def test_the_roofline_shows_where_the_roofs_bend() -> None:
    """However many operations per byte the rows have: 2e11 FLOP/s over 5e10 B/s is 4."""
    for flops in (10**3, 10**6, 10**12):
        (axes,) = pictures.roofline(rows(flops=flops)).axes
        low, high = axes.get_xlim()
        assert low < 4 < high and axes.get_xscale() == axes.get_yscale() == "log"
        points = {tuple(p) for c in axes.collections for p in c.get_offsets()}
        assert len(points) == sum(r.timed for r in rows(flops=flops))  # one for each shape, variant and state of the caches


def test_an_svg_is_the_same_twice() -> None:
    assert pictures.svg(pictures.roofline(rows())) == pictures.svg(pictures.roofline(rows()))


# ---- ladder


def test_every_variant_has_a_lesson() -> None:
    import fastcv

    for op, every in fastcv.variants().items():
        for name, isa in every:
            words = name.split("_")
            assert {"_".join(words[:2]), words[0]} & set(lessons.ALGORITHMS), f"{op}: {name} has no explanation in fastcv/bench/lessons.py"
            assert len(ladder.explanation(name, isa)) >= 1
    assert set(lessons.ISAS) >= {"portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"}


def test_a_ladder_goes_from_the_reference_up(tmp_path: Path) -> None:
    case = case_of({"op": "softmax", "name": "small", "input": [256, 100]})
    rungs = ladder.climb(case, torch.float32, "contiguous", 0.0, (3, 3))
    timed = [r for r in rungs if r.row is not None]
    assert timed[0].variant == "ref" and {"torch", "threepass_portable"} <= {r.variant for r in timed}
    assert all(r.row.kernel == r.variant for r in timed if r.variant != "torch" and r.row.timed)
    left_out = {r.variant: r.why_not for r in rungs if r.row is None}
    assert left_out and all("sm" in variant and "no measure of its speed" in why for variant, why in left_out.items())
    files = ladder.write(tmp_path / "l", case, rungs, describe())
    assert [f.name for f in files] == ["ladder-softmax.png", "ladder-softmax.html"]
    tags = parsed(files[1].read_text())
    assert "plain loops of the definition" in tags.text and "of the roof" in tags.text


@pytest.mark.parametrize("op", plan.benchable())
def test_every_op_has_a_ladder(op: str) -> None:
    case = next(c for c in cases_of(op) if torch.float32 in c.dtypes and not c.bench and "empty" not in c.name)
    rungs = ladder.climb(case, torch.float32, case.layouts[0], 0.0, (2, 2))
    timed = [r for r in rungs if r.row is not None and r.row.timed]
    assert "torch" in [r.variant for r in timed] and len(timed) >= 2, [(r.variant, r.why_not or r.row.reason) for r in rungs]
    text = parsed(ladder.page(case, rungs, describe())).text
    assert all(r.variant in text for r in rungs)


# ---- models, call costs, history


class Net(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )


@pytest.mark.parametrize("train", [False, True])
def test_models_are_raced(train: bool) -> None:
    made = models.race("net", Net(), torch.randn(2, 3, 12, 12), train, seconds=0.0)
    assert {r.contender for r in made} == {f"{w} {layout}" for w in ("torch", "fastcv") for layout in ("contiguous", "channels_last")}
    assert all(r.timed and r.status in ("OK", "UNRELIABLE") and r.peak > 0 and (train or r.error < 1e-5) for r in made)
    assert models.images_per_second(made[0]) == pytest.approx(2 / made[0].median)


def test_unknown_models_are_told() -> None:
    with pytest.raises(ValueError, match="no model 'resnet51'"):
        models.build("resnet51")
    with pytest.raises(ValueError, match="none_such"):
        models.build("none_such:model")


def test_overhead_of_one_function() -> None:
    measured = overhead.measure("avg_pool2d", *overhead.tiny()["avg_pool2d"], 0.0)
    assert measured["raw_us"] > 0 and measured["wrapper_us"] == pytest.approx(measured["no_grad_us"] - measured["raw_us"])
    assert "| avg_pool2d |" in overhead.markdown([measured], "machine")


def test_history_of_runs(tmp_path: Path) -> None:
    for i in range(3):
        results = store.Results(tmp_path / "h.jsonl", describe() | {"commit": f"c{i}"})
        for row in rows(2, seed=i):
            results.add(row)
    runs = history.gather([tmp_path])
    assert [r.head["machine"]["commit"] for r in runs] == ["c0", "c1", "c2"]
    history.write(tmp_path / "t.html", runs)
    assert "rows in two runs or more" in parsed((tmp_path / "t.html").read_text()).text
    with pytest.raises(ValueError, match="a history needs a row"):
        history.page(runs[:1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        history.gather([tmp_path / "empty"])


# ---- commands


def command(*args: str) -> Any:
    from fastcv.cli import _application

    return typer_testing.CliRunner().invoke(_application(), ["bench", *args], env={"COLUMNS": "200"})


def test_commands_write_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text('[{"op": "softmax", "name": "a", "input": [16, 33]}]')
    short = ("--sweep", "s.json", "--seconds", "0", "--rounds", "2", "--cache", "hot")
    result = command("softmax", *short, "--html", "r.html", "--plot", "p", "--json", "r.jsonl")
    assert result.exit_code == 0, result.output
    assert parsed((tmp_path / "r.html").read_text()).text and (tmp_path / "p" / "bandwidth.png").exists()
    assert command("softmax", *short, "--json", "r.jsonl").exit_code == 0
    assert command("trend", "r.jsonl").exit_code == 0 and (tmp_path / "trend.html").exists()
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    result = command("model", "net:build", "--size", "1x3x9x9", "--seconds", "0", "--json", "r.jsonl")
    assert result.exit_code == 0 and "images/s" in result.output and len(store.read_runs("r.jsonl")) == 3
    assert command("ladder", "softmax", "--sweep", "s.json", "--seconds", "0", "--output", "l").exit_code == 0
    assert (tmp_path / "l" / "ladder-softmax.html").exists()
    assert command("overhead", "softmax", "--seconds", "0", "--markdown", "o.md").exit_code == 0 and (tmp_path / "o.md").exists()
    for bad, message in (
        (("model", "net:build", "--size", "1x4x9x9"), "does not run on 1x4x9x9"),
        (("model", "nothing"), "no model 'nothing'"),
        (("overhead", "conv9"), "no function 'conv9'"),
        (("ladder", "conv9"), "no op 'conv9'"),
        (("ladder", "conv2d", "--case", "x"), "no case 'x'"),
        (("ladder", "sum_pool2d"), "sum_pool2d has no timed case to climb"),
        (("ladder", "softmax", "--output", "net.py"), "the folder net.py cannot be made: File exists"),
        (("ladder", "softmax", "--dtype", "f32,bf16"), "a ladder has one dtype"),
        (("ladder", "conv2d", "--sweep", "s.json"), "s.json has no conv2d"),
        (("trend", "none"), "cannot be read"),
    ):
        result = command(*bad)
        assert result.exit_code == 2 and message in result.output and len(result.output.strip().splitlines()) == 1, result.output


def test_roofs_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCV_CACHE", str(tmp_path))
    monkeypatch.setattr(roofs, "_measure_arithmetic", lambda dtype, threads, seconds: 1e11)
    monkeypatch.setattr(roofs, "_measure_copy", lambda size, seconds: 1e10)
    monkeypatch.setattr(roofs, "_measure_chain", lambda name, threads, seconds: 7e9)
    try:
        result = command("roofs", "--seconds", "0.01")
        assert result.exit_code == 0 and "multiply-adds in f32: 100.0 GFLOP/s" in result.output and roofs.stored()["copy"]
        for name in probes.CPU_CHAINS:
            assert f"{name} in bf16: {probes.lacks(name) or '7.0 GFLOP/s'}" in result.output
        monkeypatch.setattr(roofs, "_measure_arithmetic", lambda dtype, threads, seconds: 4e10)
        for noisy, kept in (("load", 1e11), ("", 4e10)):  # what a busy machine hides is remembered
            monkeypatch.setattr(guard, "disturbed", lambda noise, noisy=noisy: noisy)
            result = command("roofs", "--seconds", "0.01")
            assert ("too low, perhaps: load" in result.output) == bool(noisy) and roofs.stored()["flops"]["f32"] == kept
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FASTCV_CACHE", str(tmp_path / "file" / "x"))
        result = command("roofs", "--seconds", "0.01")  # said before anything is measured
        assert result.exit_code == 2 and result.output.strip().endswith("roofs.json cannot be written: Not a directory")
        assert len(result.output.strip().splitlines()) == 1
    finally:
        monkeypatch.undo()
        roofs.again()


# ---- the README's table


def test_the_readme_is_written_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, file = loaded("benchmarks/readme.py"), tmp_path / "README.md"
    table = tables.against_torch(rows())
    tables.write_csv(tmp_path / "ops.csv", table)
    (tmp_path / "ops.md").write_text(tables.against_torch_markdown("The machine.", table))
    file.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    arguments = ["readme.py", "--results", str(tmp_path / "ops"), "--readme", str(file)]
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert script.main() == 1 and "old" in file.read_text()
    monkeypatch.setattr("sys.argv", arguments)
    assert script.main() == 0
    text = file.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "The machine. " in text
    assert re.search(r"\| conv2d \| \d+ \| \d\.\d\d \|", text)
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert script.main() == 0
    file.write_text("no markers")
    monkeypatch.setattr("sys.argv", arguments)
    assert script.main() == 2 and file.read_text() == "no markers"


def test_the_committed_results_make_a_table() -> None:
    with open(ROOT / "benchmarks" / "results" / "ops.csv", newline="") as file:
        committed = list(csv.DictReader(file))
    text = loaded("benchmarks/readme.py").table(committed, "machine", "summary")
    assert text.count("\n| ") >= 20
