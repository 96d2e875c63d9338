"""Cases of the recurrent layers: directions, padding, states and biases given or absent, any outputs read."""

from __future__ import annotations

import numpy as np
from checking import Case, Range
from reference_recurrent import STEPS, recurrent

from onnxft.grad.rules.recurrent_walk import UNROLLED

HIDDEN = 3
EMPTY = np.array([3, 0, 5, 4], np.int32)
RAGGED = np.array([3, 5, 1, 4], np.int32)
BOTH = "bidirectional"


def layer(
    op,
    time=5,
    batch=4,
    size=2,
    bias=True,
    lens=None,
    states="",
    p=False,
    read=(0,),
    direction="forward",
    note="",
    **attrs,
):
    """`states`: the initial ones given, of h and c; `read`: the outputs read, 0 for Y, 1 for Y_h, 2 for Y_c."""
    count, gates = 2 if direction == BOTH else 1, STEPS[op][1]
    state = (count, batch, HIDDEN)
    inputs = [
        (time, batch, size),
        Range((count, gates * HIDDEN, size), -0.9, 0.9),
        Range((count, gates * HIDDEN, HIDDEN), -0.9, 0.9),
        Range((count, 2 * gates * HIDDEN), -0.9, 0.9) if bias else None,
        None if lens is None else lens,
        state if "h" in states else None,
        state if "c" in states else None,
        Range((count, 3 * HIDDEN), -0.9, 0.9) if p else None,
    ]
    while inputs[-1] is None:
        inputs.pop()

    def compute(*tensors):
        found = recurrent(op, *tensors, direction=direction, **attrs)
        return [found[i] for i in read]

    symbolic = {0: {0: "sequence", 1: "batch"}, 4: {0: "batch"}, 5: {1: "batch"}, 6: {1: "batch"}}
    reads = "read " + "".join(map(str, read))
    return Case(
        op,
        tuple(inputs),
        compute,
        {"hidden_size": HIDDEN, "direction": direction, **attrs},
        note=f"{note} {reads}".strip(),
        runtime=(4,) if lens is not None else (),
        outputs=3 if op == "LSTM" else 2,
        read=tuple(read),
        named={i: axes for i, axes in symbolic.items() if i < len(inputs) and inputs[i] is not None},
    )


def everywhere(op, **options):
    """Each direction, with and without padding."""
    return [
        layer(op, direction=direction, lens=lens, **options)
        for direction in ("forward", "reverse", BOTH)
        for lens in (None, RAGGED)
    ]


LONG = UNROLLED + 1
RAGGED_LONG = np.array([9, LONG, 1, 20], np.int32)
CASES = [
    *everywhere("RNN", states="h", read=(0, 1)),
    layer("RNN", activations=["Relu", "Sigmoid"], direction=BOTH, lens=RAGGED),
    layer("RNN", activations=["Sigmoid", "Tanh"], direction=BOTH, lens=RAGGED),
    layer("RNN", bias=False, read=(1,)),
    layer("RNN", lens=EMPTY, states="h", direction=BOTH, read=(0, 1), note="an empty row"),
    layer("RNN", time=1, states="h"),
    layer("RNN", time=LONG, lens=RAGGED_LONG, direction=BOTH, read=(0, 1)),
    *everywhere("GRU", states="h", read=(0, 1), linear_before_reset=1),
    *everywhere("GRU", states="h", read=(0, 1)),
    *(layer("GRU", bias=False, direction=BOTH, linear_before_reset=n) for n in (0, 1)),
    *(layer("GRU", read=(1,), direction="reverse", linear_before_reset=n) for n in (0, 1)),
    *(
        layer("GRU", lens=EMPTY, states="h", direction=BOTH, read=(0, 1), linear_before_reset=n, note="an empty row")
        for n in (0, 1)
    ),
    *(layer("GRU", time=1, direction=BOTH, linear_before_reset=n) for n in (0, 1)),
    *(layer("GRU", time=LONG, lens=RAGGED_LONG, direction=BOTH, read=(0, 1), linear_before_reset=n) for n in (0, 1)),
    *everywhere("LSTM", states="hc", read=(0, 1, 2)),
    *everywhere("LSTM", states="hc", p=True, read=(0, 1, 2)),
    *(layer("LSTM", lens=RAGGED, p=p, direction=BOTH, input_forget=1, read=(0, 2)) for p in (False, True)),
    *(layer("LSTM", direction=BOTH, read=read) for read in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2))),
    layer("LSTM", lens=EMPTY, states="hc", direction=BOTH, read=(0, 1, 2), note="an empty row"),
    layer("LSTM", activations=["sigmoid", "tanh", "tanh"], note="small letters"),
    layer("LSTM", states="h"),
    layer("LSTM", states="c", direction="reverse"),
    layer("LSTM", bias=False),
    layer("LSTM", bias=False, p=True, states="c", lens=RAGGED, direction="reverse"),
    layer("LSTM", time=1, states="hc", direction=BOTH, read=(0, 1, 2)),
    *(layer("LSTM", time=LONG, p=p, direction=BOTH, read=(0, 1, 2), states="hc") for p in (False, True)),
    layer("LSTM", time=LONG, lens=RAGGED_LONG, direction=BOTH, read=(0, 2)),
]  # fmt: skip
