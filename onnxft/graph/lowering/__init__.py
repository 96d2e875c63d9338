"""Rewrites to opset 18, one family a file; importing this package fills the registry."""

from onnxft.graph.lowering import activations as activations
from onnxft.graph.lowering import arithmetic as arithmetic
from onnxft.graph.lowering import attention as attention
from onnxft.graph.lowering import fused as fused
from onnxft.graph.lowering import images as images
from onnxft.graph.lowering import normalization as normalization
from onnxft.graph.lowering import positions as positions
from onnxft.graph.lowering import quantization as quantization
from onnxft.graph.lowering import upward as upward
