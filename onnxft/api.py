"""The Python interface: the only place where the parts are put together; heavy parts load when used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from onnxft.data.preprocess import check_preprocessing, prepare
from onnxft.errors import ConfigError, near
from onnxft.files import check_replaceable
from onnxft.manifest import FILE_NAME, HalfPrecision, Loss, Manifest, Optimizer
from onnxft.runtime.session import TrainSession

if TYPE_CHECKING:
    from onnxft.benchmark.config import BenchConfig
    from onnxft.benchmark.report import Report
    from onnxft.data.open import Data
    from onnxft.graph.forward import Forward
    from onnxft.step.select import Selection
    from onnxft.training.config import TrainConfig
    from onnxft.training.loop import Run
    from onnxft.training.lr_range import LrRange

__all__ = ["Plan", "TrainSession", "bench", "export", "plan", "prepare", "train"]

GENERATORS = ("native", "ort-training")


class Plan:
    """What an export will do: shown by `--dry-run`, carried out by `write`."""

    def __init__(
        self, forward: Forward, selection: Selection, loss: Loss, optimizer: Optimizer, notes: Sequence[str] = ()
    ) -> None:
        """Hold a forward model with what was chosen for it."""
        self.forward, self.selection, self.loss, self.optimizer = forward, selection, loss, optimizer
        self.notes = (*forward.notes, *notes)

    def write(
        self,
        directory: str | Path,
        *,
        batch_size: int,
        generator: str = "native",
        python: str | None = None,
        precision: Sequence[str] = (),
    ) -> Manifest:
        """Generate the graphs and write the artifact; see `export`."""
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
        if generator not in GENERATORS:
            raise ConfigError(f"unknown generator '{generator}'.{near(generator, GENERATORS)}")
        known: tuple[HalfPrecision, ...] = get_args(HalfPrecision)
        for name in precision:
            if name not in known:
                also = " Graphs in float32 are always there." if name == "float32" else near(name, known)
                raise ConfigError(f"there are no half-precision graphs in '{name}'.{also}")
        if precision and generator != "native":
            raise ConfigError(f"precision is for the generator 'native'; '{generator}' computes in float32.")
        check_replaceable(Path(directory), FILE_NAME)
        if generator == "native":
            if python is not None:
                raise ConfigError("python names the environment of the 'ort-training' generator; 'native' needs none.")
            from onnxft.generators import native

            return native.generate(
                self.forward, self.selection, self.loss, self.optimizer, Path(directory), batch_size=batch_size,
                precisions=[p for p in known if p in precision],
            )  # fmt: skip
        from onnxft.generators import ort_training

        return ort_training.generate(
            self.forward, self.selection, self.loss, self.optimizer, Path(directory),
            batch_size=batch_size, python=python,
        )  # fmt: skip


def plan(
    model: Any,
    example_inputs: Any = None,
    *,
    trainable: Sequence[str] = ("*",),
    frozen: Sequence[str] = (),
    train_batchnorm: Sequence[str] = (),
    loss: str | None = None,
    loss_output: str | None = None,
    loss_options: Mapping[str, Any] | None = None,
    optimizer: str = "adamw",
    optimizer_options: Mapping[str, float] | None = None,
    weight_decay: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, float] | None = None,
    no_decay_norms: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dynamic_shapes: Mapping[str, Mapping[int, str]] | None = None,
    dimensions: Mapping[str, int] | None = None,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Plan:
    """Export the forward model and choose what to train, without writing anything; arguments as in `export`."""
    from onnxft.exporters.source import export_source
    from onnxft.step.groups import check_factors
    from onnxft.step.loss_options import check_loss, describe_loss, inputs_of
    from onnxft.step.optimizers import describe_optimizer
    from onnxft.step.select import select

    given = check_preprocessing(preprocessing or {})
    # What is unknown or out of range is found before the export, which may take minutes.
    check_loss(loss, loss_options or {}, len(classes) or None)
    check_factors(lr_factors or {}, weight_decays or {})
    described = describe_optimizer(optimizer, optimizer_options, weight_decay)
    forward = export_source(
        model, example_inputs, name=name, input_names=input_names, output_names=output_names, dropout=dropout,
        dynamic_shapes=dynamic_shapes, dimensions=dimensions,
    )  # fmt: skip
    _check_dimensions(forward, dimensions or {})
    outputs = {str(v.name): v for v in forward.infer.graph.outputs}
    suggested = forward.loss
    chosen = loss_output or (suggested.output if suggested else next(iter(outputs)))
    if chosen not in outputs:
        raise ConfigError(f"the model has no output '{chosen}'.{near(chosen, outputs)}")
    reads = describe_loss(
        loss or (suggested.kind if suggested else "cross_entropy"), outputs[chosen], suggested, loss_options,
        inputs_of(forward.infer.graph, outputs[chosen]),
    )  # fmt: skip
    two_names = reads.kind == "bce_with_logits" and reads.num_classes == 1 and len(classes) == 2
    if classes and reads.num_classes != len(classes) and not two_names:
        raise ConfigError(f"{len(classes)} class names were given, the model has {reads.num_classes} classes.")
    if given:
        check_preprocessing({**forward.preprocessing, **given}, _input_shapes(forward))
    forward = replace(
        forward,
        classes=tuple(map(str, classes)) or forward.classes,
        preprocessing={**forward.preprocessing, **given},
        dimensions={**forward.dimensions, **(dimensions or {})},
    )
    selection = select(forward, trainable, frozen, train_batchnorm, lr_factors, weight_decays, no_decay_norms)
    return Plan(forward, selection, reads, described)


def _input_shapes(forward: Forward) -> list[list[int | None]]:
    """Sizes of the inputs, None where they are open."""
    return [[d if isinstance(d, int) else None for d in v.shape or ()] for v in forward.infer.graph.inputs]


def _check_dimensions(forward: Forward, dimensions: Mapping[str, int]) -> None:
    for name, size in dimensions.items():
        if name not in forward.dimensions:
            known = near(name, forward.dimensions) or " It has none besides the batch (batch_size)."
            raise ConfigError(f"'{forward.name}' has no open dimension '{name}'.{known}")
        if size < 1:
            raise ConfigError(f"the dimension '{name}' is {size}; it must be at least 1.")


def export(
    model: Any,
    example_inputs: Any = None,
    directory: str | Path | None = None,
    *,
    trainable: Sequence[str] = ("*",),
    frozen: Sequence[str] = (),
    train_batchnorm: Sequence[str] = (),
    loss: str | None = None,
    loss_output: str | None = None,
    loss_options: Mapping[str, Any] | None = None,
    optimizer: str = "adamw",
    optimizer_options: Mapping[str, float] | None = None,
    weight_decay: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, float] | None = None,
    no_decay_norms: bool = False,
    batch_size: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dynamic_shapes: Mapping[str, Mapping[int, str]] | None = None,
    dimensions: Mapping[str, int] | None = None,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    generator: Literal["native", "ort-training"] = "native",
    python: str | None = None,
    precision: Sequence[str] = (),
) -> Path:
    """Export a model as a training artifact.

    Args:
        model: a torch module (left as it is), a path `model.onnx`, or a source string: `package.module:factory`,
            `file.py:factory` or a Hugging Face model directory.
        example_inputs: tensors with the batch first: one, a tuple, or {argument name: tensor}; a file or a directory
            needs none.
        directory: where to write; None: `artifacts/<name of the source>`.
        trainable: globs of the parameters to train; `*` leaves out those with requires_grad=False.
        frozen: globs of parameters that are not trained after all.
        train_batchnorm: globs of the BatchNorm layers that normalise by the batch and move their running statistics,
            as torch's do in training mode; all others keep the statistics that they have. `num_batches_tracked` stays.
        loss: `cross_entropy` (int64 labels), `bce_with_logits` (labels from 0 to 1, of the output's shape), `mse`,
            `l1`, `huber`, `kl_div` (labels are probabilities) or `model` (the output is the loss itself: (batch,), or
            the mean over the batch); None: what the source suggests, else `cross_entropy`.
        loss_output: output that the loss reads; None: the first.
        loss_options: `class_weights`, `label_smoothing`, `ignore_index`, `shift`, `class_axis`; `pos_weight`; `delta`.
        optimizer: `adamw`, `adam`, `lion` or `sgd`.
        optimizer_options: `beta1`, `beta2`, `eps`; `momentum`, `nesterov`. The rest has torch's defaults.
        weight_decay: default of the sessions; None: torch's default.
        lr_factors: {glob: factor of the learning rate}; of several that match a parameter the last one holds.
        weight_decays: {glob: weight decay}, likewise.
        no_decay_norms: whether parameters of at most one dimension (biases, normalisation) have the decay 0, unless
            a glob of `weight_decays` says otherwise.
        batch_size: default rows of a step; None: those of the example, or 16 for a file without one.
        input_names: names of the inputs; None: the argument names of `forward`.
        output_names: names of the outputs.
        dropout: whether training keeps Dropout and other random operators.
        dynamic_shapes: {input: {axis: name}} of dimensions that stay symbolic besides the batch; a session fixes
            them. None: none, but for a model directory the length of its texts.
        dimensions: {symbolic dimension besides the batch: size that sessions use unless told otherwise}.
        classes: names of the classes, kept in the manifest.
        preprocessing: how pictures are made, over what the source says; the keys of `onnxft/data/preprocess.py`.
        generator: `native` (any provider) or `ort-training` (onnxruntime-training, an environment of its own).
        python: interpreter of that environment.
        precision: `bfloat16`, `float16` or both: graphs that multiply so, for providers that need them typed (CUDA,
            TensorRT), beside those in float32.

    Returns:
        The artifact directory, ready for `TrainSession`.

    Raises:
        ModelError: the model cannot be exported, or the export does not equal it.
        SelectionError: a pattern matches nothing.
        GradientError: an operator on the path has no derivative.
        ConfigError: an argument is unknown or out of range.
        ArtifactError: `directory` holds something else than an artifact.
    """
    made = plan(
        model, example_inputs, trainable=trainable, frozen=frozen, train_batchnorm=train_batchnorm, loss=loss,
        loss_output=loss_output, loss_options=loss_options, optimizer=optimizer, optimizer_options=optimizer_options,
        weight_decay=weight_decay, lr_factors=lr_factors, weight_decays=weight_decays, no_decay_norms=no_decay_norms,
        input_names=input_names, output_names=output_names, dropout=dropout, dynamic_shapes=dynamic_shapes,
        dimensions=dimensions, classes=classes, preprocessing=preprocessing,
        name=Path(directory).name if directory is not None else None,
    )  # fmt: skip
    place = Path(directory) if directory is not None else Path("artifacts") / made.forward.name
    made.write(
        place, batch_size=made.forward.example_rows if batch_size is None else batch_size, generator=generator,
        python=python, precision=precision,
    )  # fmt: skip
    return place


def train(
    artifact: str | Path | None = None,
    data: Data | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    val: Data | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Fine-tune an artifact and record the run, with progress on stderr; see `onnxft.training.loop.run`."""
    from onnxft.training import loop
    from onnxft.training.progress import progress_for

    shown = progress_for() if progress else None
    return loop.run(artifact, data, config, val=val, run_dir=run, resume=resume, progress=shown)


def find_lr(
    artifact: str | Path,
    data: Data,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    directory: str | Path | None = None,
    progress: bool = True,
) -> LrRange:
    """Try learning rates, propose one, and write what was found; see `onnxft.training.lr_range.find_lr`."""
    from onnxft.training import lr_range
    from onnxft.training.progress import progress_for

    shown = progress_for() if progress else None
    return lr_range.find_lr(artifact, data, config, directory=directory, progress=shown)[0]


def bench(artifact: str | Path, config: BenchConfig | None = None) -> Report:
    """Measure the training step on several providers and baselines, each in a process of its own."""
    from onnxft.benchmark.config import BenchConfig
    from onnxft.benchmark.run import bench as run_bench

    return run_bench(Path(artifact), config or BenchConfig())
