"""The manifest of an artifact: the only thing that the build half and the run half share.

Plain frozen dataclasses; `manifest_file.py` reads and writes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxft.errors import ArtifactError, ConfigError
from onnxft.frozen_weights import FrozenWeights
from onnxft.merge import LORA_A, LORA_B, Merge
from onnxft.step_work import StepWork

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
PARAMETERS_FILE = "parameters.safetensors"
FROZEN_FILE = "frozen.safetensors"
BATCH = "batch"
"""Name of the symbolic batch dimension in every graph."""
LABELS = "labels"
SAMPLE_WEIGHTS = "sample_weights"
DEFAULT_GROUP = "default"
"""The parameter group of what no pattern names."""

Role = Literal[
    "input", "label", "sample_weight", "feature", "parameter", "buffer", "accumulator", "state", "average",
    "lr", "weight_decay", "step", "max_norm", "max_value", "average_weight", "random",
    "normalizer", "loss", "loss_sum", "weight_sum", "gradient", "magnitude", "metric", "output",
]  # fmt: skip
GraphRole = Literal[
    "gradients", "batch_gradients", "clip", "update", "train", "average", "eval", "infer", "infer_adapter", "trunk",
    "ort_training", "ort_eval", "ort_optimizer", "ort_checkpoint", "ort_nominal_checkpoint",
]  # fmt: skip


HalfPrecision = Literal["bfloat16", "float16"]
Precision = Literal["float32", HalfPrecision]
"""Type in which a provider multiplies; parameters, state and updates are float32 always."""


def dimension_size(dimension: int | str, sizes: Mapping[str, int]) -> int | None:
    """The size of a dimension, which may be a sum of products of symbolic ones; None where one of them has no size.

    >>> dimension_size("12*batch*sequence + 1", {"batch": 2, "sequence": 5})
    121
    """
    if isinstance(dimension, int):
        return dimension
    if dimension in sizes:
        return sizes[dimension]
    total = 0
    first, *others = re.split(r" ([+-]) ", dimension)
    for sign, term in [("+", first), *zip(others[::2], others[1::2], strict=True)]:
        factors = [int(f) if f.isdecimal() else sizes.get(f) for f in term.split("*")]
        known = [f for f in factors if f is not None]
        if len(known) < len(factors):
            return None
        total += math.prod(known) * (1 if sign == "+" else -1)
    return total


@dataclass(frozen=True)
class Distribution:
    """How the host draws a `random` input.

    `dropout`: 0 with probability `ratio`, else 1 / (1 - ratio). `uniform`: on [low, high).
    `normal`: with mean `low` and standard deviation `high`.
    """

    kind: Literal["dropout", "uniform", "normal"]
    ratio: float = 0.0
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Port:
    """One input or output of a graph."""

    name: str
    role: Role
    dtype: str
    """numpy name of the element type: `float32`, `int64`, ..."""
    shape: tuple[int | str, ...]
    """Dimensions; a string is a symbolic one."""
    parameter: str | None = None
    """The parameter that a parameter, accumulator, gradient, state or average belongs to."""
    slot: str | None = None
    """Which state of the optimizer (`exp_avg`, `momentum_buffer`, ...) or which metric."""
    group: str | None = None
    """Parameter group of an lr or weight_decay."""
    distribution: Distribution | None = None
    buffer: str | None = None
    """The running statistic that a buffer is."""
    in_place: bool = False
    """Whether an output may be written over the input that it replaces."""
    rows: tuple[int, int] | None = None
    """The rows of its parameter, along axis 0, that it has: the first, and the one behind the last. None: all."""


@dataclass(frozen=True)
class GraphFile:
    """One graph of the artifact."""

    file: str
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    precision: str = "float32"
    provider: str | None = None
    """The provider it was built for; None: any."""

    def named(self, role: Role, side: Literal["inputs", "outputs"] = "inputs") -> tuple[Port, ...]:
        """The ports of one role, in file order."""
        ports = self.inputs if side == "inputs" else self.outputs
        return tuple(p for p in ports if p.role == role)


@dataclass(frozen=True)
class ByteRange:
    """Where the raw little-endian bytes of a tensor lie in a file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Parameter:
    """One trained parameter, under its PyTorch (or initializer) name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: str = DEFAULT_GROUP
    origin: Literal["model", "added"] = "model"
    tied_to: tuple[str, ...] = ()
    """Other names of the same tensor in the source model."""
    merge: Merge | None = None
    inference: ByteRange | None = None
    """Its bytes in the inference model; of an added parameter those of what it is merged into."""

    @property
    def size(self) -> int:
        """Number of scalar values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterGroup:
    """What the parameters of one group have of their own."""

    name: str
    lr_factor: float = 1.0
    """Multiplies a learning rate that is given for all groups."""
    weight_decay: float | None = None
    """Default value of its `weight_decay` input; None: the optimizer's."""


