"""The lessons: each stands alone, says its ten lines, and the page gathers them. The small ones are run."""

import importlib.util
import io
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOM = Path(__file__).resolve().parent.parent / "examples" / "lessons"
SCRIPTS = sorted(ROOM.glob("[0-9][0-9]_*.py"))
SMALL = ("15", "17", "18", "21")


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_lessons", ROOM / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOM))


def test_the_course_is_covered(builder) -> None:
    assert len(SCRIPTS) >= 20 and builder.scripts() == SCRIPTS
    assert [s.stem[:2] for s in SCRIPTS] == [f"{i:02d}" for i in range(1, len(SCRIPTS) + 1)]
    for script in SCRIPTS:
        assert callable(builder.load(script).lesson), script.name


def test_the_page_has_a_picture_and_ten_lines_for_each(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    output = tmp_path / "out"
    command = [sys.executable, str(ROOM / "build.py"), "--output", str(output), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (output / "index.html").read_text()
    for prefix in SMALL:
        (picture,) = output.glob(f"{prefix}_*.png")
        assert pillow.open(picture).width >= 800 and f'src="{picture.name}"' in page
        lines = picture.with_suffix(".txt").read_text().splitlines()[1:]
        assert 4 <= len(lines) <= 10 and all(len(line) <= 130 for line in lines), picture.name
    assert "nan" not in page.lower().split() and "deconvolution" in page
    (output / "mine.txt").write_text("kept")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "mine.txt, which this program did not write" in again.stderr and (output / "mine.txt").exists()


TRAINED = ("07", "09", "10", "11", "12", "13", "14", "19")


@pytest.mark.parametrize("number", TRAINED)
def test_lessons_that_train_run_on_a_little_training(builder, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """One epoch of two batches in place of all: the script, its networks and the text's numbers, not what they show."""
    import common

    import fastcv.train.loop as loop

    monkeypatch.setattr(loop.Trainer, "batches", lambda self, epoch, whole=loop.Trainer.batches: itertools.islice(whole(self, epoch), 2))
    monkeypatch.setattr(common, "fit", lambda *a, whole=common.fit, **k: whole(*a, **k | {"epochs": min(k.get("epochs", 6), 2)}))
    (script,) = ROOM.glob(f"{number}_*.py")
    module = builder.load(script)
    for name, least in {"EPOCHS": 2, "STEPS": 100, "TRIED": 60, "SEEDS": (0,), "IMAGES": 48}.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, least)
    lesson = module.lesson()
    lines = lesson.lines()
    assert 4 <= len(lines) <= 10 and all(len(line) <= 130 for line in lines)
    lesson.figure.savefig(io.BytesIO())


def test_unknown_lessons_are_named() -> None:
    done = subprocess.run([sys.executable, str(ROOM / "build.py"), "99"], capture_output=True, text=True)
    assert done.returncode == 2 and "no lesson is named 99" in done.stderr
