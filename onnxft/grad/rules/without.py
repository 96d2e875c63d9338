"""Operators without derivative by nature, each with its reason."""

from __future__ import annotations

from onnxft.grad.registry import no_gradient

no_gradient("ArgMax", "ArgMin", "NonZero", "Shape", "Size", because="its result is integers")
no_gradient(
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN",
    because="its result is true or false",
)  # fmt: skip
no_gradient("And", "Or", "Xor", "Not", because="it is logic")
no_gradient("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", because="it works on bits")
no_gradient("Constant", "ConstantOfShape", "EyeLike", "Range", because="its result is a constant")
no_gradient(
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    because="its result is random",
)  # fmt: skip
no_gradient("QuantizeLinear", "DynamicQuantizeLinear", because="it rounds to integers")
no_gradient("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", because="it works on integers")
no_gradient("Unique", "NonMaxSuppression", "StringNormalizer", "TfIdfVectorizer", because="it looks things up")
