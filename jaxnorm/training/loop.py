"""Training over epochs: progress, evaluation, checkpoints and an exact resume."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._checks import check_flag, check_size
from jaxnorm._progress import progress_bar
from jaxnorm.training.checkpoints import latest_step, load_checkpoint, save_checkpoint
from jaxnorm.training.data import Batch, num_examples
from jaxnorm.training.feed import BatchSource, Feed
from jaxnorm.training.meter import Meter
from jaxnorm.training.state import TrainState
from jaxnorm.training.steps import EvalStep, TrainStep, evaluate_batches

History = list[dict[str, Any]]


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: BatchSource,
    *,
    epochs: int,
    steps_per_epoch: int | None = None,
    evaluate: EvalStep | None = None,
    eval_batches: Iterable[Batch] | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 3,
    resume: bool = False,
    progress: bool = True,
) -> tuple[TrainState, History]:
    """Trains for a number of epochs, with a progress bar, evaluation, and checkpoints from which it resumes exactly.

    The step is jitted here, and the buffers of each state are donated to the next; the given state is copied first and stays
    as it is. Metrics are fetched when the device has them, without making it wait. A loss that is not finite warns, and the
    mean of its epoch is not finite.

    The step is compiled once; a smaller last batch, which `shuffled_batches` can drop, takes a second compilation. Resuming
    gives the same bits as never having stopped, on the same devices and versions: parameters, optimizer state,
    statistics and history. That takes batches that can be found again, which is why a plain iterable trains but does not resume.

    Args:
      state: the first state, as from `init_train_state`. To train on several devices, replicate it over a mesh and let
        batches give arrays that are sharded over it; nothing else changes.
      train_step: `step(state, batch) -> (state, metrics)`, as from `make_train_step`; not jitted.
      batches: one of
        - a function `batches(epoch)` (epochs from 0) that returns an iterable of batches, the same ones each time it is called
          with the same epoch, as `shuffled_batches` does. On resume it is skipped forward to where the run was;
        - an iterator with `get_state()` and `set_state(state)`, as Grain's, whose state (JSON or bytes) is kept in the
          checkpoints. It runs on through all epochs of `steps_per_epoch` batches;
        - any other iterable of batches, or iterator, which cannot resume.
      epochs: number of epochs in all, those before a resume included.
      steps_per_epoch: the number of batches in an epoch; default: until the iterable ends.
      evaluate: an evaluation step, as from `make_eval_step`, run with the running statistics at the end of every epoch.
      eval_batches: the batches to evaluate on, an iterable that can be gone through again, as of `ordered_batches`.
      checkpoints: folder for checkpoints; default: none are written.
      checkpoint_every: steps between checkpoints; default: one at the end of each epoch. The end of the run has one always.
      keep: number of the newest checkpoints that stay.
      resume: whether to go on from the newest checkpoint in the folder; of `state`, only tree, shapes and shardings are then
        used. `resume=latest_step(folder) is not None` starts a run or goes on with it.
      progress: whether to show a progress bar, with the metrics of the latest step and the time left; in a log file a line every
        half minute.

    Returns:
      The last state, and the history: one dict for each epoch with `epoch` (from 1), `step` (steps taken so far), the means of
      the training metrics over the epoch's examples (`loss`, `accuracy`), and those of the evaluation (`eval_loss`,
      `eval_accuracy`). `[row["loss"] for row in history]` is a curve.

    Raises:
      ValueError: if a number is below 1; if only one of evaluate and eval_batches is given; if the folder has checkpoints and
        resume is False, or is missing, empty, damaged or of another state and resume is True; if batches cannot resume; or if
        an epoch has no batch.
      TypeError: if an argument is of the wrong type.

    Example:
      >>> import jax, numpy as np, optax
      >>> from jaxnorm.training import fit, init_train_state, make_train_step, shuffled_batches
      >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
      >>> labels = (x.sum(1) > 0).astype(np.int32)
      >>> optimizer = optax.adam(0.1)
      >>> state = init_train_state(jax.random.key(0), np.zeros((3, 2), np.float32), (), optimizer)
      >>> step = make_train_step(lambda key, params, stats, x, *, train: (x @ params, stats), optimizer)
      >>> batches = shuffled_batches(jax.random.key(1), x, labels, batch_size=16, drop_remainder=True)
      >>> state, history = fit(state, step, batches, epochs=5, progress=False)
      >>> [row["step"] for row in history]
      [4, 8, 12, 16, 20]
      >>> history[-1]["accuracy"] > 0.9
      True
    """
    sizes = {"steps_per_epoch": steps_per_epoch, "checkpoint_every": checkpoint_every}
    _check_arguments({"epochs": epochs, "keep": keep} | sizes, evaluate, eval_batches, checkpoints, resume)
    resume, progress = check_flag("resume", resume), check_flag("progress", progress)
    feed = Feed(batches, steps_per_epoch)
    history: History = []
    first_epoch, meter = 0, Meter("step")
    if resume and checkpoints is not None:
        state, position, history = load_checkpoint(checkpoints, state)
        if not isinstance(position, dict) or "feed" not in position:
            raise ValueError(
                f"checkpoints folder {checkpoints} must have been written by fit to resume, got position {position!r}"
            )
        first_epoch = position["epoch"]
        meter = Meter("step", position["sums"], position["examples"])
        feed.seek(position["feed"])
    state = jax.tree.map(jnp.copy, state)
    step = jax.jit(train_step, donate_argnums=0)
    score = jax.jit(evaluate) if evaluate is not None else None
    number = int(state.step)

    def save(epoch: int) -> None:
        if checkpoints is not None and latest_step(checkpoints) != number:
            position = {"epoch": epoch, "feed": feed.position(), "sums": meter.sums(), "examples": meter.count}
            save_checkpoint(checkpoints, state, position=position, history=history, keep=keep)

    def due() -> bool:
        return checkpoint_every is not None and number % checkpoint_every == 0

    with progress_bar(disable=not progress, initial=number, unit="step") as bar:
        for epoch in range(first_epoch, epochs):
            bar.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
            for batch in feed.epoch(epoch):
                if bar.total is None and feed.length is not None:
                    bar.total = number - feed.batch + 1 + feed.length * (epochs - epoch)
                state, metrics = step(state, batch)
                number += 1
                meter.add(metrics, num_examples(batch), number)
                bar.set_postfix(_shown(history, meter.latest), refresh=False)
                bar.update()
                if due() and feed.batch != feed.length:
                    save(epoch)
            row, means = {"epoch": epoch + 1, "step": number}, meter.means()
            if taken := row.keys() & means:
                raise ValueError(f"metrics must have other names than the history's epoch and step, got {sorted(taken)}")
            row |= means
            if score is not None and eval_batches is not None:
                row |= {f"eval_{name}": value for name, value in evaluate_batches(score, state, eval_batches).items()}
            history.append(row)
            meter = Meter("step")
            feed.rewind()
            if checkpoint_every is None or due() or epoch + 1 == epochs:
                save(epoch + 1)
        bar.set_postfix(_shown(history, {}))
    return state, history


def _shown(history: History, latest: dict[str, float]) -> dict[str, str]:
    """Returns what the progress bar shows: the metrics of the latest step that is known, else of the last epoch."""
    means = {name: value for name, value in history[-1].items() if name not in ("epoch", "step")} if history else {}
    return {name: f"{value:.4f}" for name, value in (means | latest).items()}


def _check_arguments(
    sizes: dict[str, int | None],
    evaluate: EvalStep | None,
    eval_batches: Iterable[Batch] | None,
    checkpoints: str | Path | None,
    resume: bool,
) -> None:
    for name, size in sizes.items():
        if size is not None:
            check_size(name, size)
    if (evaluate is None) != (eval_batches is None):
        missing = "evaluate" if evaluate is None else "eval_batches"
        raise ValueError(f"evaluate and eval_batches must be given together, got {missing}=None")
    if checkpoints is None and (resume or sizes["checkpoint_every"] is not None):
        raise ValueError(f"checkpoints must be a folder to resume from or to write to, got None with resume={resume}")
    if checkpoints is not None and not resume and (newest := latest_step(checkpoints)) is not None:
        raise ValueError(
            f"checkpoints folder {checkpoints} has a checkpoint of step {newest}: resume=True goes on with it, another folder "
            "starts anew"
        )
