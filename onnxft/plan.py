"""What an export will do: shown by `--dry-run`, carried out by `Plan.write`; heavy parts load when used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from onnxft.data.preprocess import check_preprocessing
from onnxft.errors import ConfigError, near
from onnxft.files import check_replaceable
from onnxft.manifest import FILE_NAME, HalfPrecision, Loss, Manifest, Optimizer

if TYPE_CHECKING:
    from onnxft.graph.forward import Forward
    from onnxft.step.frozen.store import Stored
    from onnxft.step.methods.blocks import Blocks
    from onnxft.step.select import Selection

GENERATORS = ("native", "ort-training")


class Plan:
    """A forward model with what was chosen for it."""

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
