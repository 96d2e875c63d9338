"""Activations newer than opset 18, and those that runtimes fuse."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxft.graph.builder import Op
from onnxft.graph.lowering.registry import MICROSOFT, Rewritten, dtype_of, given, inputs_of, refusal, rewrites


@rewrites("Gelu", since=20)
def gelu(op: Op, node: ir.Node) -> Rewritten:
    """y = x Φ(x), exact or by tanh"""
    approximate = node.attributes.get_string("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise refusal(node, f"has the unknown approximation '{approximate}'", "Export with 'none' or 'tanh'")
    return (gelu_tanh if approximate == "tanh" else gelu_erf)(op, given(node, 0))


@rewrites("Swish", since=24)
def swish(op: Op, node: ir.Node) -> Rewritten:
    """y = x sigmoid(α x)"""
    return sigmoid_gated(op, given(node, 0), node.attributes.get_float("alpha", 1.0))


@rewrites("SwiGLU", since=28)
def swiglu(op: Op, node: ir.Node) -> Rewritten:
    """y = a sigmoid(α a) b"""
    gate = sigmoid_gated(op, given(node, 0), node.attributes.get_float("alpha", 1.0))
    return op.Mul(gate, given(node, 1))


@rewrites("Celu", since=28)
def celu(op: Op, node: ir.Node) -> Rewritten:
    """y = max(0, x) + min(0, α (exp(x / α) - 1)); opset 18 has it in float32 alone"""
    x = given(node, 0)
    if dtype_of(node, x) == ir.DataType.FLOAT:
        return None
    alpha = node.attributes.get_float("alpha", 1.0)
    below = op.Mul(op.Sub(op.Exp(op.Div(x, alpha)), 1.0), alpha)
    return op.Add(op.Max(x, 0.0), op.Min(below, 0.0))


@rewrites("Gelu", "BiasGelu", domain=MICROSOFT)
def bias_gelu(op: Op, node: ir.Node) -> Rewritten:
    """y = gelu(x + b)"""
    return gelu_erf(op, _biased(op, node))


@rewrites("FastGelu", domain=MICROSOFT)
def fast_gelu(op: Op, node: ir.Node) -> Rewritten:
    """y = gelu(x + b) by tanh"""
    return gelu_tanh(op, _biased(op, node))


@rewrites("QuickGelu", domain=MICROSOFT)
def quick_gelu(op: Op, node: ir.Node) -> Rewritten:
    """y = x sigmoid(1.702 x)"""
    return sigmoid_gated(op, given(node, 0), node.attributes.get_float("alpha", 1.702))


def gelu_erf(op: Op, x: ir.Value) -> ir.Value:
    """x (1 + erf(x / √2)) / 2"""
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)


def gelu_tanh(op: Op, x: ir.Value) -> ir.Value:
    """x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2"""
    inner = op.Add(x, op.Mul(op.Mul(op.Mul(x, x), x), 0.044715))
    return op.Mul(op.Mul(x, op.Add(op.Tanh(op.Mul(inner, math.sqrt(2.0 / math.pi))), 1.0)), 0.5)


def sigmoid_gated(op: Op, x: ir.Value, alpha: float) -> ir.Value:
    """x sigmoid(α x)"""
    return op.Mul(x, op.Sigmoid(x if alpha == 1.0 else op.Mul(x, alpha)))


def _biased(op: Op, node: ir.Node) -> ir.Value:
    _, bias = inputs_of(node, 2)
    x = given(node, 0)
    return x if bias is None else op.Add(x, bias)