@dataclass(frozen=True)
class Buffer:
    """One running statistic of a trained BatchNorm layer, under its PyTorch (or initializer) name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Literal["mean", "variance"]
    layer: str
    """The BatchNorm layer."""
    over: tuple[int | str, ...]
    """Dimensions that a batch's statistic is taken over; `?` is one that is only known when it runs."""
    inference: ByteRange | None = None
    """Its bytes in the inference model; None where that does not read it."""


LossKind = Literal["cross_entropy", "bce_with_logits", "mse", "l1", "huber", "kl_div", "model"]


@dataclass(frozen=True)
class Loss:
    """The loss fixed at export."""

    kind: LossKind
    output: str
    """The model output that it reads; with the kind `model` the loss itself."""
    num_classes: int | None = None
    """Classes, with `bce_with_logits` labels of a row: 1 where it is binary."""
    class_axis: int = 1
    """Axis of the output that runs over the classes; transformers has the tokens before it."""
    ignore_index: int | None = None
    """Label that does not count."""
    shift: int = 0
    """How many positions along axis 1 the labels are ahead of the output: 1 predicts the next token."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in `cross_entropy`; (): all 1."""
    label_smoothing: float = 0.0
    """Part of a label that `cross_entropy` spreads over all classes."""
    pos_weight: tuple[float, ...] = ()
    """Weight of the positive labels in `bce_with_logits`, one for each column or one for all; (): 1."""
    delta: float = 1.0
    """Error at which `huber` turns from a square to a line."""
    scalar: bool = False
    """With the kind `model`: one number, the mean over the batch, instead of one for each row."""
    inputs: tuple[str, ...] = ()
    """With the kind `model`: inputs that only the loss reads, such as its targets; a prediction needs none of them."""
    per_position: bool = False
    """Whether a row has several labels: tokens, pixels."""


