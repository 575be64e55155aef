"""Runs the lessons and gathers them in one page: ``python examples/lessons/build.py [--output FOLDER] [NAMES ...]``.

The folder (lessons-output by default) gets one PNG per lesson, its text beside it, and index.html; it appears whole at the
end or not at all. Needs the extras data and plots of fastcv, and no network.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import sys
import time
from pathlib import Path
from string import Template

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>fastcv: lessons</title><meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { margin-top: 2.2em; font-size: 1.25em; } nav { columns: 2; } nav a { display: block; }
img { max-width: 100%; height: auto; } a { color: #1f5fa8; text-decoration: none; } code { font-size: 0.9em; color: #555; }
@media (max-width: 640px) { body { margin: 1em auto; } nav { columns: 1; } }
</style></head><body>
<h1>Lessons in computer vision, on fastcv's kernels</h1>
<p>Each lesson is a script in <code>examples/lessons</code>; the numbers in the texts are those of the run that made this page
(scikit-learn's digits and sample photographs, $threads thread$s, $seconds s in all).</p>
<nav>$contents</nav>
$sections
</body></html>
""")


def scripts() -> list[Path]:
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def load(script: Path):
    """The module of a lesson."""
    spec = importlib.util.spec_from_file_location(f"lesson_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(output: str, chosen: list[Path]) -> None:
    import torch

    from fastcv.train.output import check_output, replaced_folder

    every = scripts()
    ours = ("index.html", *(f"{s.stem}.{kind}" for s in every for kind in ("png", "txt")))
    check_output(output, ours)
    contents, sections, begin = [], [], time.perf_counter()
    with replaced_folder(output, ours) as folder:
        for script in chosen:
            start = time.perf_counter()
            torch.manual_seed(0)
            lesson = load(script).lesson()
            lesson.figure.savefig(folder / f"{script.stem}.png")
            lines = lesson.lines()
            (folder / f"{script.stem}.txt").write_text("\n".join((lesson.title, *lines, "")))
            title, text = html.escape(lesson.title), html.escape(" ".join(lines))
            contents.append(f'<a href="#{script.stem}">{title}</a>')
            picture = f'<a href="{script.stem}.png"><img src="{script.stem}.png" alt="{title}"></a>'
            sections.append(f'<h2 id="{script.stem}">{title}</h2>\n{picture}\n<p>{text}</p>\n<p><code>{script.name}</code></p>')
            print(f"{time.perf_counter() - start:6.1f} s  {lesson.title}", flush=True)
        threads, seconds = torch.get_num_threads(), f"{time.perf_counter() - begin:.0f}"
        values = {"threads": threads, "s": "s" * (threads != 1), "seconds": seconds}
        page = PAGE.substitute(values, contents="\n".join(contents), sections="\n".join(sections))
        (folder / "index.html").write_text(page)
    print(f"{output}/index.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="lessons by the beginning of their names, such as 03; all by default")
    parser.add_argument("--output", default="lessons-output")
    parser.add_argument("--threads", type=int, default=1, help="small networks gain little from more")
    arguments = parser.parse_args()
    missing = [p for m, p in {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}.items() if importlib.util.find_spec(m) is None]
    if missing:
        parser.error(f"the lessons need {' and '.join(missing)}: pip install 'fastcv[data,plots]'")
    chosen = [s for s in scripts() if not arguments.names or any(s.stem.startswith(n) for n in arguments.names)]
    unknown = [n for n in arguments.names if not any(s.stem.startswith(n) for s in scripts())]
    if unknown:
        parser.error(f"no lesson is named {unknown[0]}; there are {', '.join(s.stem for s in scripts())}")
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    import torch

    import fastcv

    torch.set_num_threads(arguments.threads)
    try:
        build(arguments.output, chosen)
    except (OSError, fastcv.NotBuiltError) as error:
        print(f"lessons: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
