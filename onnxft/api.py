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
    from onnxft.step.frozen.store import Stored
    from onnxft.step.methods.blocks import Blocks
    from onnxft.step.select import Selection
    from onnxft.training.config import TrainConfig
    from onnxft.training.lr_range import LrRange
    from onnxft.training.outcome import Run

__all__ = ["Plan", "TrainSession", "bench", "export", "plan", "prepare", "train"]

GENERATORS = ("native", "ort-training")


class Plan:
    """What an export will do: shown by `--dry-run`, carried out by `write`."""

    def __init__(
        self,
        forward: Forward,
        selection: Selection,
        loss: Loss,
        optimizer: Optimizer,
        notes: Sequence[str] = (),
        blocks: Blocks | None = None,
        recompute: int = 0,
    ) -> None:
        """Hold a forward model with what was chosen for it; `blocks` where it is asked what it consists of."""
        self.forward, self.selection, self.loss, self.optimizer = forward, selection, loss, optimizer
        self.blocks, self.recompute = blocks, recompute
        self.notes = (*forward.notes, *notes)

    def write(
        self,
        directory: str | Path,
        *,
        batch_size: int,
        generator: str = "native",
        python: str | None = None,
        standalone: bool = False,
        additional_outputs: Sequence[str] = (),
        precision: Sequence[str] = (),
        frozen_precision: str = "float32",
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
        if frozen_precision != "float32" and generator != "native":
            raise ConfigError(
                f"frozen weights in '{frozen_precision}' are for the generator 'native'; '{generator}' reads them in "
                "float32. Leave --frozen-precision out."
            )
        if self.recompute and generator != "native":
            raise ConfigError(
                f"recompute is for the generator 'native': with '{generator}' another package differentiates the "
                "model, and keeps every activation. Leave it out."
            )
        check_replaceable(Path(directory), FILE_NAME)
        if generator == "native":
            self._refuse_for_native(python, standalone, additional_outputs)
            from onnxft.generators import native
            from onnxft.step.segments import Recomputation

            stored = self._store_frozen(frozen_precision)
            again = Recomputation(self.blocks, self.recompute) if self.blocks and self.recompute else None
            return native.generate(
                self.forward, self.selection, self.loss, self.optimizer, Path(directory), batch_size=batch_size,
                precisions=[p for p in known if p in precision], stored=stored, recomputation=again,
            )  # fmt: skip
        from onnxft.generators.ort_training.generate import generate

        return generate(
            self.forward, self.selection, self.loss, self.optimizer, Path(directory),
            batch_size=batch_size, python=python, standalone=standalone, additional_outputs=additional_outputs,
        )  # fmt: skip

    def _store_frozen(self, precision: str) -> Stored | None:
        """The model with its frozen weights in fewer bytes, and how far that is from float32; None: as it is."""
        from onnxft.exporters.compare_stored import output_error
        from onnxft.step.frozen.store import check_precision, store_frozen

        checked = check_precision(precision)
        if checked == "float32":
            return None
        stored = store_frozen(self.forward, self.selection, checked)
        return replace(stored, weights=replace(stored.weights, outputs=output_error(self.forward, stored.forward)))

    def _refuse_for_native(self, python: str | None, standalone: bool, additional_outputs: Sequence[str]) -> None:
        if python is not None:
            raise ConfigError("python names the environment of the 'ort-training' generator; 'native' needs none.")
        if standalone:
            raise ConfigError(
                "standalone is a form of the 'ort-training' generator; every graph of 'native' runs in any onnxruntime "
                "as it is. Leave it out, or use --generator ort-training."
            )
        if additional_outputs:
            raise ConfigError(
                f"additional_outputs ({', '.join(additional_outputs)}) are for the 'ort-training' generator; with "
                "'native' evaluate() and predict() return the outputs of the model. Leave them out."
            )
        if "max_norm" in self.optimizer.options:
            raise ConfigError(
                "the optimizer option max_norm fixes the clipping of the 'ort-training' generator at export; 'native' "
                "takes it when it trains: leave it out, and use onnxft train --clip-norm."
            )


def plan(
    model: Any,
    example_inputs: Any = None,
    *,
    method: str | None = None,
    trainable: Sequence[str] | None = None,
    frozen: Sequence[str] = (),
    blocks: Sequence[str] = (),
    recompute: bool | int = False,
    lora_targets: Sequence[str] = (),
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
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
    from onnxft.step.methods.apply import apply_method, require_whole
    from onnxft.step.methods.blocks import find_blocks
    from onnxft.step.methods.method import parse_method
    from onnxft.step.optimizers import describe_optimizer
    from onnxft.step.select import select

    given = check_preprocessing(preprocessing or {})
    # What is unknown or out of range is found before the export, which may take minutes.
    check_loss(loss, loss_options or {}, len(classes) or None)
    check_factors(lr_factors or {}, weight_decays or {})
    how = parse_method(method, lora_targets, lora_alpha, lora_dropout)
    if how is None and blocks and not recompute:
        raise ConfigError(
            f"blocks ({', '.join(blocks)}) are for a method such as last:2, and for recompute: name one, or leave them "
            "out."
        )
    if recompute < 0:
        raise ConfigError(f"recompute is {recompute}; it must be true, or a number of blocks, at least 1.")
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
    applied = apply_method(forward, how, trainable, frozen, blocks)
    forward = applied.forward
    selection = select(forward, applied.trainable, frozen, train_batchnorm, lr_factors, weight_decays, no_decay_norms)
    require_whole(forward, selection)
    found = applied.blocks or (find_blocks(forward, blocks) if recompute else None)
    return Plan(forward, selection, reads, described, applied.notes, found, int(recompute))


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
    method: str | None = None,
    trainable: Sequence[str] | None = None,
    frozen: Sequence[str] = (),
    blocks: Sequence[str] = (),
    recompute: bool | int = False,
    lora_targets: Sequence[str] = (),
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
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
    standalone: bool = False,
    additional_outputs: Sequence[str] = (),
    precision: Sequence[str] = (),
    frozen_precision: Literal["float32", "float16", "bfloat16", "int8"] = "float32",
) -> Path:
    """Export a model as a training artifact.

    Args:
        model: a torch module (left as it is), a path `model.onnx`, or a source string: `package.module:factory`,
            `file.py:factory` or a Hugging Face model directory.
        example_inputs: tensors with the batch first: one, a tuple, or {argument name: tensor}; a file or a directory
            needs none.
        directory: where to write; None: `artifacts/<name of the source>`.
        method: what to train by one word, or several separated by commas: `full`, `head`, `last:K` (the last K blocks
            and the head), `bias`, `norm`, `lora[:RANK]` (low-rank adapters, rank 8 unless told otherwise). None: what
            `trainable` says.
        trainable: globs of the parameters to train, besides those of the method; `*` leaves out those with
            requires_grad=False. None: those of the method, without one all.
        frozen: globs of parameters that are not trained after all.
        blocks: globs that say what a block is, where names and graph tell it wrongly: `encoder.layer.*`.
        recompute: whether the activations of a block are computed again for its backward pass instead of being kept:
            less memory for about a third more work, and on cpu the same numbers. A number: of blocks that are computed
            again together; above 1 the runtime may fuse, and so round, otherwise. For the generator `native`.
        lora_targets: globs of the weights that get an adapter; (): all linear layers and convolutions but the head's.
        lora_alpha: factor of the adapters, divided by their rank; None: twice the rank.
        lora_dropout: of what goes to the adapters in training; None: 0.
        train_batchnorm: globs of the BatchNorm layers that normalise by the batch and move their running statistics,
            as torch's do in training mode; all others keep the statistics that they have. `num_batches_tracked` stays.
        loss: `cross_entropy` (int64 labels), `bce_with_logits` (labels from 0 to 1, of the output's shape), `mse`,
            `l1`, `huber`, `kl_div` (labels are probabilities) or `model` (the output is the loss itself: (batch,), or
            the mean over the batch); None: what the source suggests, else `cross_entropy`.
        loss_output: output that the loss reads; None: the first.
        loss_options: `class_weights`, `label_smoothing`, `ignore_index`, `shift`, `class_axis`; `pos_weight`; `delta`.
        optimizer: `adamw`, `adam`, `lion` or `sgd`.
        optimizer_options: `beta1`, `beta2`, `eps`; `momentum`, `nesterov`; with `ort-training` also `max_norm`, which
            clips in its optimizer graph. The rest has torch's defaults.
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
        standalone: with `ort-training`, whether the graphs take the model's inputs and the labels and nothing else, for
            its own interfaces in any language; the loss is then cross_entropy, mse, l1, bce_with_logits or model, and
            rows cannot be weighted.
        additional_outputs: with `ort-training`, values that a training step returns too: outputs of the model, or names
            of values inside it.
        precision: `bfloat16`, `float16` or both: graphs that multiply so, for providers that need them typed (CUDA,
            TensorRT), beside those in float32.
        frozen_precision: in which the weights of frozen linear layers, convolutions and embeddings are stored; `int8`
            has a scale for each output channel, of an embedding for each row. They are multiplied in float32, as is all
            that is trained; the manifest tells how far weights and outputs are from those in float32.

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
        model, example_inputs, method=method, trainable=trainable, frozen=frozen, blocks=blocks, recompute=recompute,
        lora_targets=lora_targets, lora_alpha=lora_alpha, lora_dropout=lora_dropout, train_batchnorm=train_batchnorm,
        loss=loss, loss_output=loss_output, loss_options=loss_options, optimizer=optimizer,
        optimizer_options=optimizer_options, weight_decay=weight_decay, lr_factors=lr_factors,
        weight_decays=weight_decays, no_decay_norms=no_decay_norms, input_names=input_names, output_names=output_names,
        dropout=dropout, dynamic_shapes=dynamic_shapes, dimensions=dimensions, classes=classes,
        preprocessing=preprocessing, name=Path(directory).name if directory is not None else None,
    )  # fmt: skip
    place = Path(directory) if directory is not None else Path("artifacts") / made.forward.name
    made.write(
        place, batch_size=made.forward.example_rows if batch_size is None else batch_size, generator=generator,
        python=python, standalone=standalone, additional_outputs=additional_outputs, precision=precision,
        frozen_precision=frozen_precision,
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