OptimizerKind = Literal["adam", "adamw", "lion", "sgd"]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer fixed at export; rate and decay are inputs of the graphs."""

    kind: OptimizerKind
    options: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    """Default value of the `weight_decay` inputs."""


@dataclass(frozen=True)
class Manifest:
    """Everything the run half knows about an artifact."""

    name: str
    generator: Literal["native", "ort-training"]
    batch_size: int
    """Rows that a session fixes unless told otherwise."""
    graphs: dict[GraphRole, GraphFile]
    parameters: tuple[Parameter, ...]
    loss: Loss
    optimizer: Optimizer
    frozen_parameters: int
    """Number of scalar values in parameters that are not trained."""
    buffers: tuple[Buffer, ...] = ()
    """Running statistics that training moves: two for each trained BatchNorm layer."""
    parameter_groups: tuple[ParameterGroup, ...] = ()
    """Groups with a rate or decay of their own; those not listed have none."""
    dimensions: dict[str, int] = field(default_factory=dict)
    """Symbolic dimensions besides the batch, with the size that a session fixes unless told otherwise."""
    classes: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of every file, by name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages that built the artifact."""
    whole: str = ""
    """Why the frozen part of the model is not a `trunk`; empty where it is, or nobody asked."""
    work: StepWork | None = None
    """At `batch_size` rows and the sizes of `dimensions`; None where it was not counted."""
    schema_version: int = SCHEMA_VERSION
    runtime_random: tuple[str, ...] = ()
    """Operators of the training graph whose numbers the runtime draws by itself, with no seed of onnxft's: a run of
    such a graph cannot be repeated, or resumed exactly."""
    recompute: int = 0
    """Blocks in a segment whose activations the `recomputed` graphs compute again; 0: there are no such graphs."""
    half: dict[HalfPrecision, dict[GraphRole, GraphFile]] = field(default_factory=dict)
    """Graphs that multiply in a lower precision, in the place of those of `graphs` with the same role."""
    recomputed: dict[Precision, dict[GraphRole, GraphFile]] = field(default_factory=dict)
    """Graphs that compute activations again, in the place of those of the same role and precision, which keep them."""
    work_from_features: StepWork | None = None
    """Of a step on kept features, so without the trunk; None where there is no trunk, or it was not counted."""
    frozen_weights: FrozenWeights | None = None
    """How frozen weights are stored in fewer bytes; None: in float32, as all else."""

    def graph(self, role: GraphRole, precision: Precision = "float32", *, recompute: bool = False) -> GraphFile:
        """The graph of a role, with `recompute` the one that computes activations again where there are two.

        ArtifactError if the artifact has none.
        """
        try:
            graphs = self.graphs if precision == "float32" else self.half[precision]
            return {**graphs, **self.recomputed.get(precision, {})}[role] if recompute else graphs[role]
        except KeyError:
            if precision != "float32":
                raise ArtifactError(
                    f"artifact '{self.name}' has no '{role}' graph in {precision}. Export it again with --precision "
                    f"{precision}: it runs in float32 too."
                ) from None
            raise ArtifactError(
                f"artifact '{self.name}' has no '{role}' graph (it has {', '.join(sorted(self.graphs))}). "
                f"It was generated by '{self.generator}': export it again for this use."
            ) from None

    def recomputes(self, asked: bool | None = None) -> bool:
        """Whether a session computes activations again that was `asked` to; None: where the artifact has such graphs.

        Raises:
            ConfigError: it was asked to, and there are none.
        """
        if asked and not self.recomputed:
            native = "" if self.generator == "native" else " with the generator native"
            raise ConfigError(
                f"recompute is on, but the artifact '{self.name}' has no graphs that compute activations again. Export "
                f"it{native} with --recompute, or leave recompute out."
            )
        return bool(self.recomputed) if asked is None else asked

    @property
    def evaluation(self) -> GraphFile:
        """The evaluation graph of either generator; ArtifactError if the artifact has none."""
        return self.graph("ort_eval" if self.generator == "ort-training" else "eval")

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The model's inputs, in the order of its forward function."""
        return self.graphs.get("trunk", self.evaluation).named("input")

    @property
    def features(self) -> tuple[Port, ...]:
        """What the trunk computes from the inputs, and the other graphs read; () where the model is whole."""
        return self.evaluation.named("feature")

    @property
    def every_graph(self) -> tuple[tuple[GraphRole, GraphFile], ...]:
        """Role and graph of all precisions, float32 first; then those that compute activations again."""
        every = (self.graphs, *self.half.values(), *self.recomputed.values())
        return tuple((role, graph) for graphs in every for role, graph in graphs.items())

    @property
    def num_trainable(self) -> int:
        """Number of scalar values that are trained."""
        return sum(p.size for p in self.parameters)

    @property
    def adapters(self) -> dict[str, tuple[Parameter, Parameter]]:
        """{frozen weight: the factors A and B of its low-rank adapter}."""
        factors = {(p.merge.target, p.merge.rule): p for p in self.parameters if p.merge is not None}
        return {target: (a, factors[target, LORA_B]) for (target, rule), a in factors.items() if rule == LORA_A}

    @property
    def weights(self) -> tuple[Parameter | Buffer, ...]:
        """What training moves and inference reads: trained parameters and running statistics."""
        return (*self.parameters, *self.buffers)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the parameter groups, in order of first use."""
        return tuple(dict.fromkeys(p.group for p in self.parameters))

    def parameter_group(self, name: str) -> ParameterGroup:
        """Rate and decay of a group."""
        return next((g for g in self.parameter_groups if g.name == name), ParameterGroup(name))
