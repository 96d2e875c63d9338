from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import pytest

from onnxft.errors import SelectionError
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.step.select import select

EMPTY = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=IR_VERSION)
FORWARD = Forward(
    "net",
    EMPTY,
    EMPTY,
    (
        Tensor("stem.weight", (3, 5), "float32", "parameter"),
        Tensor("stem.running_mean", (3,), "float32", "buffer"),
        Tensor("body.0.weight", (4, 3), "float32", "parameter"),
        Tensor("body.0.table", (7,), "int64", "parameter"),
        Tensor("body.1.weight", (2, 4), "float32", "parameter"),
        Tensor("unused.weight", (6,), "float32", "parameter", used=False),
        Tensor("embed.weight", (9, 2), "float32", "parameter", tied_to=("head.weight",)),
        Tensor("positions.weight", (5, 2), "float32", "parameter", frozen="frozen there"),
    ),
    ("x",),
    ("output",),
)
ALL = ("stem.weight", "body.0.weight", "body.1.weight", "embed.weight")


@pytest.mark.parametrize(
    ("train", "freeze", "chosen"),
    [
        (["*"], [], ALL),
        (["*"], ["body.*"], ("stem.weight", "embed.weight")),
        (["body.*"], [], ("body.0.weight", "body.1.weight")),
        (["body.[1-9].*"], [], ("body.1.weight",)),
        (["body.?.weight"], ["body.0.weight"], ("body.1.weight",)),
        (["embed.weight", "stem.weight"], [], ("stem.weight", "embed.weight")),  # the order of the model
        (["head.weight"], [], ("embed.weight",)),  # a tied tensor by its other name
        (["*"], ["head.*"], ("stem.weight", "body.0.weight", "body.1.weight")),
        (["posi*", "stem.weight"], [], ("stem.weight", "positions.weight")),
        (["*", "positions.weight"], ["[be]*"], ("stem.weight", "positions.weight")),
        (["stem.*"], [], ("stem.weight",)),  # its statistics are no parameter
    ],
)
def test_globs_choose(train: Sequence[str], freeze: Sequence[str], chosen: tuple[str, ...]) -> None:
    selection = select(FORWARD, train, freeze)
    assert selection.trainable == chosen
    assert selection.groups == dict.fromkeys(chosen, "default")


def test_what_cannot_be_trained_is_skipped_with_its_reason() -> None:
    assert select(FORWARD).skipped == {
        "stem.running_mean": "a buffer, not a parameter",
        "body.0.table": "its type int64 has no gradient",
        "unused.weight": "the model does not read it",
        "positions.weight": "frozen there, and no pattern but * names it",
    }


@pytest.mark.parametrize(
    ("train", "freeze", "words"),
    [
        (["boby.*"], [], ["'boby.*' matches no parameter of 'net'", "'body.0.weight'"]),
        (["stem.wieght"], [], ["'stem.wieght'", "Did you mean 'stem.weight'"]),
        (["heed.weight"], [], ["Did you mean 'head.weight'"]),
        (["*"], ["stem.wait"], ["'stem.wait'"]),
        (["STEM.*"], [], ["'STEM.*' matches no parameter"]),  # names are case-sensitive everywhere
        (["*"], ["*"], ["nothing is left to train of 'net'", "freeze=['*']"]),
        (["stem.running_*"], [], ["nothing is left", "stem.running_mean (a buffer, not a parameter)"]),
        (["unused.*"], [], ["nothing is left", "the model does not read it"]),
    ],
)
def test_a_selection_of_nothing_is_an_error(train: Sequence[str], freeze: Sequence[str], words: list[str]) -> None:
    with pytest.raises(SelectionError) as err:
        select(FORWARD, train, freeze)
    for word in words:
        assert word in str(err.value)
