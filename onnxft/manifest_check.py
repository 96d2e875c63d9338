"""What the types of a manifest cannot say: how its parts must fit each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from onnxft.manifest import BATCH, GraphFile, GraphRole, Loss, Manifest, Port, dimension_size
from onnxft.merge import LORA_A, LORA_B

MAX_VALUES = 2**34
"""Values of one array: more is taken for a damaged or hostile file, before anything is allocated."""
_BACKWARD: tuple[GraphRole, ...] = ("gradients", "batch_gradients", "train")
"""Roles whose graphs have a backward pass; artifacts of before 2026-12 lack the second."""


def problems(manifest: Manifest) -> Iterator[str]:
    """Sentences without their full stop, none where everything fits."""
    if (text := _unprintable(manifest)) is not None:
        yield f"the text {text!r} has control characters, on which a terminal or a report would act"
    if manifest.batch_size < 1:
        yield f"batch_size is {manifest.batch_size}, it must be at least 1"
    for dimension, size in manifest.dimensions.items():
        if dimension == BATCH or size < 1:
            yield f"the dimension '{dimension}' has the size {size}, it must be at least 1 and not be the batch"
    yield from _loss_problems(manifest.loss)
    yield from _work_problems(manifest)
    yield from _frozen_problems(manifest)
    yield from _recompute_problems(manifest)
    names = {p.name for p in manifest.parameters}
    if len(names) != len(manifest.parameters):
        yield "a parameter is listed twice"
    if not names:
        yield "no parameter is trained"
    listed = [g.name for g in manifest.parameter_groups]
    if len(set(listed)) != len(listed) or not set(listed) <= set(manifest.groups):
        yield f"the parameter groups {listed} are not those of the parameters, each once"
    for group in manifest.parameter_groups:
        if not (0 < group.lr_factor < math.inf and 0 <= (group.weight_decay or 0) < math.inf):
            yield f"the parameter group '{group.name}' has a rate or decay that is out of range"
    if len({t.name for t in manifest.weights}) != len(names) + len(manifest.buffers):
        yield "a running statistic is listed twice, or as a parameter too"
    for precision, graphs in (*manifest.half.items(), *manifest.recomputed.items()):
        if any(g.precision != precision for g in graphs.values()):
            yield f"a graph listed under {precision} has another precision"
    shapes = {p.name: p.shape for p in manifest.parameters}
    buffer_shapes = {b.name: b.shape for b in manifest.buffers}
    for role, graph in manifest.every_graph:
        if graph.file not in manifest.files:
            yield f"graph '{role}' names the file '{graph.file}', which has no sha256"
        for port in graph.inputs:
            sizes = [dimension_size(d, {BATCH: manifest.batch_size, **manifest.dimensions}) for d in port.shape]
            known = [size for size in sizes if size is not None]
            if len(known) < len(sizes):
                d = port.shape[sizes.index(None)]
                yield f"input '{port.name}' of graph '{role}' has the dimension '{d}', whose size is not given"
            elif any(size < 0 for size in known) or math.prod(known) > MAX_VALUES:
                yield (
                    f"input '{port.name}' of graph '{role}' has the shape {list(port.shape)}, here {known}: more "
                    f"than the {MAX_VALUES:,} values that onnxft allocates for one array, or less than none"
                )
        for port in (*graph.inputs, *graph.outputs):
            if port.parameter is not None and port.parameter not in names:
                yield f"'{port.name}' of graph '{role}' belongs to the unknown parameter '{port.parameter}'"
            elif port.parameter is not None and port.shape != _shape_of(port, shapes[port.parameter]):
                yield (
                    f"'{port.name}' of graph '{role}' has the shape {list(port.shape)}, its parameter "
                    f"{list(shapes[port.parameter])}" + ("" if port.rows is None else f", of which it has {port.rows}")
                )
            if port.rows is not None and port.parameter is None:
                yield f"'{port.name}' of graph '{role}' has rows of no parameter"
            if (port.role == "buffer") != (port.buffer is not None):
                yield f"'{port.name}' of graph '{role}' has the role '{port.role}' and the buffer {port.buffer!r}"
            elif port.buffer is not None and port.shape != buffer_shapes.get(port.buffer):
                yield (
                    f"'{port.name}' of graph '{role}' has the shape {list(port.shape)}; the running statistic "
                    f"'{port.buffer}' is unknown or has another"
                )
        for name in _divided_badly(graph, shapes):
            yield f"graph '{role}' has some rows of '{name}' twice or not at all"
    yield from _merge_problems(manifest)
    for tensor in manifest.weights:
        if tensor.inference is not None and tensor.inference.file not in manifest.files:
            yield f"'{tensor.name}' lies in the file '{tensor.inference.file}', which has no sha256"
    for file in manifest.files:
        if file != Path(file).name or file in ("", ".", ".."):
            yield f"the file name {file!r} leaves the artifact directory"


def _merge_problems(manifest: Manifest) -> Iterator[str]:
    shapes = {p.name: p.shape for p in manifest.parameters}
    factors = [p for p in manifest.parameters if p.merge is not None]
    if any((p.origin == "added") != (p.merge is not None) for p in manifest.parameters):
        yield "a parameter that was added is merged into none, or the other way round"
    if sorted(f"{p.merge.target}.{p.merge.rule}" for p in factors if p.merge) != sorted(p.name for p in factors):
        yield "the factors of an adapter are not called after what they are merged into"
    for p in factors:
        assert p.merge is not None
        a, b = (shapes.get(f"{p.merge.target}.{rule}", ()) for rule in (LORA_A, LORA_B))
        w, ones = p.merge.target_shape, (1,) * (len(p.merge.target_shape) - 2)
        if p.merge.transposed:
            w = w[::-1]
        if len(w) < 2 or min(*a, *b, 1) < 1 or len(a) < 1 or (a, b) != ((a[0], *w[1:]), (w[0], a[0], *ones)):
            yield f"'{p.name}' {list(p.shape)} is no factor of an adapter of {list(p.merge.target_shape)}"
        if not 0 < p.merge.alpha < math.inf or not 0 <= p.merge.dropout < 1 or p.merge.target in shapes:
            yield f"the adapter '{p.name}' has a scale or dropout out of range, or its target is trained too"


def _loss_problems(loss: Loss) -> Iterator[str]:
    if loss.class_axis < 1:
        yield f"the classes lie along axis {loss.class_axis}, which must be at least 1"
    if loss.shift < 0 or (loss.shift and (loss.class_axis != 2 or loss.ignore_index is None)):
        yield "the loss shifts labels without positions before the classes and an ignored label"
    for name, weights, counts in (
        ("class_weights", loss.class_weights, (0, loss.num_classes)),
        ("pos_weight", loss.pos_weight, (0, 1, loss.num_classes)),
    ):
        if len(weights) not in counts or not all(0 <= w < math.inf for w in weights):
            yield f"the loss has the {name} {list(weights)} for {loss.num_classes} classes"
    if not 0 <= loss.label_smoothing < 1 or not 0 < loss.delta < math.inf:
        yield f"the loss has the label_smoothing {loss.label_smoothing} and the delta {loss.delta}"


def _work_problems(manifest: Manifest) -> Iterator[str]:
    for work in filter(None, (manifest.work, manifest.work_from_features)):
        for name, part in msgspec.to_builtins(work).items():
            if min(part.values()) < 0:
                yield f"the work of '{name}' is {part['flops']} operations and {part['bytes']} bytes: less than none"


def _frozen_problems(manifest: Manifest) -> Iterator[str]:
    frozen = manifest.frozen_weights
    if frozen is None:
        return
    if frozen.precision == "float32" or frozen.stored < 1 or not 0 < frozen.bytes < frozen.float32_bytes:
        yield (
            f"{frozen.stored} frozen weights in {frozen.precision} have {frozen.bytes} bytes, and "
            f"{frozen.float32_bytes} in float32"
        )
    if any(not 0 <= e.mean < math.inf or not 0 <= e.max < math.inf for e in (frozen.weights, frozen.outputs) if e):
        yield "the relative error of the frozen weights or of the outputs is out of range"


def _recompute_problems(manifest: Manifest) -> Iterator[str]:
    if manifest.recompute < 0:
        yield f"recompute is {manifest.recompute}, it must be at least 0"
    if manifest.recompute and manifest.generator != "native":
        yield f"recompute is {manifest.recompute} with the generator {manifest.generator}, which keeps all activations"
    backward = [role for role in _BACKWARD if role in manifest.graphs]
    expected = {("float32", role) for role in backward} | {(p, "gradients") for p in manifest.half}
    found = {(precision, role) for precision, graphs in manifest.recomputed.items() for role in graphs}
    if found != (expected if manifest.recompute else set()):
        listed = ", ".join(f"{precision} {role}" for precision, role in sorted(found)) or "none"
        yield f"recompute is {manifest.recompute}, and the graphs that compute activations again are {listed}"
        return
    for precision, graphs in manifest.recomputed.items():
        for role, graph in graphs.items():
            if _ports(graph) != _ports(manifest.graph(role, precision)):
                yield f"the graph '{graph.file}' has other inputs or outputs than the one that keeps activations"


def _ports(graph: GraphFile) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What it takes and gives, wherever it writes that."""
    return graph.inputs, tuple(replace(port, in_place=False) for port in graph.outputs)


