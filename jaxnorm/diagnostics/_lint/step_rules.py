"""The rules of a training step: what it leaves as it was, what the optimizer has that is no weight, which noise comes again."""

from collections.abc import Callable, Iterator
from itertools import islice

from jaxnorm.diagnostics._lint.records import Noise
from jaxnorm.diagnostics._lint.report import Finding, Where
from jaxnorm.diagnostics._lint.step_look import STEPS, WEAK, Leaf, StepLook, Types, keys_of, not_finite_leaves

_MOST = 4  # programs, after which types are taken to change forever

StepRule = Callable[[StepLook], Iterator[Finding]]


def state_changes_type(look: StepLook) -> Iterator[Finding]:
    """The state after a step has other dtypes, shapes or containers than before it.

    A jitted step is compiled for the types that it is given. Where they change once it is compiled twice, and what was in 16 bits
    goes on in 32; where they change with every step it is compiled in every step. A `lax.scan` over steps raises.

    Sick:
      return {"params": params, "steps": state["steps"] + jnp.ones(())}, loss

    Healed:
      return {"params": params, "steps": state["steps"] + 1}, loss
    """
    changed = _changed(look.types, look.new_types)
    if not changed and look.same_containers:
        return
    path, (old, new) = next(iter(changed.items()), ("", ("the state", "one of other containers")))
    try:
        times = _programs(look)
        then = f"a jitted step is compiled {times} times" if times <= _MOST else "every step is compiled anew"
    except Exception as error:  # of the user's step
        times, then = _MOST + 1, f"the next step raises: {str(error).splitlines()[0]}"
    is_weak = look.same_containers and all(a.removesuffix(WEAK) == b.removesuffix(WEAK) for a, b in changed.values())
    yield Finding(
        "state-changes-type",
        "error" if times > _MOST else "note" if is_weak else "warning",
        Where(path, ""),
        f"{old} becomes {new}{_more(len(changed))}: {then}; a scan over steps raises",
        "return each part with the type that it came with, as new.astype(old.dtype)",
        {"leaves": len(changed)},
    )


def not_finite(look: StepLook) -> Iterator[Finding]:
    """The given state, the new one, or what the step returns beside it has NaN, or an infinity that was not there.

    What else a run shows means nothing then.

    Sick:
      loss = -jnp.log(probabilities)[labels]

    Healed:
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    """
    when, paths = not_finite_leaves(look)
    if paths:
        yield Finding(
            "not-finite",
            "error",
            Where(paths[0], ""),
            f"not finite {when}{_more(len(paths))}; what else a run shows means nothing",
            "jax.debug_nans(True) stops at the operation that makes it",
            {"leaves": len(paths)},
        )


def averages_not_updated(look: StepLook) -> Iterator[Finding]:
    """Running statistics are after steps what they were, and what the step computes does not need them.

    The batch is normalized by its own statistics, and what the averages should become is thrown away. The loss looks well, but
    the model is evaluated with the statistics that it was initialized with.

    Sick:
      logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
      return state.apply_gradients(grads=grads), loss

    Healed:
      logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
      return state.apply_gradients(grads=grads).replace(batch_stats=new["batch_stats"]), loss
    """
    for layer, leaves in look.averages.items():
        staying = [leaf for leaf in leaves if leaf.stays]
        if len(staying) == len(leaves) or any(leaf.averaged for leaf in staying):
            why = f"{STEPS} steps left them as they were and normalized by the batch: inference takes what they began with"
            fix = "put the statistics that the model returns into the state that the step returns"
            yield Finding("averages-not-updated", "error", Where(layer, ""), why, fix, {"leaves": len(leaves)})


def useless_parameter(look: StepLook) -> Iterator[Finding]:
    """A parameter stays as it is while others are trained.

    A warning where nothing that the step computes is made of it, as of a layer that is not called; a note where the loss depends
    on it: frozen on purpose, or behind a `stop_gradient`.

    Sick:
      hidden = self.first(x)
      return self.last(x)

    Healed:
      hidden = self.first(x)
      return self.last(hidden)
    """
    for leaf in look.weights:
        if leaf.group not in look.trained or not leaf.has_no_gradient:
            continue
        if not leaf.read and not look.is_copy(leaf):
            why = f"nothing that the step returns is made of it, and {STEPS} steps gave it no gradient"
            yield Finding("useless-parameter", "warning", Where(leaf.path, ""), why, "use it in the model, or leave it out")
        elif leaf.read and leaf.stays:
            why = f"{STEPS} steps left it as it was, though the loss depends on it"
            fix = "if it is not frozen on purpose: take it out from under stop_gradient, and let the optimizer update it"
            yield Finding("useless-parameter", "note", Where(leaf.path, ""), why, fix)


def key_constant(look: StepLook) -> Iterator[Finding]:
    """The noise of a step comes from a key that is made within it: every step has the same noise.

    Each example meets one mask in the whole training, which the network learns by heart.

    Sick:
      logits = model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})

    Healed:
      logits = model.apply(variables, x, train=True, rngs={"dropout": jax.random.fold_in(state.key, state.step)})
    """
    for noise, draws in look.noises:
        if any(draw.constant for draw in draws):
            severity = "error" if noise.kind in ("factor", "choice") else "warning"  # of random features that is meant
            why = "its key depends neither on the state nor on the batch: every step has the same noise, bit for bit"
            fix = "keep a key in the state, draw from jax.random.fold_in(state.key, state.step)"
            yield Finding("key-constant", severity, noise.where, why, fix)


