"""The Python interface; heavy parts load when used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxft.data.prepare import prepare
from onnxft.plan import Plan, plan
from onnxft.runtime.session import TrainSession

if TYPE_CHECKING:
    from onnxft.benchmark.config import BenchConfig
    from onnxft.benchmark.report import Report
    from onnxft.data.open import Data
    from onnxft.training.config import TrainConfig
    from onnxft.training.lr_range import LrRange
    from onnxft.training.outcome import Run

__all__ = ["Plan", "TrainSession", "bench", "export", "plan", "prepare", "train"]


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
