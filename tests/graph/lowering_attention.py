"""Cases of Attention and of the operators that runtimes fuse."""

from __future__ import annotations

import numpy as np
import torch
from lowering_cases import Lowered
from torch.nn import functional

from onnxft.graph.lowering.registry import MICROSOFT

RNG = np.random.default_rng(11)
Q, K, V = (2, 4, 3, 6), (2, 4, 5, 6), (2, 4, 5, 7)
MASK = RNG.random((3, 5)) > 0.3
MASK[:, 0] = True
FULL = RNG.random((2, 4, 3, 5)) > 0.3
FULL[..., 1] = True
DEAD = FULL.copy()
DEAD[1, 2, 0] = False
ADDED = RNG.normal(size=(2, 1, 3, 5)).astype(np.float32)
ADDED_DEAD = ADDED.copy()
ADDED_DEAD[1, 0, 2] = -np.inf
VALID = np.array([3, 5])


def sdpa(mask=None, causal=False, scale=None, groups=False, heads=None, cap=0.0):
    def function(q, k, v, *rest):
        if heads is not None:
            q, k, v = (x.unflatten(-1, (h, -1)).transpose(1, 2) for x, h in zip((q, k, v), heads, strict=True))
        if groups:
            repeats = q.shape[1] // k.shape[1]
            k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        bias = rest[0] if rest else mask
        bias = torch.tensor(bias) if isinstance(bias, np.ndarray) else bias
        if cap:
            scores = torch.tanh(q @ k.mT / q.shape[-1] ** 0.5 / cap) * cap
            y = torch.softmax(scores if bias is None else scores + bias, -1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=scale)
        return y.transpose(1, 2).flatten(-2) if heads is not None else y

    return function


def case(inputs, attrs=None, opset=23, batch=(0, 1, 2), by="", **more):
    return Lowered("Attention", opset, inputs, attrs or {}, batch=batch, by=by, **more)


