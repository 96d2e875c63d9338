"""Operators whose newest form differs from that of opset 18 by its types alone, and those that have no form there."""

from __future__ import annotations

REVIEWED = {
    # the opset at which an operator changed last, as far as its text was read: version -> operators
    19: "Equal",
    20: "IsNaN",
    21: "QLinearMatMul",
    22: """Acos Acosh Asin Asinh Atan Atanh Bernoulli Conv ConvTranspose Cos Cosh Det Dropout Elu EyeLike GRU
        GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid HardSwish InstanceNormalization LSTM
        LpNormalization LpPool MaxPool MaxRoiPool MaxUnpool Mish Multinomial NegativeLogLikelihoodLoss RNN RandomNormal
        RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round Selu Sin Sinh Softplus Softsign Tan
        ThresholdedRelu""",
    24: "SplitToSequence TopK",
    25: """Constant ConstantOfShape Flatten Identity If Loop Reshape Scan Shape Size Squeeze Transpose Unsqueeze""",
    28: """BitShift Compress DepthToSpace Einsum OneHot Optional OptionalGetElement OptionalHasElement ReduceLogSum
        ReduceLogSumExp ReverseSequence Unique""",
}
"""These stay as they are. A version that is newer than the one here has not been read."""

WIDENED = {op_type: version for version, names in REVIEWED.items() for op_type in names.split()}

WITHOUT_FORM = {
    "BitCast": "reinterprets bits, which no operator of opset 18 does",
    "DeformConv": "samples at computed places between pixels for each tap, which no operator of opset 18 does",
    "ImageDecoder": "decodes pictures, which no operator of opset 18 does",
    "RegexFullMatch": "matches strings, which no operator of opset 18 does",
    "StringConcat": "joins strings, which no operator of opset 18 does",
    "StringSplit": "splits strings, which no operator of opset 18 does",
}
"""Operators that are refused, each with its reason."""
