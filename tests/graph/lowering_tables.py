"""Tables of cases: opset 13 to 17, the operators newer than opset 18, and those that runtimes fuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from lowering_cases import Lowered
from onnx import TensorProto
from torch.nn import functional

MIXED = np.array([[1.5, -2.25, 0.0, 3.0], [-0.5, 2.5, -3.5, 0.25], [4.0, -1.0, 0.5, 2.0]], np.float32)
INF = np.array([[1.0, np.inf, -np.inf], [np.nan, 0.0, -2.0]], np.float32)
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")
POSITIVE = np.random.default_rng(1).uniform(0.5, 2.0, (2, 3, 4)).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


UPWARD = [
    replace(case, stays=True)
    for case in [
        *(Lowered(op, 13, ((2, 3, 4),), {"axes": [1]}) for op in REDUCTIONS),
        *(Lowered(op, 17, ((2, 3, 4),), {"axes": [-1, 1], "keepdims": 0}) for op in REDUCTIONS),
        *(Lowered(op, 15, (POSITIVE,), {"axes": [2]}) for op in ("ReduceLogSum", "ReduceLogSumExp")),
        Lowered("ReduceMean", 13, ((2, 3, 4),)),
        Lowered("ReduceMax", 17, ((2, 3, 4),), {"keepdims": 0}),
        Lowered("ReduceSum", 13, ((2, 3, 4), ints(1)), {"keepdims": 0}, constant=(1,)),
        Lowered("Split", 13, ((2, 6, 3),), {"axis": 1}, outputs=3),
        Lowered("Split", 13, ((2, 7, 3), ints(2, 5)), {"axis": 1}, outputs=2, constant=(1,)),
        Lowered("Pad", 13, ((2, 3), ints(0, 1, 0, 2)), constant=(1,)),
        Lowered("Pad", 13, ((2, 3), ints(0, 1, 0, 2)), {"mode": "reflect"}, constant=(1,)),
        Lowered(
            "BatchNormalization", 13, ((2, 3, 4), (3,), (3,), (3,), POSITIVE[0, :, 0]), {"epsilon": 1e-3}, by="runtime"
        ),
        Lowered("BatchNormalization", 14, ((2, 3, 4), (3,), (3,), (3,), POSITIVE[0, :, 0])),
        Lowered(
            "RoiAlign",
            13,
            ((2, 3, 6, 5), np.array([[0.5, 0.5, 3.5, 4.0], [1, 1, 4, 4.5]], np.float32), ints(0, 1)),
            {"output_height": 2, "output_width": 3, "sampling_ratio": 2},
            batch=(),
            by="runtime",  # the reference has half pixels in every opset
        ),
        Lowered(
            "Resize", 13, ((2, 3, 4, 5), None, np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}, constant=(2,)
        ),
        Lowered(
            "Resize",
            13,
            ((2, 3, 4, 5), None, None, ints(2, 3, 7, 3)),
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            constant=(3,),
            batch=(),
        ),
        Lowered(
            "Resize",
            13,
            ((2, 3, 4, 5), np.zeros(0, np.float32), np.array([1, 1, 2, 1.5], np.float32)),
            {"mode": "cubic"},
            constant=(1, 2),
            by="runtime",
        ),
        Lowered("Dropout", 13, ((2, 3),)),
        Lowered("Softmax", 13, ((2, 3, 4),), {"axis": 1}),
        Lowered("CumSum", 13, ((2, 3, 4), ints(1)[0]), constant=(1,)),
        Lowered("ScatterElements", 13, ((3, 4), np.array([[0, 2], [1, 0]]), (2, 2)), {"axis": 0}, batch=()),
        Lowered("LSTM", 13, ((3, 2, 4), (1, 20, 4), (1, 20, 5)), {"hidden_size": 5}, outputs=3, batch=(), by="runtime"),
        Lowered("Shape", 13, ((2, 3),)),
        Lowered("Reshape", 13, ((2, 3, 4), ints(0, -1)), constant=(1,)),
    ]
]

ARITHMETIC = [
    *(
        Lowered(
            "CumProd", 26, ((2, 5, 3), np.array(axis)), {"reverse": r, "exclusive": e}, constant=(1,), by="reference"
        )
        for axis, r, e in ((1, 0, 0), (1, 1, 0), (-1, 0, 1), (1, 1, 1))
    ),
    Lowered("CumProd", 26, ((3, 1), np.array(1)), constant=(1,), by="reference"),
    Lowered("Mod", 28, (MIXED, np.array([1.5, -2.0, 0.5, -0.75], np.float32)), stays=True, by="reference"),
    Lowered("Mod", 28, (MIXED, np.array([1.5, -2.0, 0.5, -0.75], np.float32)), {"fmod": 1}, stays=True, by="reference"),
    Lowered("Mod", 28, (np.array([[7, -7, 5]]), np.array([3, 3, -2])), stays=True, by="reference"),
    Lowered("IsInf", 20, (INF,), stays=True),
    Lowered("IsInf", 20, (INF.astype(np.float16),), {"detect_negative": 0}, stays=True, by="reference"),
    *(
        Lowered(op, 20, (MIXED > 0, ints(axis)), {"keepdims": k}, constant=(1,), stays=True, by="reference")
        for op in ("ReduceMax", "ReduceMin")
        for axis, k in ((1, 1), (-1, 0))
    ),
    Lowered("ReduceMax", 20, (MIXED, ints(1)), constant=(1,), stays=True),
    Lowered("DFT", 20, ((2, 5, 4, 1),), stays=True),
    Lowered("DFT", 20, ((2, 5, 4, 1), None, np.array(1)), {"onesided": 1}, constant=(2,), stays=True),
    Lowered(
        "DFT",
        20,
        ((2, 5, 4, 2), np.array(6), np.array(-3)),
        {"inverse": 1},
        constant=(1, 2),
        stays=True,
        by="reference",
    ),
    Lowered(
        "Range",
        27,
        tuple(np.array(v, np.float16) for v in (1.0, 4.5, 0.5)),
        batch=(),
        stays=True,
        by="reference",
        unknown=True,
    ),
    Lowered(
        "Range",
        27,
        tuple(np.array(v, np.float32) for v in (1.0, 4.5, 0.5)),
        batch=(),
        stays=True,
        by="reference",
        unknown=True,
    ),
    Lowered("SpaceToDepth", 28, ((2, 3, 4, 6),), {"blocksize": 2, "mode": "CRD"}, by="reference"),
    Lowered("SpaceToDepth", 28, ((2, 3, 4, 6),), {"blocksize": 2, "mode": "DCR"}, stays=True, by="reference"),
    Lowered("DepthToSpace", 28, ((2, 12, 2, 3),), {"blocksize": 2, "mode": "CRD"}, stays=True, by="reference"),
    Lowered("Cast", 25, (MIXED,), {"to": TensorProto.INT32, "saturate": 1}, stays=True),
    Lowered("CastLike", 19, (MIXED, ints(1)), {"saturate": 1}, stays=True),
    Lowered("Equal", 19, (MIXED, MIXED.round()), stays=True),
]

ACTIVATIONS = [
    Lowered("Gelu", 20, ((2, 3, 4),), torch=functional.gelu),
    Lowered("Gelu", 20, ((2, 3, 4),), {"approximate": "tanh"}, torch=lambda x: functional.gelu(x, approximate="tanh")),
    Lowered("Swish", 24, ((2, 3, 4),), torch=functional.silu, by="reference"),
    Lowered("Swish", 24, ((2, 3, 4),), {"alpha": 1.7}, torch=lambda x: x * torch.sigmoid(1.7 * x), by="reference"),
    Lowered(
        "SwiGLU",
        28,
        ((2, 3), (2, 3)),
        {"alpha": 0.5},
        torch=lambda a, b: a * torch.sigmoid(0.5 * a) * b,
        batch=(0, 1),
        by="reference",
    ),
    Lowered("Celu", 28, ((2, 3),), {"alpha": 0.7}, stays=True, by="reference"),
    Lowered("Celu", 28, (MIXED.astype(np.float64),), {"alpha": 0.7}, by="reference"),
    Lowered("HardSwish", 22, ((2, 3, 4),), stays=True),
    Lowered("Softplus", 22, ((2, 3, 4),), stays=True),
]


def group_norm(groups, epsilon=1e-5):
    return lambda x, s, b: functional.group_norm(x, groups, s, b, epsilon)


def rms_norm(axis, epsilon=1e-5):
    return lambda x, s: functional.rms_norm(x, x.shape[axis:], None, epsilon) * s


NORMALIZATION = [
    Lowered("GroupNormalization", 21, ((2, 6, 4, 5), (6,), (6,)), {"num_groups": 3}, torch=group_norm(3)),
    Lowered(
        "GroupNormalization", 21, ((2, 4, 3), (4,), (4,)), {"num_groups": 2, "epsilon": 1e-2}, torch=group_norm(2, 1e-2)
    ),
    Lowered("GroupNormalization", 21, ((3, 4), (4,), (4,)), {"num_groups": 2, "stash_type": 1}),
    Lowered("GroupNormalization", 18, ((2, 6, 4), (3,), (3,)), {"num_groups": 3, "epsilon": 1e-3}, by="runtime"),
    Lowered("GroupNormalization", 20, ((2, 6, 4, 5), (2,), (2,)), {"num_groups": 2}, by="runtime"),
    Lowered("RMSNormalization", 23, ((2, 3, 4), (4,)), torch=rms_norm(-1)),
    Lowered("RMSNormalization", 23, ((2, 3, 4), (3, 4)), {"axis": 1, "epsilon": 1e-2}, torch=rms_norm(1, 1e-2)),
    Lowered("RMSNormalization", 24, ((2, 3, 4), (1,)), {"axis": -2}, by="reference"),
    Lowered("LayerNormalization", 21, ((2, 3, 4), (4,), (4,)), stays=True),
]


def rotary(interleaved=False, turned=None, heads=None, positions=None):
    def function(x, cos, sin, *_):
        if heads is not None:
            x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        if positions is not None:
            cos, sin = cos[torch.tensor(positions)], sin[torch.tensor(positions)]
        cos, sin = cos[:, None], sin[:, None]
        size = turned or x.shape[-1]
        rows, rest = x[..., :size], x[..., size:]
        a, b = (rows[..., 0::2], rows[..., 1::2]) if interleaved else rows.chunk(2, -1)
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        rows = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
        y = torch.cat([rows, rest], -1)
        return y.transpose(1, 2).flatten(-2) if heads is not None else y

    return function


PLACES = np.array([[0, 2, 1], [4, 3, 0]])
POSITIONS = [
    Lowered("RotaryEmbedding", 23, ((2, 4, 3, 6), (2, 3, 3), (2, 3, 3)), torch=rotary(), batch=(0, 1, 2)),
    Lowered(
        "RotaryEmbedding",
        23,
        ((2, 4, 3, 6), (2, 3, 3), (2, 3, 3)),
        {"interleaved": 1},
        torch=rotary(True),
        batch=(0, 1, 2),
    ),
    Lowered(
        "RotaryEmbedding", 23, ((2, 4, 3, 6), (5, 3), (5, 3), PLACES), torch=rotary(positions=PLACES), batch=(0, 3)
    ),
    Lowered(
        "RotaryEmbedding",
        23,
        ((2, 3, 24), (5, 3), (5, 3), PLACES),
        {"num_heads": 4},
        torch=rotary(heads=4, positions=PLACES),
        batch=(0, 3),
    ),
    Lowered(
        "RotaryEmbedding",
        23,
        ((2, 3, 24), (2, 3, 2), (2, 3, 2)),
        {"num_heads": 4, "rotary_embedding_dim": 4},
        torch=rotary(turned=4, heads=4),
        batch=(0, 1, 2),
    ),
    Lowered(
        "RotaryEmbedding",
        23,
        ((2, 3, 24), (2, 3, 2), (2, 3, 2)),
        {"num_heads": 4, "rotary_embedding_dim": 4, "interleaved": 1},
        torch=rotary(True, 4, 4),
        batch=(0, 1, 2),
    ),
    Lowered("TensorScatter", 24, ((2, 3, 7, 4), (2, 3, 2, 4), ints(1, 4)), batch=(0, 1, 2)),
    Lowered("TensorScatter", 24, ((2, 3, 7, 4), (2, 3, 2, 4)), batch=(0, 1)),
    Lowered("TensorScatter", 24, ((2, 5, 4), (2, 3, 4), ints(3, 4)), {"mode": "circular"}, batch=(0, 1, 2)),
    Lowered("TensorScatter", 24, ((2, 5, 4), (2, 5, 3), ints(1, 0)), {"axis": -1}, batch=(0, 1, 2)),
]

CACHED_GRID = np.random.default_rng(3).uniform(-1.2, 1.2, (2, 3, 5, 2)).astype(np.float32)
IMAGES = [
    *(
        Lowered("AveragePool", 19, ((2, 3, 9, 8),), {"kernel_shape": [3, 2], "dilations": [2, 3], **more})
        for more in (
            {},
            {"pads": [1, 0, 2, 1]},
            {"pads": [1, 0, 2, 1], "count_include_pad": 1},
            {"strides": [2, 3], "pads": [1, 1, 1, 1]},
        )
    ),
    # The reference pads VALID, and counts what lies beyond the padding.
    Lowered(
        "AveragePool",
        19,
        ((2, 3, 9, 8),),
        {"kernel_shape": [3, 2], "dilations": [2, 3], "auto_pad": "VALID", "strides": [1, 2]},
        by="runtime",
    ),
    Lowered(
        "AveragePool",
        22,
        ((2, 3, 10),),
        {"kernel_shape": [3], "dilations": [2], "strides": [3], "ceil_mode": 1, "pads": [1, 1]},
        by="runtime",
    ),
    Lowered("AveragePool", 22, ((2, 3, 10),), {"kernel_shape": [3], "dilations": [2], "strides": [3], "ceil_mode": 1}),
    Lowered(
        "AveragePool",
        22,
        ((2, 3, 10),),
        {"kernel_shape": [3], "dilations": [2], "strides": [3], "ceil_mode": 1, "pads": [1, 1], "count_include_pad": 1},
        by="runtime",
    ),
    Lowered("AveragePool", 22, ((2, 3, 6, 5),), {"kernel_shape": [2, 3], "dilations": [1, 1]}, stays=True),
    Lowered(
        "AveragePool",
        19,
        ((2, 3, 6, 5),),
        {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 0, 1]},
        stays=True,
    ),
    Lowered("MaxPool", 22, ((2, 3, 6, 5),), {"kernel_shape": [2, 3], "dilations": [2, 1]}, stays=True),
    Lowered("Pad", 19, ((2, 3, 4), ints(0, 1, 2, 0, 2, 3)), {"mode": "wrap"}, constant=(1,)),
    Lowered("Pad", 21, ((2, 3, 4), ints(1, 3), None, ints(-1)), {"mode": "wrap"}, constant=(1, 3), by="reference"),
    Lowered("Pad", 19, ((2, 3), ints(0, 7, 0, 5)), {"mode": "wrap"}, constant=(1,), by="reference"),
    Lowered("Pad", 19, ((3, 2), ints(1, 0, 2, 0)), {"mode": "wrap"}, constant=(1,), unknown=True, by="reference"),
    Lowered("Pad", 25, ((2, 3), ints(0, 1, 0, 2)), {"mode": "edge"}, constant=(1,), stays=True),
    Lowered(
        "Resize",
        19,
        ((2, 3, 4, 5), None, np.array([1, 1, 2, 3], np.float32)),
        {"mode": "linear"},
        constant=(2,),
        stays=True,
    ),
    Lowered(
        "Resize",
        19,
        ((2, 3, 4, 5), None, np.array([1, 1, 0.5, 3], np.float32)),
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
        constant=(2,),
        stays=True,
    ),
    *(
        Lowered(
            "GridSample",
            20,
            ((2, 3, 4, 6), CACHED_GRID),
            {"mode": mode, "padding_mode": pad, "align_corners": align},
            batch=(0, 1),
            stays=True,
            after="runtime",
        )
        for mode, pad, align in (("linear", "zeros", 0), ("nearest", "border", 1), ("cubic", "reflection", 0))
    ),
    Lowered("AffineGrid", 20, ((2, 2, 3), ints(2, 3, 4, 5)), constant=(1,)),
    Lowered("AffineGrid", 20, ((2, 2, 3), ints(2, 3, 4, 5)), {"align_corners": 1}, constant=(1,)),
    Lowered("AffineGrid", 20, ((2, 3, 4), ints(2, 3, 4, 5, 2)), constant=(1,)),
    Lowered("AffineGrid", 20, ((2, 3, 4), ints(2, 3, 4, 5, 2)), {"align_corners": 1}, constant=(1,)),
]

SCALE = np.array([0.5, 0.25, 2.0], np.float32)
BYTES = np.random.default_rng(5).integers(0, 255, (2, 3, 4)).astype(np.uint8)
WORDS = np.random.default_rng(6).integers(-3000, 3000, (2, 3, 4)).astype(np.int16)
BLOCKS = np.random.default_rng(7).uniform(0.5, 2.0, (2, 3, 2)).astype(np.float32)
SHORT = np.random.default_rng(8).uniform(0.5, 2.0, (2, 2, 4)).astype(np.float32)
WIDE = np.random.default_rng(9).normal(size=(2, 3, 4)).astype(np.float32)
QUANTIZATION = [
    Lowered(
        "DequantizeLinear",
        21,
        (BYTES, SHORT, (SHORT * 9).astype(np.uint8)),
        {"axis": 1, "block_size": 2},
        batch=(),
        by="reference",
    ),
    Lowered("DequantizeLinear", 21, (WORDS, BLOCKS), {"axis": -1, "block_size": 2}, batch=(), by="reference"),
    Lowered(
        "QuantizeLinear",
        21,
        ((2, 3, 4), BLOCKS / 50, (BLOCKS * 9).astype(np.uint8)),
        {"axis": 2, "block_size": 2},
        batch=(),
        by="reference",
    ),
    Lowered(
        "QuantizeLinear",
        23,
        ((2, 3, 4), SCALE, np.array([3, 1, 9], np.int8)),
        {"precision": TensorProto.FLOAT},
        stays=True,
        by="reference",
    ),
    Lowered(
        "QuantizeLinear",
        23,
        (WIDE, SCALE[0] / 90, np.array(3, np.int8)),
        {"precision": TensorProto.FLOAT16},
        stays=False,
        by="reference",
    ),
    Lowered(
        "DequantizeLinear", 19, (BYTES, SCALE, np.array([3, 1, 9], np.uint8)), {"axis": 1}, stays=True, after="runtime"
    ),
    Lowered("DequantizeLinear", 21, (WORDS, SCALE, np.array([3, -1, 9], np.int16)), {"axis": -2}),
    Lowered("DequantizeLinear", 21, (WORDS.astype(np.uint16), SCALE[0], np.array(3, np.uint16))),
    Lowered(
        "DequantizeLinear",
        21,
        (BYTES, BLOCKS, (BLOCKS * 9).astype(np.uint8)),
        {"axis": 2, "block_size": 2},
        batch=(),
        by="reference",
    ),
    Lowered(
        "DequantizeLinear",
        23,
        (BYTES, SCALE, np.array([3, 1, 9], np.uint8)),
        {"output_dtype": TensorProto.FLOAT16},
        by="reference",
    ),
    Lowered("QuantizeLinear", 19, ((2, 3, 4), SCALE, np.array([3, 1, 9], np.uint8)), stays=True),
    Lowered("QuantizeLinear", 21, ((2, 3, 4), SCALE / 1000, np.array([3, -1, 9], np.int16))),
    Lowered("QuantizeLinear", 21, ((2, 3, 4), SCALE[0]), {"output_dtype": TensorProto.INT8}),
    Lowered("QuantizeLinear", 21, ((2, 3, 4), SCALE[0] / 70000), {"output_dtype": TensorProto.UINT16}),
]