PACKED = ((2, 3, 24), (2, 5, 24), (2, 5, 28))
GROUPED = ((2, 6, 3, 4), (2, 2, 5, 4), (2, 2, 5, 7))
HEADS = {"q_num_heads": 4, "kv_num_heads": 4}
CACHE = ((2, 4, 2, 6), (2, 4, 2, 7))
# The runtime takes no short mask and forbids by a finite number; the reference caps the raw scores that it shows.
ATTENTION = [
    case((Q, K, V), torch=sdpa()),
    case((Q, K, V), {"scale": 0.3}, opset=24, torch=sdpa(scale=0.3)),
    case((Q, K, V), {"is_causal": 1}, torch=sdpa(causal=True)),
    case((Q, (2, 4, 3, 6), (2, 4, 3, 7)), {"is_causal": 1}, torch=sdpa(causal=True)),
    case((Q, K, V, MASK), torch=sdpa(MASK), note="mask"),
    case((Q, K, V, FULL), batch=(0, 1, 2, 3), torch=sdpa(FULL), note="full mask"),
    case((Q, K, V, DEAD), batch=(0, 1, 2, 3), note="dead row"),
    case((Q, K, V, ADDED), batch=(0, 1, 2, 3), torch=sdpa(), note="added"),
    case((Q, K, V, ADDED_DEAD), batch=(0, 1, 2, 3), note="added dead row"),
    case((Q, K, V, MASK), {"is_causal": 1}, note="causal mask"),
    case((Q, K, V, ADDED), {"is_causal": 1, "softcap": 0.8}, batch=(0, 1, 2, 3), note="causal added"),
    case((Q, K, V, ADDED), {"softcap": 0.8}, batch=(0, 1, 2, 3), torch=sdpa(cap=0.8), note="cap"),
    case((Q, K, V, MASK[:, :4]), batch=(0, 1, 2), opset=24, by="reference", note="short mask"),
    case((Q, K, V, ADDED[..., :4]), batch=(0, 1, 2, 3), opset=24, by="reference", note="short added"),
    case(PACKED, HEADS, torch=sdpa(heads=(4, 4, 4))),
    case(PACKED, {**HEADS, "is_causal": 1}, torch=sdpa(causal=True, heads=(4, 4, 4))),
    case(
        ((2, 3, 24), (2, 5, 8), (2, 5, 14)),
        {"q_num_heads": 6, "kv_num_heads": 2},
        torch=sdpa(groups=True, heads=(6, 2, 2)),
    ),
    case(GROUPED, torch=sdpa(groups=True)),
    case((*GROUPED, MASK), torch=sdpa(MASK, groups=True), note="mask"),
    case((*GROUPED, np.repeat(FULL[:, :1], 6, 1)), {"is_causal": 1}, batch=(0, 1, 2, 3)),
    case((*GROUPED, ADDED), batch=(0, 1, 2, 3), torch=sdpa(groups=True), note="added"),
    case(((2, 5, 3, 4), (2, 1, 4, 4), (2, 1, 4, 4)), {"is_causal": 1}, torch=sdpa(groups=True, causal=True)),
    case((Q, K, V, None, *CACHE), outputs=3, batch=(0, 1, 2, 4, 5)),
    case((Q, K, V, None, *CACHE), {"is_causal": 1}, outputs=3, batch=(0, 1, 2, 4, 5)),
    case((*PACKED, None, *CACHE), {**HEADS, "is_causal": 1}, outputs=3, batch=(0, 1, 2, 4, 5)),
    *(
        case(
            (Q, K, V, ADDED),
            {"qk_matmul_output_mode": mode, "softcap": 0.8},
            outputs=4,
            batch=(0, 1, 2, 3),
            by="" if mode else "runtime",
        )
        for mode in range(4)
    ),
    *(
        case(
            (Q, K, V, DEAD),
            {"qk_matmul_output_mode": mode},
            outputs=4,
            batch=(0, 1, 2, 3),
            by="reference",
            note="dead row",
        )
        for mode in (2, 3)
    ),
    case((Q, K, V), {"softmax_precision": 11}),
    case((Q, K, V), {"softmax_precision": 1}),
    case((Q, K, V, None, None, None, VALID), opset=24, batch=(0, 1, 2, 6), note="valid"),
    case((Q, K, V, None, None, None, VALID), {"is_causal": 1}, opset=24, batch=(0, 1, 2, 6), note="valid"),
    case(
        (Q, K, V, FULL, None, None, np.array([1, 4])), {"is_causal": 1}, opset=25, batch=(0, 1, 2, 3, 6), note="valid"
    ),
    *(
        case(
            ((2, 4, 5, 6), K, V), {"left_window_size": left, "right_window_size": right, "is_causal": causal}, opset=25
        )
        for left, right, causal in ((2, -1, 0), (-1, 1, 0), (1, 0, 0), (2, 1, 0), (1, -1, 1), (0, 2, 1))
    ),
    case(
        (Q, K, V, None, *CACHE),
        {"left_window_size": 2, "right_window_size": 1},
        opset=25,
        outputs=3,
        batch=(0, 1, 2, 4, 5),
    ),
    case(
        (Q, K, V, None, None, None, VALID), {"left_window_size": 1}, opset=25, batch=(0, 1, 2, 6), note="valid window"
    ),
]


def fused(op, inputs, attrs=None, **more):
    return Lowered(op, 18, inputs, attrs or {}, domain=MICROSOFT, by="runtime", **more)


