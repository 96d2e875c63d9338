"""What onnxruntime-training 1.19.2 makes of every operator, with its own gradients and after lowering, as a table.

`python tools/ort_training_operators.py` runs each case of `tests/grad` through it, in the environment that
`onnxft setup ort-training` makes, compares with torch in float64 and writes the table to
`artifacts/evidence/ort-training-operators.md`.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests" / "ort_training"))
from single_operators import Trial, build, run, whole

from onnxft.errors import OnnxftError
from onnxft.generators.ort_training.lowering import lower
from onnxft.generators.ort_training.lowering.gradient_function import FORWARD
from onnxft.ort_training_environment import find_python

OUT = Path(__file__).parent.parent / "artifacts" / "evidence" / "ort-training-operators.md"
HEAD = """# Operators in onnxruntime-training 1.19.2

Written by `python tools/ort_training_operators.py`: every case of the native rules (`tests/grad`), all inputs trained,
float32 on the CPU, compared with torch's gradients in float64 (1e-4).

* Its own gradients: how many cases are right, wrong (a wrong number or shape, without an error), fail (an error when
  the graph is built or run), or are absent (no gradient is registered).
* Lowered: how many cases are right in an artifact of `--generator ort-training`, and by what: *own* is
  onnxruntime-training's gradient, *rule* the native rule, registered as the gradient of a function.

"""


def outcome(result: str) -> str:
    """One word for what `run` says of a model."""
    if not result:
        return "right"
    if "has not been registered" in result:
        return "absent"
    if result == "crash":
        return "crash"
    return "fails" if result.startswith("error: ") else "wrong"


def own(trials: list[Trial], python: str) -> list[str]:
    """Outcomes of onnxruntime-training's own gradients."""
    with tempfile.TemporaryDirectory() as folder:
        return [outcome(result) for result in run(python, Path(folder), [(t, *build(t)) for t in trials])]


def lowered(trials: list[Trial], python: str) -> tuple[list[str], list[str]]:
    """Outcomes after lowering, and by what they came."""
    found, by, models = ["refused"] * len(trials), [""] * len(trials), []
    for k, trial in enumerate(trials):
        model, trained = build(trial)
        try:
            model = lower(model, list(trained), "loss")
        except OnnxftError:
            continue
        by[k] = (
            "rule" if any(n.domain == FORWARD and n.op_type.startswith(trial.case.op) for n in model.graph) else "own"
        )
        models.append((k, (trial, model, trained)))
    with tempfile.TemporaryDirectory() as folder:
        results = run(python, Path(folder), [model for _, model in models])
    for (k, _), result in zip(models, results, strict=True):
        found[k] = outcome(result)
    return found, by


def counted(words: list[str]) -> str:
    """`right 3, wrong 1`, or the word alone where it is one."""
    counts = Counter(word for word in words if word)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{word} {n}" for word, n in counts.most_common())


def main() -> None:
    """Write the table, and print the operators that are not right."""
    trials, python = whole(), find_python()
    before = own(trials, python)
    after, by = lowered(trials, python)
    rows = defaultdict(list)
    for k, trial in enumerate(trials):
        rows[trial.case.op].append(k)
    lines = ["| Operator | Cases | Its own gradients | Lowered | By |", "|---|---:|---|---|---|"]
    for op, ks in sorted(rows.items()):
        cells = [counted([column[k] for k in ks]) for column in (before, after, by)]
        lines.append(f"| {op} | {len(ks)} | {' | '.join(cells)} |")
        if cells[1] != "right":
            print(op, cells[1])
    total = f"\n{len(rows)} operators, {len(trials)} cases: {counted(before)}; lowered: {counted(after)}.\n"
    OUT.write_text(HEAD + "\n".join(lines) + "\n" + total, encoding="utf-8")


if __name__ == "__main__":
    main()
