"""Operators without derivative by nature, and operators that have one but no rule yet, each with its reason."""

from __future__ import annotations

from onnxft.grad.registry import no_gradient, not_yet

no_gradient("ArgMax", "ArgMin", "NonZero", "Shape", "Size", "SequenceLength", because="its result is integers")
no_gradient(
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN",
    "OptionalHasElement",
    because="its result is true or false",
)  # fmt: skip
no_gradient("And", "Or", "Xor", "Not", because="it is logic")
no_gradient(
    "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BitCast", because="it works on bits"
)  # fmt: skip
no_gradient(
    "Constant", "ConstantOfShape", "EyeLike", "Range", "BlackmanWindow", "HammingWindow", "HannWindow",
    "MelWeightMatrix", "SequenceEmpty",
    because="its result is a constant",
)  # fmt: skip
no_gradient("Hardmax", because="its result is 0 or 1, and jumps between them")
no_gradient(
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    because="its result is random",
)  # fmt: skip
no_gradient("QuantizeLinear", "DynamicQuantizeLinear", because="it rounds to integers")
no_gradient("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", because="it works on integers")
no_gradient("Unique", "NonMaxSuppression", "TfIdfVectorizer", because="it looks things up")
no_gradient(
    "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit",
    because="it works on strings or bytes",
)  # fmt: skip

not_yet("If", "Loop", "Scan", "SequenceMap", because="its body is a graph of its own; unroll it, or export one branch")
not_yet(
    "ConcatFromSequence", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct", "SequenceErase",
    "SequenceInsert", "SplitToSequence",
    because="it handles a sequence or an optional value, not tensors",
)  # fmt: skip
not_yet("Det", because="its gradient needs the inverse of a matrix, which standard ONNX lacks")
not_yet("DeformConv", "MaxRoiPool", because="reading at computed places between pixels is not covered")
not_yet("Scatter", "Upsample", because="it left the standard; convert the model to opset 18")
