"""From a user's batch to what an engine trains on."""

from __future__ import annotations

from onnxft.arrays import Array, Arrays
from onnxft.errors import DataError
from onnxft.manifest import SAMPLE_WEIGHTS
from onnxft.runtime.batches import check_batch, pad, require_weight, why_unweighted
from onnxft.runtime.engine import Engine
from onnxft.runtime.evaluation import data_ports
from onnxft.runtime.processes import Share
from onnxft.runtime.random_inputs import draw
from onnxft.runtime.sizes import sizes_of


def complete(batch: Arrays, engine: Engine, *, seed: int, step: int, micro_step: int, share: Share) -> dict[str, Array]:
    """The batch checked, padded to the size of the session, with the random inputs of this step.

    Of several processes each draws for the large batch, and takes what its share has of it.

    Raises:
        DataError: the batch does not fit the model.
    """
    manifest = engine.manifest
    ports = data_ports(manifest, batch)
    sizes = sizes_of(batch, ports, engine.sizes)
    checked, rows = check_batch(batch, ports, manifest.loss, sizes, first_row=share.rank * share.size)
    if rows > engine.batch_size:
        raise DataError(f"the batch has {rows} rows; this session takes at most {engine.batch_size} (batch_size).")
    if share.processes == 1:  # a share may weigh nothing: the update asks for the weight of all
        require_weight(checked, manifest.loss)
    graph = manifest.graph("ort_training" if manifest.generator == "ort-training" else "train")
    drawn = draw(graph.inputs, sizes, seed=seed, step=step, micro_step=micro_step, share=share)
    return {**_padded(checked, rows, engine), **drawn}


def _padded(batch: Arrays, rows: int, engine: Engine) -> dict[str, Array]:
    if engine.weights_in_training:
        return pad(batch, rows, engine.batch_size)
    weights = batch.get(SAMPLE_WEIGHTS)
    if rows != engine.batch_size or (weights is not None and (weights != 1).any()):
        raise DataError(
            f"{why_unweighted(engine.manifest)}, so a batch must have exactly {engine.batch_size} rows (batch_size), "
            f"all of weight 1; this one has {rows} rows{'' if weights is None else ' with weights of their own'}."
        )
    if engine.supports_weights:
        return pad(batch, rows, engine.batch_size)
    return {name: array for name, array in batch.items() if name != SAMPLE_WEIGHTS}
