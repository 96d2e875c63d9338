"""Which memory a graph takes: against hand numbers, and against what the runtime does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxft.errors import ArtifactError
from onnxft.runtime.arena import Arena
from onnxft.runtime.graph_values import Graph, read_graph
from onnxft.runtime.liveness import Event, execution_order, folded, lives

SIZES = {"batch": 7}
VALUE = 7 * 5 * 4
"""Bytes of (batch, 5) in float32."""


def graph(
    place: Path,
    nodes: list[tuple[str, str, str]],
    outputs: dict[str, list[int | str]],
    constants: dict[str, np.ndarray] | None = None,
    shapes: dict[str, list[int | str | None]] | None = None,
    inputs: dict[str, list[int | str]] | None = None,
    **attributes: dict[str, Any],
) -> Graph:
    """A graph of `type, inputs, outputs`, read back from a file; values are (batch, 5) unless `shapes` says."""
    shapes = shapes or {}
    made = [
        helper.make_node(kind, given.split(), gives.split(), name=gives, **attributes.get(gives, {}))
        for kind, given, gives in nodes
    ]
    inner = {n for node in made for n in node.output} - set(outputs)
    model = helper.make_model(
        helper.make_graph(
            made, "g",
            [value(n, s) for n, s in (inputs or {"x": ["batch", 5]}).items()],
            [value(n, s) for n, s in outputs.items()],
            [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
            value_info=[value(n, shapes.get(n, ["batch", 5])) for n in sorted(inner)],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    onnx.save(model, place / "graph.onnx")
    return read_graph(place / "graph.onnx")


def value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        # Neg makes a new value each time; the third one lies where the first one was.
        ([("Neg", "x", "a"), ("Neg", "a", "b"), ("Neg", "b", "c"), ("Neg", "c", "y")], {}, 2 * VALUE),
        # Relu writes over its input, but neither over what the caller gave nor into what it takes.
        ([("Relu", "x", "a"), ("Relu", "a", "b"), ("Relu", "b", "c"), ("Relu", "c", "y")], {}, 2 * VALUE),
        # So does ScatterElements, whose indices and updates are small.
        ([("Neg", "x", "a"), ("ScatterElements", "a i u", "b"), ("Neg", "b", "y")],
         {"inputs": {"x": ["batch", 5], "i": [1, 5], "u": [1, 5]}}, 2 * VALUE),
        # While `a` is still read, it cannot be written over.
        ([("Relu", "x", "a"), ("Relu", "a", "b"), ("Add", "a b", "y")], {}, 3 * VALUE),
        # A view is its input's memory, as long as any of them is read.
        ([("Neg", "x", "a"), ("Identity", "a", "b"), ("Neg", "a", "c"), ("Add", "b c", "y")], {}, 3 * VALUE),
        # What the caller gave memory for is no buffer of the runtime.
        ([("Neg", "x", "a"), ("Neg", "a", "y")], {"given": ["y"]}, VALUE),
        # Computed when the session opens.
        ([("Neg", "w", "a"), ("Mul", "x a", "y")], {"constants": {"w": np.ones(5, np.float32)}}, VALUE),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_hand(
    nodes: list[tuple[str, str, str]], options: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    given = options.pop("given", [])
    found = lives(graph(tmp_path, nodes, {"y": ["batch", 5]}, **options), SIZES, given)
    assert found.peak()[0] == expected
    assert found.guessed == 0


def test_a_dead_buffer_is_kept_for_the_next_value_of_its_shape(tmp_path: Path) -> None:
    nodes = [
        ("Neg", "x", "a"),
        ("ReduceSum", "a", "s"),
        ("Expand", "s shape", "l"),
        ("Neg", "l", "b"),
        ("Neg", "b", "y"),
    ]
    made = graph(
        tmp_path, nodes, {"y": ["batch", 5]}, {"shape": np.array([7, 5])}, {"s": ["batch", 1], "l": ["batch", 5]}
    )
    kept = [e for e in lives(made, SIZES).events if e.buffer == "a"]
    assert [(e.taken, e.node) for e in kept] == [(True, "Neg"), (False, "Neg")]  # `l` took it over
    assert {e.buffer for e in lives(made, SIZES).events} == {"a", "s", "b", "y"}


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_the_peak_grows_with_the_batch(batch: int, tmp_path: Path) -> None:
    nodes = [("Neg", "x", "a"), ("Neg", "a", "b"), ("Mul", "a b", "y")]
    assert lives(graph(tmp_path, nodes, {"y": ["batch", 5]}), {"batch": batch}).peak()[0] == 3 * batch * 5 * 4


@pytest.mark.parametrize(("read_twice", "expected"), [(False, 0), (True, 1 * 2 * 8 * 9 * 4)])
def test_padding_is_a_part_of_the_convolution_that_alone_reads_it(
    read_twice: bool, expected: int, tmp_path: Path
) -> None:
    nodes = [("Pad", "x pads", "p"), ("Conv", "p w", "c")] + ([("ReduceSum", "p", "s")] if read_twice else [])
    outputs: dict[str, list[int | str]] = {"c": ["batch", 3, 6, 7], **({"s": [1, 1, 1, 1]} if read_twice else {})}
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": np.ones((3, 2, 3, 3), np.float32)}
    made = graph(tmp_path, nodes, outputs, constants, {"p": ["batch", 2, 8, 9]}, {"x": ["batch", 2, 6, 7]})
    assert lives(made, {"batch": 1}).peak()[1].get("p", 0) == expected


def test_batch_norm_is_a_part_of_a_frozen_convolution_and_not_of_a_trained_one(tmp_path: Path) -> None:
    constants = {n: np.ones(3, np.float32) for n in "sbmv"} | {"w": np.ones((3, 2, 1, 1), np.float32)}
    nodes = [("Conv", "x w", "c"), ("BatchNormalization", "c s b m v", "y")]
    shape: list[int | str] = ["batch", 3, 6, 7]
    for trained, expected in ((False, 1), (True, 2)):
        inputs: dict[str, list[int | str]] = {"x": ["batch", 2, 6, 7], **({"w": [3, 2, 1, 1]} if trained else {})}
        held = {n: a for n, a in constants.items() if n != "w" or not trained}
        made = graph(tmp_path, nodes, {"y": shape}, held, {"c": list(shape)}, inputs)
        assert lives(made, {"batch": 5}).peak()[0] == expected * 5 * 3 * 6 * 7 * 4


@pytest.mark.parametrize(
    ("nodes", "constants", "shape", "expected"),
    [
        # A view has its input's elements.
        ([("Reshape", "x s", "a"), ("Neg", "a", "y")], {"s": np.array([-1, 7])}, [None, 7], [VALUE]),
        # (M, N) of a product from (M, K) and (K, N).
        ([("Gemm", "x w", "a"), ("Neg", "a", "y")], {"w": np.ones((5, 3), np.float32)}, [None, 3], [7 * 3 * 4, VALUE]),
    ],
)  # fmt: skip
def test_open_dimensions_follow_from_the_inputs(
    nodes: list[tuple[str, str, str]], constants: dict[str, Any], shape: list[Any], expected: list[int], tmp_path: Path
) -> None:
    found = lives(graph(tmp_path, nodes, {"y": ["batch", 5]}, constants, {"a": shape}), SIZES)
    assert found.guessed == 0
    assert [e.size for e in found.events if e.taken] == expected


def test_what_is_unknown_is_counted_as_its_input_and_told(tmp_path: Path) -> None:
    nodes = [("Compress", "x c", "a"), ("Neg", "a", "y")]
    made = graph(tmp_path, nodes, {"y": ["batch", 5]}, None, {"a": [None, 5]}, {"x": ["batch", 5], "c": ["batch"]})
    found = lives(made, SIZES)
    assert (found.guessed, found.events[0].size) == (1, VALUE)


def test_constants_and_shapes_are_folded_and_random_numbers_are_not(tmp_path: Path) -> None:
    nodes = [
        ("Shape", "x", "s"), ("Neg", "w", "v"), ("Shape", "u", "t"), ("RandomNormalLike", "w", "r"),
        ("Mul", "v r", "y"),
    ]  # fmt: skip
    made = graph(
        tmp_path, nodes, {"y": [5]}, {"w": np.ones(5, np.float32)}, {"s": [2], "t": [2]},
        {"x": ["batch", 5], "u": ["batch", "rows"]},
    )  # fmt: skip
    assert folded(made, SIZES) == {"s", "v"}
    assert folded(made, {**SIZES, "rows": 3}) == {"s", "v", "t"}


def test_the_body_of_a_loop_counts_while_it_runs(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["i"], ["n"]), helper.make_node("Mul", ["n", "outer"], ["o"])], "body",
        [value("i", [11])], [value("o", [11])], value_info=[value("n", [11])],
    )  # fmt: skip
    nodes = [("Neg", "w", "outer"), ("Scan", "x", "y")]
    scan = {"body": body, "num_scan_inputs": 1}
    made = graph(tmp_path, nodes, {"y": ["batch", 11]}, None, {"outer": [11]}, {"x": ["batch", 11], "w": [11]}, y=scan)
    assert made.size == 4
    assert made.nodes[1].reads == ("x", "outer")
    assert lives(made, SIZES).peak()[0] == 11 * 4 + 7 * 11 * 4 + 2 * 11 * 4


DAG = [
    ("Exp", "x", "a"), ("Sigmoid", "x", "b"), ("Tanh", "a", "c"), ("Sqrt", "b", "d"), ("Mul", "a b", "e"),
    ("Sub", "c d", "f"), ("Erf", "e", "g"), ("Softplus", "x", "h"), ("Add", "g h", "y"), ("Abs", "f", "z"),
    ("Neg", "a", "u"),
]  # fmt: skip


def test_the_order_is_that_of_the_runtime(tmp_path: Path) -> None:
    made = graph(tmp_path, DAG, {n: ["batch", 5] for n in "yzu"})
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(str(tmp_path / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((7, 5), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")]
    assert ran != [kind for kind, _, _ in DAG]
    assert [node.op_type for node in execution_order(list(made.nodes))] == ran


def events(*steps: str, **sizes: int) -> list[Event]:
    """`+a` takes a buffer, `-a` gives it back."""
    return [Event(step[1:], sizes[step[1:]], step[0] == "+") for step in steps]


def test_the_arena_holds_what_was_touched_once() -> None:
    arena = Arena()
    small = events("+a", "-a", "+b", "-b", a=300_000, b=500_000)
    arena.run(small)
    assert arena.resident == 500_000  # in the region of 1 MiB, `b` over `a`
    arena.run(small)
    assert arena.resident == 500_000
    arena.run(events("+a", "+b", a=600_000, b=500_000))
    assert arena.resident == 600_000 + 500_000  # `b` is too large for what `a` leaves of that region


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("text", b"no model"), ("none", b"\x08\x0a")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=name):
            read_graph(tmp_path / name)


def test_a_lookup_in_a_vector_has_as_many_elements_as_indices(tmp_path: Path) -> None:
    """Though the vector is longer, and the file leaves the number open."""
    looked_up = graph(
        tmp_path,
        [("Gather", "table i", "y"), ("Neg", "y", "z")],
        {"z": ["batch"]},
        constants={"table": np.zeros(1000, np.float32)},
        shapes={"y": [None]},
        inputs={"i": ["batch"]},
    )
    (taken,) = [e for e in lives(looked_up, SIZES, []).events if e.taken and e.buffer == "y"]
    assert taken.size == 4 * SIZES["batch"]
