"""The loop: load, for batch, step, log, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from onnxft.data.dataset import Dataset
from onnxft.data.open import Data
from onnxft.data.stream import Stream
from onnxft.errors import ConfigError
from onnxft.manifest import Manifest
from onnxft.memory import resident_bytes
from onnxft.runtime.mpi import joined, require_size
from onnxft.runtime.providers import AUTO
from onnxft.runtime.session import TrainSession
from onnxft.training.budget import MemoryPlan
from onnxft.training.config import EXECUTION, TrainConfig, resumed
from onnxft.training.epoch import evaluate, keep_equal, kept_weights, update
from onnxft.training.features import keep_features
from onnxft.training.interrupt import Interrupt
from onnxft.training.log import Log
from onnxft.training.metrics import BETTER
from onnxft.training.opening import asked_for, opened
from onnxft.training.outcome import Run, Start
from onnxft.training.plan import Plan
from onnxft.training.position import Position
from onnxft.training.progress import Progress, Several, number
from onnxft.training.records import Records, read_position
from onnxft.training.result_tables import Row
from onnxft.training.run_directory import is_blank, keeping, newest_directory, next_directory, require_new, saved_config
from onnxft.training.tensorboard import EventFiles, require_tensorboard
from onnxft.training.warm_start import begin_with


def run(
    artifact: Path | str | None = None,
    data: Data | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    val: Data | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Callable[[Start], None] | None = None,
) -> Run:
    """Fine-tune an artifact on a data set.

    Args:
        artifact: directory written by `onnxft export`; None: the configuration's.
        data: a file, a folder, `module:name` of code, or arrays by name: inputs by the names of the exported graph
            and `labels`, optionally `sample_weights`; all (rows, ...). None: the configuration's, which names no code.
        config: options; a mapping sets some of them, over the defaults or over those of the run to resume.
        val: rows to evaluate on; None evaluates on those that `split` holds back, else on `data`.
        run_dir: None: `runs/<artifact name>-<n>`, a new one or, with `resume`, the newest.
        resume: continue the run from its last checkpoint.
        progress: shows the run; of several processes, in the first.
        announce: called once before the first step, likewise.

    Raises:
        OnnxftError: whatever does not fit; see `training.loop.train` and `TrainSession`.
    """
    given = config.to_dict() if isinstance(config, TrainConfig) else dict(config or {})
    wanted = TrainConfig.from_mapping({"processes": given.get("processes")}).processes
    with joined(wanted, resume=resume) as processes:
        # The first machine may be the only one with the directory of the run.
        asked = partial(_asked, artifact, data, config, val, run_dir, resume)
        place, manifest, effective, directory = processes.from_first(asked)
        require_size(effective.processes or 1, processes)
        with opened(place, manifest, effective, data, val, processes, as_it_is=resume) as found:
            effective = found.config
            if effective.provider == AUTO:
                effective = replace(effective, provider=found.session.placement.obtained)
            return train(
                found.session, found.data, found.val, effective, directory, progress, resume=resume, announce=announce,
                memory=found.memory,
            )  # fmt: skip


def _asked(
    artifact: Path | str | None,
    data: Data | None,
    config: TrainConfig | Mapping[str, Any] | None,
    val: Data | None,
    run_dir: Path | str | None,
    resume: bool,
) -> tuple[Path, Manifest, TrainConfig, Path]:
    """Place and manifest of the artifact, all options, and the directory of the run."""
    places = saved_config(Path(run_dir)).places if resume and run_dir is not None else {}
    place, manifest, asked = asked_for(artifact, data, config, val, places)
    directory = Path(run_dir) if places and run_dir is not None else _directory(run_dir, manifest.name, resume)
    if not resume:
        return place, manifest, TrainConfig.from_mapping(asked), directory
    saved = saved_config(directory)
    taken_up = not is_blank(directory) and read_position(directory).is_of_another(manifest.generator)
    return place, manifest, resumed(saved, asked, EXECUTION if taken_up else ()), directory


def _directory(run_dir: Path | str | None, name: str, resume: bool) -> Path:
    runs = Path("runs")
    if run_dir is None:
        return newest_directory(runs, name) if resume else next_directory(runs, name)
    directory = Path(run_dir)
    if not resume:
        require_new(directory)
    return directory


def _start(session: TrainSession, plan: Plan, directory: Path, weights: str | None, taken_up: str | None) -> Start:
    own = None if plan.split == "train" else plan.evaluated
    return Start(
        session.manifest, session.placement, plan.config, directory, session.batch_size, plan.data.source,
        plan.data.rows, plan.batches[0], plan.rows_left_out, own.source if own else None, own.rows if own else None,
        plan.classes, weights, session.processes.size, plan.memory, taken_up,
        session.recomputes,
    )  # fmt: skip


def train(
    session: TrainSession,
    data: Dataset | Stream,
    val: Dataset | Stream | None,
    config: TrainConfig,
    run_dir: Path,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    announce: Callable[[Start], None] | None = None,
    memory: MemoryPlan | None = None,
) -> Run:
    """Train an open session and record everything in `run_dir`.

    Args:
        session: opened with the provider, threads, batch size, recomputation, processes and seed of `config`. Of
            several processes the first reads and writes the directory, shows the run and evaluates; each calls this and
            returns the same.
        data: rows to train on.
        val: rows to evaluate on; None evaluates on `data`.
        config: what to do.
        run_dir: a new directory, or with `resume` that of the run to continue.
        progress: shows the run; None shows nothing.
        resume: continue from checkpoints/last, bit for bit where the provider is deterministic.
        announce: called once before the first step.
        memory: what the run is expected to take, to be told and compared.

    Raises:
        DataError: the data does not fit the model.
        ConfigError: the options do not fit the model, the data, or each other; or the directory is in use.
        ArtifactError: there is no checkpoint to resume, or it belongs to other data or another artifact.
        DivergedError: a loss is not finite; what was saved before stays.
    """
    if config.tensorboard:
        require_tensorboard()
    if config.ema is not None and not session.supports_averages:
        raise ConfigError(
            f"ema is {config.ema}, but the artifact '{session.manifest.name}' has no graph for averages of the "
            "parameters. Leave ema out, or export again with the native generator."
        )
    plan, processes = replace(Plan.make(session, data, val, config), memory=memory), session.processes
    plan.require_same(processes)
    with keeping(run_dir) if processes.rank == 0 else nullcontext():
        records, position, where = processes.from_first(lambda: _begin(session, plan, run_dir, resume, announce))
        if processes.size > 1:
            session.take_from_first()
        run = _train(session, plan, records, position, progress or Progress(), where)
    return replace(run, process=processes.rank)


def _begin(
    session: TrainSession, plan: Plan, run_dir: Path, resume: bool, announce: Callable[[Start], None] | None
) -> tuple[Records, Position, str]:
    """The directory and the position from which the run goes, and a sentence about it."""
    anew = not resume or is_blank(run_dir)
    weights, taken_up, begun = None, None, dict(plan.origin)
    if anew:
        weights, read = begin_with(session, plan.config)
        begun.update(read)
    position = Position(begun, stages=[plan.stage]) if anew else read_position(run_dir)
    if resume:
        records, taken_up = _resume(session, plan, run_dir, position, blank=anew)
    else:
        records = Records.create(run_dir, plan.config, session)
    if announce is not None:
        announce(_start(session, plan, run_dir, weights, taken_up))
    notes = ("" if weights is None else f", from the weights {weights}") + ("" if taken_up is None else f"; {taken_up}")
    return records, position, _where(position, resume) + notes


def _train(
    session: TrainSession, plan: Plan, records: Records, position: Position, progress: Progress, where: str
) -> Run:
    """The loop itself, shown and logged by the first process."""
    config, run_dir, processes = plan.config, records.directory, session.processes
    shown: list[Progress] = []
    log = Progress()
    if processes.rank == 0:
        told = Log(run_dir / "train.log")
        told.begin(session, config, where)
        if plan.memory is not None:
            told.say(f"memory {plan.memory.line}")
        shown, log = [progress, told], told
        if config.tensorboard:
            shown.append(EventFiles(run_dir, position.step, known=bool(records.rows)))
    with Interrupt(terminated=processes.size > 1) as interrupt, Several(*shown) as progress:
        plan = keep_features(session, plan, run_dir, progress, lambda: interrupt.asked)
        end_epoch = partial(_end_epoch, session, plan, records, progress)
        if not records.rows:
            position = processes.from_first(partial(end_epoch, position))
        while position.epoch < config.epochs and not plan.gives_up(position):
            progress.begin_epoch(position.epoch + 1, config.epochs, plan.batches[position.epoch], position.batch)
            started, rows, waited = time.perf_counter(), 0, plan.data.waited
            with closing(plan.groups(position)) as groups:  # type: ignore[type-var]
                for group in groups:
                    rows += update(session, group, plan, position, progress)
                    if processes.any(interrupt.asked):
                        return processes.from_first(partial(_interrupted, session, plan, position, records, log))
            speed = {"seconds": time.perf_counter() - started, "rows": rows, "waited": plan.data.waited - waited}
            position = processes.from_first(partial(end_epoch, position, speed))
            keep_equal(session, progress)
            if session.loss_scale.skipped:
                log.say(session.loss_scale.line)
        return processes.from_first(partial(_finish, session, plan, position, records, log))


def _interrupted(session: TrainSession, plan: Plan, position: Position, records: Records, log: Progress) -> Run:
    records.save_checkpoint(session, position)
    log.say(f"interrupted in epoch {position.epoch + 1} after batch {position.batch}: checkpoint")
    return _result(records, plan, position, "interrupted", session)


def _finish(session: TrainSession, plan: Plan, position: Position, records: Records, log: Progress) -> Run:
    for note in records.finish(session, position.best_epoch):
        log.say(note)
    end: Literal["complete", "early"] = "complete" if position.epoch >= plan.config.epochs else "early"
    run = _result(records, plan, position, end, session)
    if run.memory:
        log.say(f"memory {run.memory}")
    log.say(f"{run.end} after epoch {run.epochs}, best epoch {run.best_epoch}: {_metrics(run.after)}")
    return run


def _where(position: Position, resume: bool) -> str:
    if not resume:
        return "a new run"
    return f"resumed after epoch {position.epoch}, batch {position.batch} of the next one, {position.step} updates"


def _metrics(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def _resume(
    session: TrainSession, plan: Plan, run_dir: Path, position: Position, *, blank: bool
) -> tuple[Records, str | None]:
    """A run as it was at its checkpoint, `blank` where it was killed before it had any and begins again.

    Where another generator goes on, also a sentence about it.
    """
    other = position.is_of_another(session.manifest.generator)
    resumed(saved_config(run_dir), plan.config.to_dict(), EXECUTION if other else ())
    taken_up = position.take_up(plan.stage, plan.origin["artifact"], run_dir) if other else None
    records = Records(run_dir) if blank else Records.reopen(run_dir, position, session)
    plan.require_origin(position, run_dir)
    done = position.epoch + (position.batch > 0)
    if plan.config.epochs < done:
        raise ConfigError(
            f"the run in '{run_dir}' is in epoch {done}: it cannot end after epochs {plan.config.epochs}."
        )
    records.describe(plan.config, session)
    return records, taken_up


def _end_epoch(
    session: TrainSession,
    plan: Plan,
    records: Records,
    progress: Progress,
    position: Position,
    speed: Row | None = None,
) -> Position:
    """Evaluate, choose the best weights and save; before training (`speed` None) as epoch 0. Gives the new position."""
    epoch = 0 if speed is None else position.epoch + 1
    started = time.perf_counter()
    with kept_weights(session, plan, position):
        scores, confusion = evaluate(session, plan, epoch)
        weights = session.values()
    none = {"seconds": math.nan, "rows": 0, "waited": math.nan}
    timing = _timing(epoch, speed or none, time.perf_counter() - started)
    row: Row = {
        "epoch": epoch,
        "step": position.step,
        "lr": plan.lr(position.step - 1) if epoch else math.nan,
        "loss": position.loss_sum / position.weight_sum if epoch else math.nan,
        **{f"{plan.split}_{name}": value for name, value in scores.items()},
    }
    # Equal metrics are common on small data: the lower loss decides then.
    score = (BETTER[plan.metric] * scores[plan.metric], -scores["loss"])
    if score > position.best:
        position.best, position.best_epoch, position.stale = score, epoch, 0
    else:
        position.stale += 1
    position.epoch, position.batch, position.loss_sum, position.weight_sum = epoch, 0, 0.0, 0.0
    progress.end_epoch(row)
    records.save_epoch(session, position, row, timing, weights, confusion)
    return position


def _timing(epoch: int, speed: Row, evaluation_seconds: float) -> Row:
    memory = resident_bytes()
    return {
        "epoch": epoch,
        "train_seconds": speed["seconds"],
        "samples_per_second": speed["rows"] / speed["seconds"],
        "data_wait_seconds": speed["waited"],
        "evaluation_seconds": evaluation_seconds,
        "resident_bytes": math.nan if memory is None else memory,
    }


def _result(
    records: Records,
    plan: Plan,
    position: Position,
    end: Literal["complete", "early", "interrupted"],
    session: TrainSession,
) -> Run:
    before, after, last = (
        {k.removeprefix(f"{plan.split}_"): v for k, v in records.rows[epoch].items() if k.startswith(f"{plan.split}_")}
        for epoch in (0, position.best_epoch, position.epoch)
    )
    if plan.memory is not None:
        records.note_memory(plan.memory.record(session.peak_bytes))
    records.summarize({
        "end": end, "epochs": {"asked": plan.config.epochs, "made": position.epoch}, "updates": position.step,
        "updates_left_out": session.loss_scale.skipped,
        "provider": {"asked": plan.placement.requested, "obtained": plan.placement.obtained},
        "recomputes": session.recomputes, "evaluated": plan.split,
        "artifacts": position.history, "metric": plan.metric, "best_epoch": position.best_epoch,
        "before": before, "best": after, "last": last,
    })  # fmt: skip
    return Run(
        records.directory, plan.config, end, plan.split, plan.placement.obtained, plan.metric, before, after,
        position.best_epoch, position.epoch, records.files,
        "" if plan.memory is None else plan.memory.outcome(session.peak_bytes),
    )  # fmt: skip
