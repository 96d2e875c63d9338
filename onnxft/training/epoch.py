"""The two things an epoch is made of: updates, and the evaluation after them."""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, closing, nullcontext

from onnxft.data.dataset import Batch
from onnxft.data.share import rows_that_count
from onnxft.errors import DataError, DivergedError
from onnxft.manifest import LABELS
from onnxft.runtime.session import StepResult, TrainSession
from onnxft.training.confusion import Confusion
from onnxft.training.metrics import join, measure, reduce
from onnxft.training.plan import Plan
from onnxft.training.position import Position
from onnxft.training.progress import Progress


def update(session: TrainSession, group: list[Batch], plan: Plan, position: Position, progress: Progress) -> int:
    """One update from the batches of `group`; advances `position` and returns the number of rows."""
    config, lr = plan.config, plan.lr(position.step)
    rate, decay = plan.rates(position.step)
    max_norm = math.inf if config.clip_norm is None else config.clip_norm
    max_value = math.inf if config.clip_value is None else config.clip_value
    if len(group) == 1 and config.accumulate == 1:
        with plan.naming_batch(position, 0):
            results = [session.step(group[0], lr=rate, weight_decay=decay, max_norm=max_norm, max_value=max_value)]
        _require_finite(results, position, lr)
    else:  # a last short group too: the graph of a single step would take an arena of its own
        results = []
        for place, batch in enumerate(group):
            with plan.naming_batch(position, place):
                results.append(session.accumulate(batch))
        _require_finite(results, position, lr)
        session.update(lr=rate, weight_decay=decay, max_norm=max_norm, max_value=max_value)
    if config.ema is not None:
        session.average(config.ema)
    loss_sum = sum(r.loss * r.weight_sum for r in results)
    weight_sum = sum(r.weight_sum for r in results)
    rows = sum(rows_that_count(batch, session.processes) for batch in group)
    position.step += 1
    position.batch += len(group)
    position.loss_sum += loss_sum
    position.weight_sum += weight_sum
    progress.step(len(group), rows, loss_sum / weight_sum, lr)
    return rows


def keep_equal(session: TrainSession, progress: Progress) -> None:
    """All processes have the same parameters, and go on from those of the first if they have not.

    On one kind of processor they are the same bit for bit; others may round an update otherwise, and so drift apart.
    """
    if session.processes.size == 1:
        return
    values = {**session.parameters}
    if not session.processes.same([hashlib.sha256(values[name].tobytes()).hexdigest() for name in sorted(values)]):
        progress.say("the processes have rounded updates differently: all go on from the parameters of the first one")
        session.take_from_first()


def kept_weights(session: TrainSession, plan: Plan, position: Position) -> AbstractContextManager[object]:
    """Within it the session shows what is evaluated and kept: with `ema` the averages, once there are any."""
    return nullcontext() if plan.config.ema is None or not position.step else session.averaged()


def evaluate(session: TrainSession, plan: Plan, epoch: int) -> tuple[dict[str, float], Confusion | None]:
    """Loss and metrics of the evaluated data, batch by batch, and the confusion matrix where rows have one class.

    Raises:
        DivergedError: the loss is not finite.
        DataError: a batch cannot be read, all rows weigh 0, or the chosen metric is not defined on this data.
    """
    loss, total, weight, parts = session.manifest.loss, 0.0, 0.0, []
    with closing(plan.evaluated.batches(0)) as batches:  # type: ignore[type-var]
        for number, batch in enumerate(batches, 1):
            try:
                result = session.evaluate(batch)
            except DataError as err:
                raise DataError(f"{plan.evaluated.source}, batch {number} of the evaluation: {err}") from err
            if result.weight_sum > 0:
                total, weight = total + result.loss * result.weight_sum, weight + result.weight_sum
            parts.append(reduce(loss, result.outputs.get(loss.output), batch.get(LABELS)))
    if not weight > 0:
        raise DataError(f"all rows of {plan.evaluated.source} have the sample weight 0, so there is no mean loss.")
    if not math.isfinite(total / weight):
        raise DivergedError(
            f"the loss of the evaluation after epoch {epoch} is {total / weight}. "
            + (f"Nothing was saved after epoch {epoch - 1}. Lower the learning rate." if epoch else "Check the model.")
        )
    reduced = join(parts)
    scores = measure(loss, reduced, total / weight)
    if math.isnan(scores[plan.metric]):
        raise DataError(
            f"metric '{plan.metric}' is not defined on {plan.evaluated.source}: it holds a single class or row. "
            "Choose another metric, or evaluate on other data."
        )
    return scores, Confusion.of(loss, reduced, plan.classes)


def _require_finite(results: list[StepResult], position: Position, lr: float) -> None:
    for batch, result in enumerate(results, position.batch + 1):
        where = f"epoch {position.epoch + 1}, step {position.step + 1}, batch {batch}"
        if not result.weight_sum > 0:
            raise DataError(f"all rows have the sample weight 0 in {where}. Remove such rows, or take another seed.")
        if not math.isfinite(result.loss):
            raise DivergedError(
                f"the loss is {result.loss} in {where}. Nothing was saved after epoch {position.epoch}. "
                f"Lower the learning rate ({lr:g} here), warm it up, or clip gradients (clip_norm)."
            )
