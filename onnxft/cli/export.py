"""`onnxft export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxft.cli.options import (
    config_option,
    dimension_option,
    dynamic_shapes,
    key_values,
    loss_options,
    preprocess_option,
)


@click.command("export")
@click.argument("source")
@click.option("--out", "directory", type=click.Path(path_type=Path, file_okay=False), help="Artifact directory.")
@click.option(
    "--method", metavar="NAME[,NAME...]",
    help="What to train: full, head, last:K (blocks and the head), bias, norm, lora[:RANK]; --train adds to it.",
)  # fmt: skip
@click.option(
    "--train", "trainable", multiple=True, metavar="GLOB",
    help="Parameters to train [default: those of --method, else all that the model has not frozen]. Repeatable.",
)  # fmt: skip
@click.option(
    "--freeze", "frozen", multiple=True, metavar="GLOB", help="Parameters not to train after all. Repeatable."
)
@click.option(
    "--block", "blocks", multiple=True, metavar="GLOB",
    help="What a block is, such as encoder.layer.* [default: found from names and graph]. Repeatable.",
)  # fmt: skip
@click.option(
    "--recompute", is_flag=True,
    help="Compute the activations of a block again for its backward pass instead of keeping them: less memory.",
)  # fmt: skip
@click.option(
    "--recompute-blocks", type=int, metavar="K",
    help="How many blocks are computed again together [default: 1]; with it --recompute is meant.",
)  # fmt: skip
@click.option(
    "--lora-target", "lora_targets", multiple=True, metavar="GLOB",
    help="Weights that get an adapter [default: all linear layers and convolutions but the head's]. Repeatable.",
)  # fmt: skip
@click.option("--lora-alpha", type=float, metavar="X", help="Factor of the adapters [default: twice the rank].")
@click.option("--lora-dropout", type=float, metavar="X", help="Of what goes to the adapters [default: 0].")
@click.option(
    "--train-batchnorm",
    multiple=True,
    metavar="GLOB",
    help="BatchNorm layers that use the batch's statistics and train their running ones [default: none]. Repeatable.",
)
@click.option(
    "--loss", metavar="NAME",
    help="cross_entropy, bce_with_logits, mse, l1, huber, kl_div, or model: the output is the loss itself "
    "[default: what the source suggests, else cross_entropy].",
)  # fmt: skip
@click.option("--loss-output", metavar="NAME", help="Output that the loss reads [default: the first].")
@click.option(
    "--loss-option", "loss_options", multiple=True, metavar="KEY=X[,X...]",
    help="cross_entropy: class_weights (one for each class), label_smoothing, ignore_index, shift, class_axis; "
    "bce_with_logits: pos_weight; huber: delta. Repeatable.",
)  # fmt: skip
@click.option("--optimizer", default="adamw", show_default=True, metavar="NAME", help="adamw, adam, lion or sgd.")
@click.option(
    "--optimizer-option",
    "optimizer_options",
    multiple=True,
    metavar="KEY=X",
    help="beta1, beta2, eps; momentum, nesterov; ort-training: max_norm.",
)
@click.option("--weight-decay", type=float, help="Default decay [default: torch's].")
@click.option(
    "--lr-factor", "lr_factors", multiple=True, metavar="GLOB=X",
    help="Factor of the learning rate for parameters; the last pattern that matches holds. Repeatable.",
)  # fmt: skip
@click.option(
    "--decay", "weight_decays", multiple=True, metavar="GLOB=X", help="Decay of parameters, likewise. Repeatable."
)
@click.option("--no-decay-norms", is_flag=True, help="No decay of biases and normalisation (at most one dimension).")
@click.option("--batch-size", type=int, help="Rows of a step [default: those of the example].")
@click.option(
    "--input-name", "input_names", multiple=True, metavar="NAME", help="Name of an input, in order. Repeatable."
)
@click.option(
    "--output-name", "output_names", multiple=True, metavar="NAME", help="Name of an output, in order. Repeatable."
)
@click.option(
    "--dynamic", "dynamic_shapes", multiple=True, metavar="INPUT:AXIS=NAME",
    help="Dimension that stays symbolic besides the batch. Repeatable.",
)  # fmt: skip
@click.option("--fixed", is_flag=True, help="Fix every dimension besides the batch, the length of texts too.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Name of a class, in order. Repeatable.")
@preprocess_option("How pictures are made: size, resize, interpolation, color, scale, mean, std. Repeatable.")
@click.option(
    "--dropout/--no-dropout", default=True, show_default=True, help="Keep Dropout and other random operators."
)
@dimension_option("Default size of an open dimension besides the batch. Repeatable.")
@click.option("--generator", default="native", show_default=True, metavar="NAME", help="native or ort-training.")
@click.option("--python", metavar="PATH", help="Interpreter of the ort-training environment.")
@click.option(
    "--standalone", is_flag=True,
    help="ort-training: graphs that take the model's inputs and the labels and nothing else, for its own interfaces.",
)  # fmt: skip
@click.option(
    "--additional-output", "additional_outputs", multiple=True, metavar="NAME",
    help="ort-training: value that a training step returns too. Repeatable.",
)  # fmt: skip
@click.option(
    "--precision", multiple=True, metavar="NAME",
    help="bfloat16 or float16: graphs that multiply so, for CUDA and TensorRT, beside float32. Repeatable.",
)  # fmt: skip
@click.option(
    "--frozen-precision", default="float32", show_default=True, metavar="NAME",
    help="How weights that are not trained are stored: float32, float16, bfloat16, or int8 with a scale a channel.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be trained; write nothing.")
@config_option
def export(source: str, directory: Path | None, *, dry_run: bool, **options: Any) -> None:
    """Export SOURCE as a training artifact: model.onnx, package.module:factory, file.py:factory or a model directory.

    A factory returns (torch module, example inputs); a directory is one of Hugging Face; a .onnx file
    needs no torch. Try --dry-run first: it lists every parameter and what the patterns choose.
    """
    from onnxft.cli.render import artifact_summary, block_list, parameter_table, say
    from onnxft.plan import plan

    written = (
        "batch_size", "generator", "python", "standalone", "additional_outputs", "precision", "frozen_precision",
    )  # fmt: skip
    writing = {key: options.pop(key) for key in written}
    options["preprocessing"] = options.pop("preprocess")
    together = options.pop("recompute_blocks")
    options["recompute"] = options["recompute"] if together is None else together
    for key in ("optimizer_options", "lr_factors", "weight_decays"):
        options[key] = key_values(options[key])
    options["loss_options"] = loss_options(options["loss_options"])
    named = dynamic_shapes(options["dynamic_shapes"])
    if options.pop("fixed"):
        if named:
            raise click.UsageError("--fixed and --dynamic exclude each other.")
        options["dynamic_shapes"] = {}
    else:
        options["dynamic_shapes"] = named or None
    for key in ("trainable", "input_names", "output_names"):
        options[key] = options[key] or None
    made = plan(source, name=directory.name if directory else None, **options)
    place = directory or Path("artifacts") / made.forward.name
    parameter_table(made)
    block_list(made)
    for note in made.notes:
        say(f"Note: {note}.")
    if dry_run:
        say("Dry run: nothing was written.")
        return
    batch_size = writing.pop("batch_size")
    manifest = made.write(place, batch_size=made.forward.example_rows if batch_size is None else batch_size, **writing)
    artifact_summary(place, manifest)