def _shape_of(port: Port, whole: Sequence[int]) -> tuple[int, ...]:
    """The shape of a port that has some rows of a parameter, or all."""
    return tuple(whole) if port.rows is None else (port.rows[1] - port.rows[0], *whole[1:])


def _divided_badly(graph: GraphFile, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Names of parameters of which the graph reads or writes some rows twice or not at all."""
    for side in (graph.inputs, graph.outputs):
        blocks: dict[tuple[str, str, str | None], list[tuple[int, int]]] = {}
        for port in side:
            if port.rows is not None and port.parameter is not None and port.parameter in shapes:
                blocks.setdefault((port.parameter, port.role, port.slot), []).append(port.rows)
        for (name, *_), rows in blocks.items():
            starts, stops = zip(*sorted(rows), strict=True)
            if starts != (0, *stops[:-1]) or shapes[name][:1] != stops[-1:] or any(a >= b for a, b in rows):
                yield name


def _unprintable(manifest: Manifest) -> str | None:
    """A text with control characters."""
    whole = msgspec.json.encode(manifest).decode()
    if whole.isprintable() and "\\" not in whole:  # there is none, which is seen at once
        return None
    return next((text for text in _texts(msgspec.to_builtins(manifest)) if not text.isprintable()), None)


def _texts(value: object) -> Iterator[str]:
    """Every string in decoded JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
