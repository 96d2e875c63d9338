"""The forward model as every exporter hands it on: two graphs in the internal form, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxft.manifest import Loss
from onnxft.merge import Merge


@dataclass(frozen=True)
class Tensor:
    """A named tensor of the source model: a parameter, or a buffer, to which no gradient flows."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    """`parameter` or `buffer`."""
    tied_to: tuple[str, ...] = ()
    """Other names of the same storage; the graph has the tensor once, under `name`."""
    used: bool = True
    """Whether the exported graph reads it."""
    frozen: str = ""
    """Why the source does not train it, where it does not (torch's requires_grad=False, torch.no_grad)."""

    @property
    def size(self) -> int:
        """Number of scalar values."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size


@dataclass(frozen=True)
class Forward:
    """A model ready to be trained.

    Both graphs are in the internal form: opset 18, IR 10, functions inlined, constants as
    initializers, shapes inferred, the batch dimension symbolic under the name `batch`; every tensor
    of `tensors` is an initializer under its name (where the graph uses it) and no two share one.
    """

    name: str
    train: ir.Model
    """Training behaviour: Dropout and random operators are in it; normalisation is as at inference."""
    infer: ir.Model
    """Inference behaviour, original input and output names."""
    tensors: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    """Names of the data inputs, the same in both graphs."""
    outputs: tuple[str, ...]
    """Names of the outputs, the same in both graphs."""
    features: tuple[str, ...] = ()
    """Names of the inputs that are results of a part that was cut off; see `onnxft.step.cut`."""
    example_rows: int = 1
    """Rows of the example batch: the default batch size."""
    dimensions: Mapping[str, int] = field(default_factory=dict)
    """{symbolic dimension besides the batch: its size in the example}"""
    loss: Loss | None = None
    """The loss that the source suggests, where it does."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where the source knows them."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How the source says its inputs are made, where it does."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """{file name: content} of what goes along with the model: tokenizer, processor."""
    untrainable_norms: Mapping[str, str] = field(default_factory=dict)
    """{BatchNorm layer: why its running statistics cannot be trained}, where only the source can tell."""
    original: ir.Model | None = None
    """The inference graph before a method added parameters, which are merged into its weights; None: `infer`."""
    added: Mapping[str, Merge] = field(default_factory=dict)
    """{parameter that a method added: how it is merged}"""
    stored: tuple[str, ...] = ()
    """Names of the initializers that hold frozen weights in fewer bytes; see `onnxft.step.frozen`."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the user should know about the export (a renamed input, dropped precision, ...)."""

    @property
    def deployed(self) -> ir.Model:
        """The inference model that users get: without what a method adds for training."""
        return self.infer if self.original is None else self.original