def key_not_advanced(look: StepLook) -> Iterator[Finding]:
    """The noise of a step comes from a key of the state that comes back as it was: the next step has the same noise.

    Each example meets one mask in the whole training, which the network learns by heart.

    Sick:
      loss, grads = differentiate(state["params"], state["key"], batch)
      return {"params": params, "key": state["key"]}, loss

    Healed:
      key, used = jax.random.split(state["key"])
      loss, grads = differentiate(state["params"], used, batch)
      return {"params": params, "key": key}, loss
    """
    for leaf, noise in _noise_that_comes_again(look):
        if leaf.is_key:
            why = f"the noise of {noise.where} is drawn from it, and it comes back as it was: the next step has the same noise"
            fix = "key, used = jax.random.split(key): draw from one, return the other in the state"
            yield Finding("key-not-advanced", "error", Where(leaf.path, noise.where.line), why, fix)


def noise_repeated(look: StepLook) -> Iterator[Finding]:
    """Noise comes again: in the next step, from a number that no step changes; in a microbatch; or in two places, from one key.

    Sick:
      losses = [loss(params, key, part) for part in microbatches]

    Healed:
      losses = [loss(params, jax.random.fold_in(key, i), part) for i, part in enumerate(microbatches)]
    """
    for leaf, noise in _noise_that_comes_again(look):
        if not leaf.is_key:
            why = f"the key of {noise.where} is made of it, and it comes back as it was: the next step has the same noise"
            fix = "fold the number of the step into the key: jax.random.fold_in(key, step)"
            yield Finding("noise-repeated", "error", Where(leaf.path, noise.where.line), why, fix)
    seen: dict[frozenset[int], Noise] = {}
    for noise, draws in look.noises:
        if noise.again and any(draw.repeated_in_loop for draw in draws):
            why = "each part of the batch that the loop goes through meets the same noise"
            fix = "give the loop a key for each of its steps, from jax.random.split"
            yield Finding("noise-repeated", "warning", noise.where, why, fix)
        first = seen.setdefault(keys_of(draws), noise)
        # Two places may share one mask that was drawn once, but each function of ours draws its own.
        if draws and first is not noise and (not first.draws & noise.draws or (first.ours and noise.ours)):
            why = f"it draws from the key that {first.where} draws from: both have the same noise"
            yield Finding("noise-repeated", "warning", noise.where, why, "split the key: each place draws from a key of its own")


def averages_in_optimizer(look: StepLook) -> Iterator[Finding]:
    """The optimizer has moments for running statistics.

    Weight decay shrinks them, their zeros enter norms of the gradient, and they take a share of the memory.

    Sick:
      optimizer.init(variables)

    Healed:
      optimizer.init(variables["params"])
    """
    for layer, leaves in look.averages.items():
        if moments := [moment.path for leaf in leaves for moment in leaf.moments]:
            why = f"the optimizer has moments for them, as {moments[0]}: weight decay shrinks what is an average"
            fix = "give the parameters alone to optimizer.init, optimizer.update and jax.grad"
            yield Finding("averages-in-optimizer", "warning", Where(layer, ""), why, fix, {"leaves": len(leaves)})


TRACED_RULES: tuple[StepRule, ...] = (state_changes_type, key_constant)
"""Those that need a step's program alone."""

RUN_RULES: tuple[StepRule, ...] = (
    averages_not_updated,
    useless_parameter,
    key_not_advanced,
    noise_repeated,
    averages_in_optimizer,
)
"""Those that need its runs, and finite numbers."""

STEP_RULES = (*TRACED_RULES, not_finite, *RUN_RULES)


def _noise_that_comes_again(look: StepLook) -> Iterator[tuple[Leaf, Noise]]:
    """Gives the leaves that decide alone on a noise and that a step leaves as they were, each with the first such noise.

    Of several leaves that decide together it is the key, if one of them is a key.
    """
    leaves = {f"{kind}/{leaf.path}": leaf for leaf in look.leaves for kind in ("params", "state")}
    given: set[str] = set()
    for noise, draws in look.noises:
        for draw in draws:
            own = [leaves.get(path) for path in draw.inputs]
            deciding = [leaf for leaf in own if leaf is not None and leaf.stays]
            if len(deciding) < len(own) or not own:
                continue
            leaf = next((leaf for leaf in deciding if leaf.is_key), deciding[0])
            if leaf.path not in given:
                given.add(leaf.path)
                yield leaf, noise


def _programs(look: StepLook) -> int:
    """Returns for how many types of state a step is compiled until they stay the same, or one more than is looked at."""
    old, times = look.new_types, 2
    for new in islice(look.later_types(), _MOST - 1):
        if not _changed(old, new):
            return times
        old, times = new, times + 1
    return times


def _changed(old: Types, new: Types) -> dict[str, tuple[str, str]]:
    """Returns the types that differ, by their paths."""
    both = {path: (old.get(path, "no leaf"), new.get(path, "no leaf")) for path in (*old, *new)}
    return {path: types for path, types in both.items() if types[0] != types[1]}


def _more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
