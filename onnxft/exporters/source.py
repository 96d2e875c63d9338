"""From whatever the user brings to a forward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxft.errors import ModelError
from onnxft.graph.forward import Forward


def export_source(
    model: Any,
    example_inputs: Any = None,
    *,
    name: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dynamic_shapes: Mapping[str, Mapping[int, str]] | None = None,
    dimensions: Mapping[str, int] | None = None,
) -> Forward:
    """Export a torch module, or what a source names.

    That is a `.onnx` file, `package.module:factory`, `file.py:factory` or a Hugging Face model directory.

    Args:
        model: the module, a path or the string.
        example_inputs: for a module or a directory, see `export_module`; for a file, see `export_file`.
        name: of the model; None takes that of the factory or of the module's class.
        input_names: names of the inputs in the graphs; None takes forward's argument names.
        output_names: names of the outputs.
        dropout: whether the training graph keeps Dropout and other random operators.
        dynamic_shapes: of a module, see `export_module`.
        dimensions: of a file: {symbolic dimension besides the batch: its default size}

    Raises:
        ModelError: the source does not exist or cannot be exported, or the export does not equal it.
    """
    if isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        from onnxft.exporters.onnx_file import export_file

        return export_file(
            Path(model),
            example_inputs,
            name=name,
            input_names=input_names,
            output_names=output_names,
            dropout=dropout,
            dimensions=dimensions,
        )
    from onnxft.exporters.factory import load_factory
    from onnxft.exporters.pytorch import export_module

    if isinstance(model, Path) or (isinstance(model, str) and Path(model).is_dir()):
        return _export_directory(
            Path(model), example_inputs, name=name or Path(model).resolve().name, input_names=input_names,
            output_names=output_names, dropout=dropout, dynamic_shapes=dynamic_shapes,
        )  # fmt: skip
    if isinstance(model, str):
        name = name or source_name(model)
        model, example_inputs = load_factory(model)
    return export_module(
        model,
        example_inputs,
        name=name or type(model).__name__.lower(),
        input_names=input_names,
        output_names=output_names,
        dropout=dropout,
        dynamic_shapes=dynamic_shapes,
    )


def _export_directory(directory: Path, example_inputs: Any, **options: Any) -> Forward:
    try:
        from onnxft.exporters.huggingface import export_directory
    except ModuleNotFoundError as err:
        raise ModelError(
            f"'{directory}' is read with the package transformers, and '{err.name}' is not installed: "
            "pip install 'onnxft[huggingface]'."
        ) from err
    return export_directory(directory, example_inputs, **options)


def source_name(source: str) -> str:
    """A name for the artifact of a source: that of its factory, folder or file."""
    return source.rpartition(":")[2] if ":" in source else Path(source).stem
