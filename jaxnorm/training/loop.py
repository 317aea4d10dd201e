"""Training over epochs: progress, evaluation, checkpoints and an exact resume."""

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._checks import check_flag, check_size
from jaxnorm._progress import progress_bar
from jaxnorm.training._linting import print_findings
from jaxnorm.training._profile import Profile
from jaxnorm.training._run import Run, take_step, take_steps, untyped
from jaxnorm.training._termination import Termination
from jaxnorm.training.checkpoint_writer import CheckpointWriter
from jaxnorm.training.checkpoints import latest_step, load_newest
from jaxnorm.training.data import Batch
from jaxnorm.training.feed import BatchSource, Feed
from jaxnorm.training.hooks import History, Hook, Hooks, StopTraining
from jaxnorm.training.meter import Meter
from jaxnorm.training.sharding import Layout, shard_batch, shard_state, state_shardings
from jaxnorm.training.state import TrainState, is_key
from jaxnorm.training.steps import EvalStep, TrainStep, evaluate_batches


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: BatchSource,
    *,
    epochs: int,
    steps_per_epoch: int | None = None,
    steps_per_dispatch: int = 1,
    layout: Layout | None = None,
    evaluate: EvalStep | None = None,
    eval_batches: Iterable[Batch] | None = None,
    eval_state: Callable[[TrainState], TrainState] | None = None,
    measure: Callable[[TrainState], Mapping[str, float]] | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 3,
    best: str | None = None,
    best_mode: str = "max",
    resume: bool = False,
    max_skipped: int | None = None,
    after_epoch: Hook | Iterable[Hook] = (),
    after_steps: Mapping[int, Hook | Iterable[Hook]] | None = None,
    profile: str | Path | None = None,
    lint: bool = False,
    progress: bool = True,
) -> tuple[TrainState, History]:
    """Trains for a number of epochs, with a progress bar, evaluation, and checkpoints from which it resumes exactly.

    The step is jitted here, and the buffers of each state are donated to the next; the given state is copied first and stays
    as it is. Metrics are fetched when the device has them, without making it wait. A loss that is not finite warns, and the
    mean of its epoch is not finite, unless the step skips it (`make_train_step(..., skip_not_finite=True)`): then it is counted.

    The step is compiled once; a smaller last batch, which `shuffled_batches` can drop or fill up, takes a second compilation.
    Resuming gives the same bits as never having stopped, on the same devices and versions: parameters, optimizer state,
    statistics and history. That takes batches that can be found again, which is why a plain iterable trains but does not resume.
    On other devices, or another number of processes, it resumes too, and differs by rounding.

    A run with checkpoints that gets SIGTERM, as clusters send it before they end a job, takes the step that it is in, saves,
    and leaves with status 143. On several devices, give a `layout`; in several processes, call `connect()` before anything
    else, and this in each of them, with batches of the process's own rows: `jaxnorm.training` says how.

    Args:
      state: the first state, as from `init_train_state`.
      train_step: `step(state, batch) -> (state, metrics)`, as from `make_train_step`; not jitted.
      batches: one of
        - a function `batches(epoch)` (epochs from 0) that returns an iterable of batches, the same ones each time it is called
          with the same epoch, as `shuffled_batches` does. On resume it is skipped forward to where the run was;
        - an iterator with `get_state()` and `set_state(state)`, as Grain's, whose state (JSON or bytes) is kept in the
          checkpoints. It runs on through all epochs of `steps_per_epoch` batches;
        - any other iterable of batches, or iterator, which cannot resume.
      epochs: number of epochs in all, those before a resume included.
      steps_per_epoch: the number of batches in an epoch; default: until the iterable ends.
      steps_per_dispatch: the number of steps that are handed to the devices at once, as a `lax.scan`: for steps of a fraction
        of a millisecond, whose dispatch is what takes time. Between checkpoints, hooks and epochs only whole groups are; what
        remains goes step by step, in a second program.
      layout: a mesh, and how batches and state are laid out over it; the state is put there, and every batch. Default: the
        state stays on the device that it is on. What is computed does not depend on it but by rounding.
      evaluate: an evaluation step, as from `make_eval_step`, run with the running statistics at the end of every epoch.
      eval_batches: the batches to evaluate on, an iterable that can be gone through again, as of `ordered_batches`.
      eval_state: function of the state that gives the one to evaluate, as `averaged_state`; the training goes on with its own.
      measure: function of the state that gives further columns of the history, numbers by their names, after every epoch, as
        `jaxnorm.diagnostics.layer_metrics`.
      checkpoints: folder for checkpoints; default: none are written. They are written while the training goes on.
      checkpoint_every: steps between checkpoints; default: one at the end of each epoch, as with `best`. The end of the run has
        one always.
      keep: number of the newest checkpoints that stay.
      best: a column of the history, as `"eval_accuracy"`, of whose best epoch the checkpoint stays too.
      best_mode: whether the most, `"max"`, or the least, `"min"`, is best.
      resume: whether to go on from the newest checkpoint in the folder, or if that is damaged, which warns, from the one before
        it; of `state`, only tree, shapes and shardings are then used. `resume=latest_step(folder) is not None` starts a run or
        goes on with it.
      max_skipped: the run ends with an error, after a checkpoint, once more steps than this were skipped in an epoch, by steps
        that skip what is not finite; 0 ends it at the first. Default: it goes on.
      after_epoch: a function `hook(status) -> state | None`, or several, called after each epoch and its evaluation. The state
        that it returns, if any, is gone on with; `StopTraining` ends the run.
      after_steps: such functions by the number of steps after each of which they are called, as `{100: hook}`. They wait for the
        step's metrics.
      profile: folder for a trace of steps 10 to 20 by `jax.profiler`; default: none.
      lint: whether to look once at the step before the first one, with `jaxnorm.diagnostics.lint_step`, and of a step of
        `make_train_step` at its model, with `jaxnorm.diagnostics.lint`. Prints to stderr what is worse than a note. It compiles
        programs of its own.
      progress: whether to show a progress bar, with the metrics of the latest step and the time left; in a log file a line every
        half minute. Of several processes the first shows it.

    Returns:
      The last state, and the history: one dict for each epoch with `epoch` (from 1), `step` (steps taken so far), the means of
      the training metrics over the epoch's examples (`loss`, `accuracy`), `skipped` steps where steps tell, those of the
      evaluation (`eval_loss`, `eval_accuracy`), and what `measure` gives. `[row["loss"] for row in history]` is a curve.

    Raises:
      ValueError: if a number is below 1; if only one of evaluate and eval_batches is given; if lint is True in several
        processes; if the folder has checkpoints and resume is False, or is missing, empty, damaged or of another state and resume
        is True; if batches cannot resume; if an epoch has no batch; or if the layout's mesh does not divide a batch.
      TypeError: if an argument is of the wrong type.
      FloatingPointError: if more than max_skipped steps were skipped.
      OSError: if a checkpoint cannot be written; the older ones stay.

    Example:
      >>> import jax, numpy as np, optax
      >>> from jaxnorm.training import StopTraining, fit, init_train_state, make_train_step, shuffled_batches
      >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
      >>> labels = (x.sum(1) > 0).astype(np.int32)
      >>> optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
      >>> state = init_train_state(jax.random.key(0), np.zeros((3, 2), np.float32), (), optimizer)
      >>> step = make_train_step(lambda key, params, stats, x, *, train: (x @ params, stats), optimizer)
      >>> batches = shuffled_batches(jax.random.key(1), x, labels, batch_size=16, drop_remainder=True)
      >>> state, history = fit(state, step, batches, epochs=5, progress=False)
      >>> [row["step"] for row in history]
      [4, 8, 12, 16, 20]
      >>> history[-1]["accuracy"] > 0.9
      True

      Early stopping, and a learning rate that is halved on a plateau:

      >>> def stop_early(status, patience=3):
      ...     losses = [row["loss"] for row in status.history]
      ...     if len(losses) - losses.index(min(losses)) > patience:
      ...         raise StopTraining
      >>> def halve_on_plateau(status):
      ...     if len(status.history) > 1 and status.history[-1]["loss"] > 0.99 * status.history[-2]["loss"]:
      ...         rates = status.state.opt_state.hyperparams
      ...         rates = rates | {"learning_rate": rates["learning_rate"] / 2}
      ...         return status.state._replace(opt_state=status.state.opt_state._replace(hyperparams=rates))
      >>> state, history = fit(state, step, batches, epochs=500, after_epoch=[stop_early, halve_on_plateau], progress=False)
      >>> len(history) < 500
      True
    """
    sizes = {"steps_per_epoch": steps_per_epoch, "checkpoint_every": checkpoint_every}
    sizes |= {"epochs": epochs, "keep": keep, "steps_per_dispatch": steps_per_dispatch}
    _check_arguments(sizes, evaluate, eval_batches, eval_state, checkpoints, resume, best)
    resume, progress, lint = check_flag("resume", resume), check_flag("progress", progress), check_flag("lint", lint)
    if lint and jax.process_count() > 1:
        raise ValueError("lint must be False in several processes: one alone can look at what it has")
    if max_skipped is not None:
        check_size("max_skipped", max_skipped, low=0)
    feed, hooks = Feed(batches, steps_per_epoch), Hooks(after_epoch, after_steps or {})
    # A copy, since its buffers are donated.
    state = jax.tree.map(jnp.copy, state) if layout is None else shard_state(state, layout)
    shardings: dict[str, Any] = {} if layout is None else {"out_shardings": (state_shardings(state, layout), None)}
    saved = None
    history, place_in_data = [], {"epoch": 0, "number": int(state.step), "feed": None, "meter": {}}
    if resume and checkpoints is not None:
        state, position, history = load_newest(checkpoints, state)
        if not isinstance(position, dict) or position.keys() != place_in_data.keys():
            raise ValueError(
                f"checkpoints folder {checkpoints} must have been written by fit to resume, got position {position!r}"
            )
        place_in_data, saved = position, int(state.step)
        feed.seek(position["feed"])

    def place(batch: Batch) -> Batch:
        return batch if layout is None else shard_batch(batch, layout)

    def score(state: TrainState) -> dict[str, float]:
        columns = {}
        if jitted_evaluate is not None and eval_batches is not None:
            evaluated = state if eval_state is None else eval_state(state)
            found = evaluate_batches(jitted_evaluate, evaluated, map(place, eval_batches))
            columns |= {f"eval_{name}": value for name, value in found.items()}
        return columns if measure is None else columns | {name: float(value) for name, value in measure(state).items()}

    impl = jax.random.key_impl(state.key) if is_key(state.key) else None
    # The step is an argument, so that another call of fit with it finds the program again.
    one, several = (
        functools.partial(jax.jit(take, static_argnums=(0, 1), donate_argnums=2, **shardings), train_step, impl)
        for take in (take_step, take_steps)
    )
    jitted_evaluate = jax.jit(evaluate) if evaluate is not None else None
    with ExitStack() as stack:
        writer = None
        if checkpoints is not None:
            writer = stack.enter_context(CheckpointWriter(checkpoints, keep=keep, best=best, best_mode=best_mode))
        run = Run(
            raw=untyped(state),
            impl=impl,
            history=history,
            number=place_in_data["number"],
            epoch=place_in_data["epoch"],
            meter=Meter("step", **place_in_data["meter"]),
            feed=feed,
            place=place,
            step=one,
            steps=(several, steps_per_dispatch),
            epochs=epochs,
            score=score,
            hooks=hooks,
            writer=writer,
            saved=saved,
            checkpoint_every=checkpoint_every,
            saves_epochs=checkpoint_every is None or best is not None,
            max_skipped=max_skipped,
            termination=stack.enter_context(Termination(checkpoints is not None)),
            profile=stack.enter_context(Profile(profile)),
            bar=stack.enter_context(
                progress_bar(disable=not progress or jax.process_index() > 0, initial=place_in_data["number"], unit="step")
            ),
            look=functools.partial(print_findings, train_step) if lint else None,
        )
        try:
            while run.epoch < epochs:
                run.train()
                run.finish()
        except StopTraining:
            run.save()
        run.show()
    return run.state, run.history


def _check_arguments(
    sizes: dict[str, int | None],
    evaluate: EvalStep | None,
    eval_batches: Iterable[Batch] | None,
    eval_state: Callable[[TrainState], TrainState] | None,
    checkpoints: str | Path | None,
    resume: bool,
    best: str | None,
) -> None:
    for name, size in sizes.items():
        if size is not None:
            check_size(name, size)
    if (evaluate is None) != (eval_batches is None):
        missing = "evaluate" if evaluate is None else "eval_batches"
        raise ValueError(f"evaluate and eval_batches must be given together, got {missing}=None")
    if evaluate is None and eval_state is not None:
        raise ValueError("evaluate must be given for an eval_state, got None")
    if checkpoints is None and (resume or best is not None or sizes["checkpoint_every"] is not None):
        raise ValueError(
            f"checkpoints must be a folder to resume from or to write to, got None with resume={resume} and best={best!r}"
        )
    if checkpoints is not None and not resume and (newest := latest_step(checkpoints)) is not None:
        raise ValueError(
            f"checkpoints folder {checkpoints} has a checkpoint of step {newest}: resume=True goes on with it, another folder "
            "starts anew"
        )
