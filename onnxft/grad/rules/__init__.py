"""The rules, one family a file; importing this package fills the registry."""

from onnxft.grad.rules import activations as activations
from onnxft.grad.rules import convolution as convolution
from onnxft.grad.rules import einsum as einsum
from onnxft.grad.rules import elementwise as elementwise
from onnxft.grad.rules import fourier as fourier
from onnxft.grad.rules import grid_sample as grid_sample
from onnxft.grad.rules import indexing as indexing
from onnxft.grad.rules import losses as losses
from onnxft.grad.rules import normalization as normalization
from onnxft.grad.rules import pooling as pooling
from onnxft.grad.rules import products as products
from onnxft.grad.rules import quantization as quantization
from onnxft.grad.rules import recurrent as recurrent
from onnxft.grad.rules import reductions as reductions
from onnxft.grad.rules import resize as resize
from onnxft.grad.rules import roi_align as roi_align
from onnxft.grad.rules import scattering as scattering
from onnxft.grad.rules import selection as selection
from onnxft.grad.rules import shaping as shaping
from onnxft.grad.rules import trigonometry as trigonometry
from onnxft.grad.rules import without as without
