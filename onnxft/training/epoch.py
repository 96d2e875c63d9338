"""The two things an epoch is made of: updates, and the evaluation after them."""

from __future__ import annotations

import math

from onnxft.errors import DataError, DivergedError
from onnxft.manifest import LABELS
from onnxft.runtime.session import StepResult, TrainSession
from onnxft.training.metrics import measure
from onnxft.training.plan import Batch, Plan
from onnxft.training.progress import Progress
from onnxft.training.records import Position


def update(session: TrainSession, group: list[Batch], plan: Plan, position: Position, progress: Progress) -> int:
    """One update from the batches of `group`; advances `position` and returns the number of rows."""
    config, lr = plan.config, plan.lr(position.step)
    max_norm = math.inf if config.clip_norm is None else config.clip_norm
    max_value = math.inf if config.clip_value is None else config.clip_value
    if len(group) == 1:
        results = [
            session.step(group[0], lr=lr, weight_decay=config.weight_decay, max_norm=max_norm, max_value=max_value)
        ]
        _require_finite(results, position, lr)
    else:
        results = [session.accumulate(batch) for batch in group]
        _require_finite(results, position, lr)
        session.update(lr=lr, weight_decay=config.weight_decay, max_norm=max_norm, max_value=max_value)
    loss_sum = sum(r.loss * r.weight_sum for r in results)
    weight_sum = sum(r.weight_sum for r in results)
    rows = sum(len(batch[LABELS]) for batch in group)
    position.step += 1
    position.batch += len(group)
    position.loss_sum += loss_sum
    position.weight_sum += weight_sum
    progress.step(len(group), rows, loss_sum / weight_sum, lr)
    return rows


def evaluate(session: TrainSession, plan: Plan, epoch: int) -> dict[str, float]:
    """Loss and metrics of the evaluated data; DivergedError where the loss is not finite."""
    result = session.evaluate(plan.evaluated.arrays)
    if not math.isfinite(result.loss):
        raise DivergedError(
            f"the loss of the evaluation after epoch {epoch} is {result.loss}. "
            + (f"Nothing was saved after epoch {epoch - 1}. Lower the learning rate." if epoch else "Check the model.")
        )
    loss = session.manifest.loss
    scores = {"loss": result.loss, **measure(loss, result.outputs[loss.output], plan.evaluated.arrays[LABELS])}
    if math.isnan(scores[plan.metric]):
        raise DataError(
            f"metric '{plan.metric}' is not defined on {plan.evaluated.source}: it holds a single class or row. "
            "Choose another metric, or evaluate on other data."
        )
    return scores


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
