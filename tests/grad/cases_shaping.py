"""Cases of operators that move values."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case
from torch.nn import functional

A = (2, 3, 4)
END = 2**63 - 1


def ints(*values):
    return np.array(values, np.int64)


def sliced(starts, stops, axes, steps, index, shape=(3, 5, 7), batch=()):
    def torch_slice(x, *_):
        for axis, step in zip(axes, steps, strict=True):
            x = x.flip(axis) if step < 0 else x
        return x[index]

    inputs = (shape, ints(*starts), ints(*stops), ints(*axes), ints(*steps))
    return Case("Slice", inputs, torch_slice, note=f"{starts}:{stops}:{steps} of {axes}", batch=batch)


def padded(mode, pads, torch_pads, shape=(2, 4, 5), note="", **more):
    def torch_pad(x, *_):
        for axis_pads in torch_pads:
            x = functional.pad(x, axis_pads, mode={"edge": "replicate"}.get(mode, mode))
        return x

    return Case(
        "Pad", (shape, ints(*pads), *more.pop("inputs", ())), torch_pad, {"mode": mode}, f"{pads} {note}", **more
    )


def depth_to_space(x, crd):
    b, c, h, w = x.shape
    if crd:
        return functional.pixel_shuffle(x, 2)
    return x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


def space_to_depth(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def crop_pad(x, shape, axes):
    """Half of the difference before, the rest behind."""
    for axis, size in zip(range(x.ndim) if axes is None else axes, shape, strict=True):
        axis %= x.ndim
        more = size - x.shape[axis]
        before = more // 2 if more >= 0 else -(-more // 2)
        x = functional.pad(x, [*[0, 0] * (x.ndim - 1 - axis), before, more - before])
    return x


def reverse(x, lengths, batch_axis):
    rows = [
        torch.cat([row[:n].flip(0), row[n:]])
        for row, n in zip(x.transpose(0, batch_axis), lengths.tolist(), strict=True)
    ]
    return torch.stack(rows).transpose(0, batch_axis)


CASES = [
    Case("Reshape", (A, ints(4, 6)), lambda x, _: x.reshape(4, 6)),
    Case("Reshape", (A, ints(-1, 12)), lambda x, _: x.reshape(-1, 12), batch=(0,), note="rest of the values"),
    Case("Reshape", (A, ints(0, 4, -1)), lambda x, _: x.reshape(2, 4, 3), batch=(0,)),
    *(
        Case("Flatten", (A,), lambda x, a=axis: x.reshape(int(np.prod(A[:a])), -1), {"axis": axis}, batch=(0,))
        for axis in (0, 1, 2)
    ),
    Case("Squeeze", ((2, 1, 3, 1), ints(1, -1)), lambda x, _: x.reshape(2, 3), batch=(0,)),
    Case("Squeeze", ((1, 3, 1),), lambda x: x.squeeze()),
    Case("Unsqueeze", (A, ints(0, -1)), lambda x, _: x[None, ..., None], batch=(0,)),
    Case("Transpose", (A,), lambda x: x.permute(2, 0, 1), {"perm": [2, 0, 1]}, batch=(0,)),
    Case("Transpose", (A,), lambda x: x.permute(2, 1, 0), batch=(0,), note="reversed by default"),
    Case("Transpose", ((3, 5),), lambda x: x.T, {"perm": [1, 0]}, batch=(0,)),
    Case("Expand", ((3, 1), ints(2, 3, 4)), lambda x, _: x.expand(2, 3, 4)),
    Case("Expand", ((2, 1, 4), ints(3, 1)), lambda x, _: x.expand(2, 3, 4), batch=(0,)),
    Case("Concat", (A, (2, 1, 4), (2, 2, 4)), lambda *xs: torch.cat(xs, 1), {"axis": 1}, batch=(0, 1, 2)),
    Case("Concat", ((3, 2), (1, 2)), lambda *xs: torch.cat(xs, 0), {"axis": -2}),
    Case("Concat", ((3, 2), (3, 2)), lambda *xs: torch.cat(xs, 0), {"axis": 0}, batch=(0, 1)),
    Case("Concat", (A,), lambda x: x * 1, {"axis": 0}, batch=(0,)),
    Case(
        "Split", ((2, 6), ints(1, 2, 3)), lambda x, _: x.split([1, 2, 3], 1), {"axis": 1}, outputs=3, read=3, batch=(0,)
    ),
    Case(
        "Split",
        ((2, 6), ints(1, 2, 3)),
        lambda x, _: x.split([1, 2, 3], 1)[0],
        {"axis": -1},
        outputs=3,
        batch=(0,),
        note="two parts unread",
    ),
    Case("Split", ((5, 2),), lambda x: x.split([3, 2]), {"num_outputs": 2}, outputs=2, read=2),
    sliced([1, 2], [3, 7], [1, 2], [1, 1], np.s_[:, 1:3, 2:7], batch=(0,)),
    sliced([0, 1], [END, END], [-2, -1], [2, 3], np.s_[:, 0::2, 1::3], batch=(0,)),
    sliced([-4], [-1], [2], [2], np.s_[..., -4:-1:2], batch=(0,)),
    sliced([-1], [-END], [2], [-1], np.s_[...], batch=(0,)),
    sliced([-2], [0], [2], [-2], np.s_[..., 1:6:2], batch=(0,)),
    sliced([1], [END], [0], [1], np.s_[1:]),
    sliced([1, 0], [END, 5], [0, 1], [1, 1], np.s_[1:], batch=(0,)),
    # Bounds that only the run knows.
    *(
        Case(
            "Slice",
            ((3, 5, 4), ints(*starts), ints(*stops), ints(*axes)),
            function,
            runtime=(1, 2),
            batch=(0,),
            note=f"{starts}:{stops} of {axes} at run time",
        )
        for starts, stops, axes, function in [
            ([1], [4], [1], lambda x, *_: x[:, 1:4]),
            ([-3, 1], [END, -1], [1, 2], lambda x, *_: x[:, -3:, 1:-1]),
        ]
    ),
    # Of a symbolic axis, whose length only the run knows.
    sliced([0], [1], [0], [1], np.s_[:1], batch=(0,)),
    sliced([1], [-1], [0], [1], np.s_[1:-1], shape=(4, 5, 2), batch=(0,)),
    sliced([-2], [END], [0], [1], np.s_[-2:], batch=(0,)),
    sliced([-9], [2], [0], [1], np.s_[:2], batch=(0,)),
    sliced([9], [END], [0], [1], np.s_[9:], batch=(0,), shape=(3, 2)),
    Case("Slice", ((3, 5), ints(1, 0), ints(3, 4)), lambda x, *_: x[1:3, 0:4], note="axes by default"),
    padded("constant", [0, 1, 0, 0, 2, 3], [(0, 3, 1, 2)], batch=(0,)),
    padded("constant", [2, 0, 0, 1, 0, 0], [(0, 0, 0, 0, 2, 1)], batch=(0,)),
    padded("constant", [2, 0, 0, 0, 1, 0], [(0, 0, 0, 1, 2, 0)], batch=(0,)),
    padded("constant", [0, -1, 2, 0, 1, -2], [(2, -2, -1, 1)], batch=(0,)),
    Case(
        "Pad",
        ((2, 3), ints(1, 2), np.array(0.5), ints(1)),
        lambda x, pads, value, axes: torch.cat([value.expand(2, 1), x, value.expand(2, 2)], 1),
        note="trained value, axes given",
        batch=(0,),
    ),
    padded("edge", [0, 0, 1, 0, 0, 3], [(1, 3)], batch=(0,)),
    padded("reflect", [0, 0, 2, 0, 0, 4], [(2, 4)], batch=(0,)),
    padded("reflect", [0, 0, 1, 2, 0, 0, 3, 0], [(2, 0, 1, 3)], shape=(2, 1, 4, 5), batch=(0,)),
    padded("edge", [0, 0, 0, 2, 0, 0, 3, 0], [(2, 0, 0, 3)], shape=(2, 1, 4, 5), batch=(0,)),
    padded("edge", [0, -1, 2, 0, 1, -2], [(0, 0, -1, 1), (2, 0), (0, -2)], batch=(0,)),
    padded("reflect", [0, 2, -1, 0, -1, 3], [(0, 0, 2, 0), (0, 0, 0, -1), (-1, 3)], shape=(2, 5, 7), batch=(0,)),
    *(
        padded(mode, [2, -1, 1, 0], [(2, 1), (0, 0, -1, 0)], inputs=(None, ints(-1, 1)), note="axes", batch=(0,))
        for mode in ("constant", "edge", "reflect")
    ),
    Case(
        "Pad",
        ((2, 3, 4), ints(0, 1, -1, 0, -1, 2), np.array(0.5)),
        lambda x, pads, value: torch.cat(
            [
                torch.cat([value.expand(2, 1, 3), x[:, :2, 1:]], 1),
                value.expand(2, 3, 2),
            ],
            2,
        ),
        note="trained value, negative pads",
        batch=(0,),
    ),
    *(
        Case(
            "CenterCropPad",
            (A, ints(*shape)),
            lambda x, _, s=shape, a=axes: crop_pad(x, s, a),
            {} if axes is None else {"axes": axes},
            note=f"{shape}",
            batch=(0,),
        )
        for shape, axes in [
            ((4, 2, 3), None),
            ((1, 6, 7), None),
            ((6, 3), [1, 2]),
            ((1, 9), [1, -1]),
            ((7, 8), [2, 1]),
        ]
    ),
    *(
        Case(
            "ReverseSequence",
            (shape, np.array(lengths)),
            lambda x, n, b=batch_axis: reverse(x, n, b),
            {"batch_axis": batch_axis, "time_axis": 1 - batch_axis},
            runtime=(1,),
            note=f"{lengths}",
            batch=(0, 1) if batch_axis == 0 else (),
        )
        for shape, lengths, batch_axis in [
            ((3, 4), [1, 4, 2], 0),
            ((3, 4, 2), [3, 1, 4], 0),
            ((4, 3), [2, 4, 1], 1),
            ((4, 3, 5), [4, 3, 2], 1),
        ]
    ),
    Case("Tile", (A, ints(1, 2, 3)), lambda x, _: x.repeat(1, 2, 3), batch=(0,)),
    Case("Tile", (A, ints(2, 1, 1)), lambda x, _: x.repeat(2, 1, 1), note="along axis 0"),
    *(
        Case(
            "DepthToSpace",
            ((2, 12, 3, 5),),
            lambda x, m=mode: depth_to_space(x, m == "CRD"),
            {"blocksize": 2, "mode": mode},
            batch=(0,),
        )
        for mode in ("DCR", "CRD")
    ),
    Case("SpaceToDepth", ((2, 3, 4, 6),), space_to_depth, {"blocksize": 2}, batch=(0,)),
    Case("Trilu", ((2, 3, 4),), lambda x: x.triu(), batch=(0,)),
    Case("Trilu", ((2, 3, 4), np.array(-1)), lambda x, k: x.tril(-1), {"upper": 0}, batch=(0,)),
]
