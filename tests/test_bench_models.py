"""Whole models against deployment engines: the race, its judge, its tables and page, the command, and the table of benchmarks/."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import ROOT, loaded
from torch import Tensor, nn

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")

# After the checks for what they need.
from fastcv.bench import Row, engines, model_race, model_tables, models, peers, plan, roofs, store  # noqa: E402
from fastcv.bench.machine import describe  # noqa: E402

needs_onnxruntime = pytest.mark.skipif(bool(peers.missing("onnxruntime")), reason="needs onnx and onnxruntime")
needs_openvino = pytest.mark.skipif(bool(peers.missing("openvino")), reason="needs onnx and openvino")


class Compiled(nn.Module):
    """What torch.compile returns, as far as names go."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, x: Tensor) -> Any:
        return self._orig_mod(x)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A roof without a measurement, and no compilation."""
    monkeypatch.setattr(roofs, "arithmetic", lambda dtype: 2e11)
    monkeypatch.setattr(model_race, "_compiled", lambda model, train: Compiled(model))


class Net(nn.Module):
    """Convolutions, batch norm, an addition, dropout and a linear layer; returns a dict if asked."""

    def __init__(self, wrapped: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = self.head(torch.relu(self.body(x) + x))
        return {"out": x, "twice": 2 * x} if self.wrapped else x


def race(model: nn.Module | None = None, shape: tuple[int, ...] = (2, 3, 12, 12), vs: Any = ("torch",), **more: Any) -> dict[str, Row]:
    model = Net().eval() if model is None else model
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    rows = models.race("net", model, x, vs=vs, seconds=0.0, rounds=(3, 3), **more)
    return {row.contender: row for row in rows}


def fine(row: Row) -> bool:
    return row.status in ("OK", "UNRELIABLE") and len(row.times) == row.checked == 3


def stand_in(change: Any = lambda output, count: output) -> Any:
    """deploy, by torch: ``change`` sees each output and which call it is of."""

    def deploy(engine: str, exported: Any, dtype: str) -> Any:
        image, count, model = torch.zeros_like(exported._x), [0], engines._Outputs(exported._model)

        def call() -> Tensor:
            count[0] += 1
            with torch.no_grad():
                return change(model(image)[0], count[0])

        return image, call

    return deploy


# ---- the race


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "f16"])
def test_every_dtype_in_both_layouts(dtype: str, train: bool) -> None:
    rows = race(train=train, dtype=dtype, vs=("torch", "compile"))
    assert set(rows) == {f"{w} {layout}" for w in ("fastcv", "torch", "compile") for layout in ("contiguous", "channels_last")}
    eps = torch.finfo(roofs.DTYPES[dtype]).eps
    for row in rows.values():
        assert fine(row) and row.mode == ("fwd+bwd" if train else "fwd") and row.dtype == dtype, row
        assert row.repeatable and row.peak > 0 and row.error < 100 * eps and row.peer_error < 100 * eps
    forward = 2 * 2 * 144 * (27 + 72) * 8 + 2 * 2 * 8 * 5
    # Backward: both products of every layer but the first, whose input needs no gradient.
    assert rows["torch contiguous"].flops == (3 * forward - 2 * 2 * 144 * 27 * 8 if train else forward)
    assert rows["fastcv contiguous"].kernel and not rows["torch contiguous"].kernel


def test_the_model_is_left_as_it_was() -> None:
    model = Net()
    model.body.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    race(model, train=True)
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_outputs_in_a_dict_and_inputs_that_are_no_images() -> None:
    assert all(fine(r) for r in race(Net(wrapped=True).eval(), train=True).values())
    rows = race(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (3, 6))
    assert set(rows) == {"fastcv contiguous", "torch contiguous"} and all(map(fine, rows.values()))


def test_without_peers_torch_is_still_the_yardstick() -> None:
    rows = race(vs=())
    assert set(rows) == {"fastcv contiguous", "fastcv channels_last"} and all(r.peer_error > 0 for r in rows.values())


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (lambda y, n: y * 1.01, "WRONG", "off the model in float64"),
        (lambda y, n: y if n < 5 else y * 1.01, "WRONG", "off the model in float64"),  # right until the clock runs
        (lambda y, n: torch.full_like(y, math.nan), "WRONG", "off the model in float64"),
        (lambda y, n: y[:1], "FAILED", "its output has shape (1, 5), expected (2, 5)"),
    ],
)
def test_wrong_engines_lose_their_times(change: Any, status: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "deploy", stand_in(change))
    rows = race(vs=("torch", "openvino"))
    assert rows["openvino"].status == status and reason in rows["openvino"].reason and rows["openvino"].times == ()
    assert all(fine(r) for name, r in rows.items() if name != "openvino")


def test_an_engine_that_remembers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []

    def remember(y: Tensor, n: int) -> Tensor:
        kept.append(y)
        return kept[0]

    monkeypatch.setattr(engines, "deploy", stand_in(remember))
    assert race(vs=("onnxruntime",))["onnxruntime"].status == "WRONG"


def test_who_raises_is_out_and_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(y: Tensor, n: int) -> Tensor:
        if n > 4:
            raise RuntimeError("\n  out of luck\nand more")
        return y

    monkeypatch.setattr(engines, "deploy", stand_in(fall))
    row = race(vs=("openvino",))["openvino"]
    assert (row.status, row.reason, row.times) == ("FAILED", "RuntimeError: out of luck", ())

    def greedy(y: Tensor, n: int) -> Tensor:
        torch.set_num_threads(threads + 1)
        return y

    threads = torch.get_num_threads()
    monkeypatch.setattr(engines, "deploy", stand_in(greedy))
    row = race(vs=("openvino",))["openvino"]
    assert row.status == "WRONG" and "changed torch's number of threads" in row.reason and torch.get_num_threads() == threads


def test_a_wrong_optimisation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, mode: str) -> nn.Module:
        with torch.no_grad():
            model.body.weight[0] *= 1.5
        return model

    monkeypatch.setattr(model_race, "optimize", broken)
    for train in (False, True):
        rows = race(train=train)
        assert (
            rows["fastcv contiguous"].status == "WRONG" and "allowed" in rows["fastcv contiguous"].reason and fine(rows["torch contiguous"])
        )


def test_both_doors_of_fastcv() -> None:
    rows = race(vs=("torch", "fastcv-compile"))
    doors = {name for name, row in rows.items() if row.who == "fastcv"}
    assert doors == {f"{door} {layout}" for door in ("fastcv", "fastcv-compile") for layout in ("contiguous", "channels_last")}
    assert all(map(fine, rows.values()))
    (line,) = model_tables.against_peers(rows.values())
    best = min((rows[name] for name in doors), key=lambda row: row.median)
    assert line["fastcv_door"] == ("compile" if best.contender.startswith("fastcv-compile") else "optimize")
    compiled = model_tables.cells(line | {"fastcv_door": "compile"})
    assert any(cell.endswith(" compiled") for cell in compiled) and compiled != model_tables.cells(line | {"fastcv_door": "optimize"})
    assert not any(
        "fastcv-compile" in name for name in model_race.contender_names(models.Job("net", (1, 3, 8, 8), train=True), models.PEERS)
    )


def test_engines_take_part_where_they_can() -> None:
    job = models.Job("net", (1, 3, 8, 8))
    assert {"onnxruntime", "openvino"} <= set(model_race.contender_names(job, models.PEERS))
    names = model_race.contender_names(models.Job("net", (1, 3, 8, 8), "bf16"), models.PEERS)
    assert "openvino" in names and "onnxruntime" not in names
    assert not set(engines.ENGINES) & set(model_race.contender_names(models.Job("net", (1, 3, 8, 8), train=True), models.PEERS))
    assert "bf16" in engines.no_part("onnxruntime", "bf16", False) and "training" in engines.no_part("openvino", "f32", True)


@needs_onnxruntime
@pytest.mark.parametrize("wrapped", [False, True])
def test_onnxruntime(wrapped: bool) -> None:
    row = race(Net(wrapped).eval(), vs=("onnxruntime",))["onnxruntime"]
    assert fine(row) and row.error < 1e-5 and row.layout == "contiguous" and row.peak is None


@needs_openvino
def test_openvino() -> None:
    assert race(vs=("openvino",))["openvino"].error < 1e-5
    row = race(vs=("openvino",), dtype="bf16")["openvino"]
    assert (fine(row) and 1e-5 < row.error < 0.05) or "openvino computes in" in row.reason  # processors without bfloat16


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x).sum((2, 3))


@needs_onnxruntime
def test_a_model_that_cannot_be_exported() -> None:
    rows = race(Unknown(), vs=("torch", "onnxruntime"))
    assert rows["onnxruntime"].status == "FAILED" and rows["onnxruntime"].reason.startswith("cannot be exported to ONNX: ")
    assert "\n" not in rows["onnxruntime"].reason and fine(rows["torch contiguous"])


@needs_onnxruntime
def test_the_exported_file_is_written_once_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = engines.Exported(Net().eval(), torch.randn(1, 3, 8, 8))
    first = exported.path()
    stamp = first.stat().st_mtime_ns
    assert exported.path() == first and first.stat().st_mtime_ns == stamp
    exported.close()
    assert not first.exists()


# ---- models by name


def test_models_by_name() -> None:
    assert {"resnet50", "vgg16"} <= set(models.known())
    assert models.shape_of("resnet50") == (1, 3, 224, 224) and models.shape_of("resnet20", batch=4) == (4, 3, 32, 32)
    assert models.shape_of("a.b:c", (2, 1, 9, 9)) == (2, 1, 9, 9) and models.shape_of("a.b:c", (2, 1, 9, 9), 7) == (7, 1, 9, 9)
    one, two = (models.build("resnet20", (1, 3, 32, 32)) for _ in range(2))
    assert not one.training and all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert all(p.any() for p in one.parameters())
    # The peers get torch's layers, not fastcv's.
    assert not any(type(m).__module__.startswith("fastcv.nn") for m in one.modules())
    assert models.build("resnet20", (1, 1, 28, 28))(torch.randn(1, 1, 28, 28)).shape[0] == 1
    jobs = models.plan_jobs(["resnet20", "vgg16"], batches=(1, 8), dtypes=("f32", "bf16"), threads=(1, 2))
    assert len(jobs) == 16 and jobs[0].case == "model-resnet20-1x3x32x32"
    assert [(j.name, j.shape[0]) for j in jobs[::4]] == [("resnet20", 1), ("resnet20", 8), ("vgg16", 1), ("vgg16", 8)]


# ---- tables


def made(who: str, ms: float, layout: str = "contiguous", status: str = "OK", case: str = "model-a-b-8x3x4x4", **more: Any) -> Row:
    name = who if who in engines.ENGINES else f"{who} {layout}"
    times = () if status in ("WRONG", "FAILED") else tuple(ms * 1e-3 * f for f in (0.99, 1.0, 1.01, 1.0, 1.0))
    fields = {"op": "model", "dtype": "f32", "mode": "fwd", "cache": "hot", "threads": 2, "flops": 10**9, "roof": 1e-2} | more
    reason = "" if status == "OK" else "it | was so"
    return Row(
        case, layout=layout, contender=name, who=who, times=times, status=status, reason=reason, error=1e-6, peer_error=2e-6, **fields
    )


def some_rows() -> list[Row]:
    return [
        *(made("fastcv", 30, "contiguous"), made("fastcv", 20, "channels_last"), made("torch", 40), made("torch", 50, "channels_last")),
        *(made("compile", 0, status="FAILED"), made("compile", 25, "channels_last"), made("openvino", 24), made("onnxruntime", 28)),
        *(made("fastcv", 10, dtype="bf16"), made("torch", 5, dtype="bf16", status="UNRELIABLE")),
        made("fastcv", 7, mode="fwd+bwd"),
    ]


def test_a_line_per_race() -> None:
    table = model_tables.against_peers(some_rows())
    assert [(line["model"], line["batch"], line["size"], line["dtype"], line["mode"]) for line in table] == [
        *(("a-b", 8, "3x4x4", "f32", "fwd"), ("a-b", 8, "3x4x4", "bf16", "fwd"), ("a-b", 8, "3x4x4", "f32", "fwd+bwd"))
    ]
    best = table[0]
    assert best["fastcv_ms"] == 20 and best["fastcv_layout"] == "channels_last" and best["fastest_peer"] == "openvino"
    assert best["ratio"] == pytest.approx(1.2) and best["low"] < 1.2 < best["high"] and best["compile_ms"] == 25
    assert best["remarks"] == "compile contiguous FAILED: it | was so" and best["status"] == "OK" and best["percent_of_roof"] == 50
    assert table[1]["status"] == "UNRELIABLE" and table[1]["ratio"] == 0.5 and table[2]["ratio"] == ""
    # What has no verdict is no part of the mean.
    assert model_tables.summary(table) == (
        "1 race, fastest peer / fastcv: geometric mean 1.20, slowest 1.20 (a-b, batch 8, f32, fwd; OpenVINO); "
        "1 of 2 races without a verdict"
    )
    assert model_tables.summary(table[2:]) == ""


def test_the_table_survives_the_file(tmp_path: Path) -> None:
    table = model_tables.against_peers(some_rows())
    (tmp_path / "t.csv").write_text(model_tables.csv_text(table))
    with open(tmp_path / "t.csv", newline="") as file:
        again = list(csv.DictReader(file))
    text = model_tables.markdown("The machine.", table)
    assert model_tables.markdown("The machine.", again) == text
    lines = text.splitlines()[4:]
    assert len({line.count("|") for line in lines}) == 1 and "| 20 NHWC | 40 | 25 | 28 | 24 | 1.20 (OpenVINO) |" in lines[2]


def test_lines_for_a_terminal() -> None:
    lines = model_tables.lines(some_rows()[:8])
    assert "   400 images/s" in lines[1] and "2.00x torch" in lines[1] and "FAILED: it | was so" in lines[4] and len(lines) == 8
    assert model_tables.plain(12345.6) == "12346" and model_tables.plain(0.01234) == "0.0123"


# ---- pictures and the page


def test_the_page_and_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from test_bench_pages import parsed

    from fastcv.bench import page, pictures

    page.write_page(tmp_path / "m.html", describe(), some_rows())
    text = parsed((tmp_path / "m.html").read_text()).text
    for what in ("fastest peer's time / fastcv's", "1.20x", "1.20 (OpenVINO)", "ONNX Runtime", "How to read this", "rows FAILED"):
        assert what in text
    for name in ("m.png", "m.svg", "m.pdf"):
        pictures.write(tmp_path / name, pictures.models(some_rows()))
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG") and sorted(p.name for p in tmp_path.iterdir())[0] == "m.html"
    assert pictures.models([made("fastcv", 0, status="FAILED")]) is None and pictures.models([]) is None
    assert pictures.models(some_rows()[:1]) is not None


# ---- the command


def command(*args: str) -> Any:
    from fastcv.cli import _application

    return typer_testing.CliRunner().invoke(_application(), ["bench", "model", *args], env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "small_nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def one():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
        "def two():\n    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())\n"
        "def number():\n    return 3\n"
    )
    return tmp_path


SHORT = ("--seconds", "0", "--rounds", "2")


def test_the_command_writes_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(engines, "deploy", stand_in())
    monkeypatch.setattr(peers, "missing", lambda peer: "onnxruntime takes no part: not installed" if peer == "onnxruntime" else "")
    outputs = ("--json", "r.jsonl", "--html", "r.html", "--plot", "r.png", "--markdown", "r.md")
    options = ("--size", "1x3x9x9", "--dtype", "f32,bf16", "--threads", "1,2", "--vs", "torch,onnxruntime,openvino", "--compile")
    result = command("small_nets:one", *options, "--batch", "2", *SHORT, *outputs)
    assert result.exit_code == 0 and "onnxruntime takes no part: not installed" in result.output, result.output
    for title in ("small_nets:one 2x3x9x9 f32 fwd, 1 thread\n", "small_nets:one 2x3x9x9 bf16 fwd, 2 threads\n", "images/s", "openvino"):
        assert title in result.output
    rows = store.last_run("r.jsonl").rows.values()
    assert len(rows) == 2 * 2 * 7 and {r.who for r in rows} == {"fastcv", "torch", "compile", "openvino"}
    assert (folder / "r.html").exists() and (folder / "r.png").exists() and "| small_nets:one | 2 |" in (folder / "r.md").read_text()
    # Nothing is measured again, and what is new is.
    raced: list[int] = []
    monkeypatch.setattr(models, "race", lambda *args: raced.append(args[2].shape[0]) or race_of(*args))
    race_of = model_race.race
    result = command("small_nets:one", *options, *SHORT, "--json", "r.jsonl", "--resume", "--batch", "2,3", "--threads", "1")
    assert result.exit_code == 0 and raced == [3] * 2 and len(store.read_runs("r.jsonl")) == 1, result.output


def test_precision_is_the_runs_and_put_back(folder: Path) -> None:
    before = torch.get_float32_matmul_precision()
    result = command("small_nets:one", "--size", "1x3x9x9", "--precision", "medium", "--json", "p.jsonl", "--vs", "none", *SHORT)
    assert result.exit_code == 0 and torch.get_float32_matmul_precision() == before, result.output
    assert json.loads((folder / "p.jsonl").read_text().splitlines()[0])["machine"]["float32_precision"] == "medium"


def test_one_model_that_does_not_run_stops_no_other(folder: Path) -> None:
    result = command("small_nets:two", "small_nets:one", "--size", "1x3x9x9", *SHORT, "--json", "r.jsonl", "--markdown", "r.md")
    assert result.exit_code == 2 and "small_nets:two does not run on 1x3x9x9: " in result.output, result.output
    assert {r.case for r in store.last_run("r.jsonl").rows.values()} == {"model-small_nets:one-1x3x9x9"} and (folder / "r.md").exists()


def test_a_wrong_fastcv_is_exit_code_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, mode: str) -> nn.Module:
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        return model

    monkeypatch.setattr(model_race, "optimize", broken)
    result = command("small_nets:one", "--size", "1x3x9x9", *SHORT)
    assert result.exit_code == 1 and "2 of fastcv's rows are wrong or failed" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "no model 'nothing'"),
        (("small_nets:absent",), "no attribute 'absent'"),
        (("small_nets:number",), "gives a int, not a torch.nn.Module"),
        (("small_nets:one", "--size", "axb"), "'axb' is no size"),
        (("small_nets:one", "--size", "7"), "--size 7: "),
        (("small_nets:one", "--size", "1x4x9x9"), "does not run on 1x4x9x9"),
        (("small_nets:one", "--size", "1x3x2x2"), "does not run on 1x3x2x2"),
        (("vit_b_16", "--size", "1x3x32x64"), "square"),
        (("small_nets:one", "--batch", "0"), "--batch '0'"),
        (("small_nets:one", "--threads", "two"), "--threads 'two'"),
        (("small_nets:one", "--dtype", "int8"), "--dtype int8"),
        (("small_nets:one", "--vs", "torch,faiss"), "--vs faiss"),
        (("small_nets:one", "--precision", "low"), "--precision low"),
        (("small_nets:one", "--resume"), "--resume needs the file"),
        (("small_nets:one", "--plot", "p.docx"), "--plot p.docx"),
        (("small_nets:one", "--html", "no/such/p.html"), "no/such/p.html cannot be written"),
        (("small_nets:one", "--json", "small_nets.py"), "small_nets.py, line 1"),
    ],
)
def test_bad_input_is_one_sentence(args: tuple[str, ...], message: str, folder: Path) -> None:
    if "--plot" in args or "--html" in args:
        pytest.importorskip("matplotlib")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    result = command(*(("--size", "1x3x9x9") if "--size" not in args else ()), *args, *SHORT)
    assert result.exit_code == 2 and message in result.output and len(result.output.strip().splitlines()) == 1, result.output
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


# ---- benchmarks/engines.py


def script(monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[Any, int]:
    module = loaded("benchmarks/engines.py")
    monkeypatch.setattr("sys.argv", ["engines.py", "--vs", "torch", "--seconds", "0", "--models", "lenet5", *args])
    return module, module.main()


def test_an_interrupted_table_keeps_its_races(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ROUNDS", (2, 2))
    real, raced = models.race, []

    def stops(name: str, model: Any, x: Tensor, train: bool, *rest: Any) -> Any:
        raced.append((x.shape[0], train))
        if len(raced) == 2:
            raise KeyboardInterrupt
        return real(name, model, x, train, *rest)

    monkeypatch.setattr(models, "race", stops)
    args = ("--output", str(tmp_path / "engines"), "--batches", "1", "2", "--training-batches", "2", "--dtypes", "f32")
    with pytest.raises(KeyboardInterrupt):
        script(monkeypatch, *args)
    lines = (tmp_path / "engines.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("lenet5,1,1x32x32,f32,fwd")
    # The rest is measured, in the order of the races, and nothing twice.
    assert script(monkeypatch, *args, "--resume")[1] == 0 and raced == [(1, False), (2, False), (2, False), (2, True)]
    kept = (tmp_path / "engines.csv").read_bytes()
    assert [line.split(",")[1:5:3] for line in kept.decode().splitlines()[1:]] == [["1", "fwd"], ["2", "fwd"], ["2", "fwd+bwd"]]
    page = (tmp_path / "engines.md").read_text()
    assert page.count("| lenet5 |") == 3
    (tmp_path / "engines.md").unlink()
    module, code = script(monkeypatch, *args, "--table")
    assert code == 0 and (tmp_path / "engines.md").read_text() == page and (tmp_path / "engines.csv").read_bytes() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engines.csv", "engines.md"] and len(raced) == 4
    # Another build's lines stay beside new ones, and both machines are named.
    changed = [line | {"build": "Another machine"} for line in module.read(tmp_path / "engines.csv")]
    module.write(tmp_path / "engines.csv", model_tables.csv_text(changed))
    assert script(monkeypatch, *args, "--resume", "--batches", "1", "--passes", "inference")[1] == 0
    page = (tmp_path / "engines.md").read_text()
    assert page.count("| lenet5 |") == 3 and "Another machine." in page and describe()["torch"] in page


def test_a_foreign_table_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engines.csv").write_text("a,b\n1,2\n")
    assert script(monkeypatch, "--output", str(tmp_path / "engines"))[1] == 2
    assert "is no table of engines" in capsys.readouterr().err and (tmp_path / "engines.csv").read_text() == "a,b\n1,2\n"
    assert script(monkeypatch, "--output", str(tmp_path / "none"), "--table")[1] == 2
    assert script(monkeypatch, "--output", str(tmp_path / "none"), "--batches", "0")[1] == 2
    assert script(monkeypatch, "--output", str(tmp_path / "none"), "--models", "resnet21")[1] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["engines.csv"]


def test_the_peers_are_pinned() -> None:
    pins = [line for line in (ROOT / "benchmarks" / "peers.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert {pin.partition("==")[0] for pin in pins} == {"onnx", "onnxruntime", "openvino"} and all(pin.partition("==")[2] for pin in pins)


def test_threads_of_a_race_are_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    with plan.threads(1):
        assert {r.threads for r in race(vs=()).values()} == {1}