E = (2, 5, 8)
IDS = np.array([[1, 4, 2, 0, 3], [3, 3, 0, 1, 5]], np.int32)
TOKENS = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
WEIGHTS = ((8, 24), (24,))
SEEN = (np.tril(np.ones((2, 5, 5))) * TOKENS[:, None]).astype(np.int32)
FUSED = [
    fused("Gelu", ((2, 3, 4),)),
    fused("BiasGelu", ((2, 3, 4), (4,)), torch=lambda x, b: functional.gelu(x + b)),
    fused("FastGelu", ((2, 3, 4), (4,)), torch=lambda x, b: functional.gelu(x + b, approximate="tanh")),
    fused("FastGelu", ((2, 3, 4),)),
    fused("QuickGelu", ((2, 3, 4),), torch=lambda x: x * torch.sigmoid(1.702 * x)),
    fused("QuickGelu", ((2, 3, 4),), {"alpha": 0.9}),
    fused("FusedMatMul", ((2, 3, 4), (2, 4, 5)), {"alpha": 0.5}, batch=(0, 1)),
    fused("FusedMatMul", ((2, 3, 4), (2, 5, 4)), {"transB": 1}, batch=(0, 1)),
    fused("FusedMatMul", ((2, 4, 3), (4, 5)), {"transA": 1, "alpha": 2.0}),
    fused("FusedGemm", ((3, 4), (5, 4), (5,)), {"transB": 1, "activation": "Relu"}),
    fused("FusedGemm", ((3, 4), (4, 5), (5,)), {"alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.2}),
    fused(
        "FusedConv", ((2, 3, 6, 5), (4, 3, 3, 2), (4,)), {"activation": "Relu", "strides": [2, 1], "pads": [1, 0, 1, 1]}
    ),
    fused("FusedConv", ((2, 4, 6), (6, 2, 3)), {"group": 2, "activation": "LeakyRelu", "activation_params": [0.1]}),
    fused(
        "FusedConv",
        ((2, 3, 6, 5), (4, 3, 1, 1), (4,), (2, 4, 6, 5)),
        {"activation": "Clip", "activation_params": [0.0, 1.0]},
        batch=(0, 3),
    ),
    fused("SkipLayerNormalization", (E, E, (8,), (8,), (8,)), {"epsilon": 1e-5}, batch=(0, 1)),
    fused("SkipLayerNormalization", (E, E, (8,), (8,)), batch=(0, 1)),
    fused("SkipSimplifiedLayerNormalization", (E, E, (8,), (8,)), {"epsilon": 1e-5}, batch=(0, 1)),
    fused(
        "EmbedLayerNormalization",
        (IDS, TOKENS, (6, 8), (7, 8), (2, 8), (8,), (8,), TOKENS),
        {"epsilon": 1e-5},
        outputs=3,
        constant=(2, 3, 4),
        batch=(0, 1, 7),
    ),
    fused("EmbedLayerNormalization", (IDS, None, (6, 8), (7, 8), None, (8,), (8,)), outputs=2, constant=(2, 3)),
    fused(
        "EmbedLayerNormalization",
        (IDS, TOKENS, (6, 8), (7, 8), (2, 8), (8,), (8,), None, IDS[:, ::-1].copy()),
        outputs=2,
        constant=(2, 3, 4),
        batch=(0, 1, 8),
    ),
    fused("Attention", (E, *WEIGHTS), {"num_heads": 2}),
    fused("Attention", (E, *WEIGHTS, TOKENS), {"num_heads": 2}, batch=(0, 3)),
    fused("Attention", (E, *WEIGHTS, np.array([3, 5], np.int32)), {"num_heads": 2}, batch=(0, 3)),
    fused("Attention", (E, *WEIGHTS, SEEN), {"num_heads": 2, "mask_filter_value": -50.0}, batch=(0, 3)),
    fused("Attention", (E, (8, 28), (28,)), {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12], "scale": 0.4}),
    fused("Attention", (E, *WEIGHTS), {"num_heads": 2, "unidirectional": 1}),
    fused("Attention", (E, *WEIGHTS, None, None, (2, 2, 5, 5)), {"num_heads": 2}, batch=(0, 5), note="bias"),
    Lowered("SimplifiedLayerNormalization", 18, ((2, 3, 4), (4,)), {"axis": -1, "epsilon": 1e-4}, by="runtime"),
]
