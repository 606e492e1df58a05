"""Checks of a study's model and data, made before its first run."""

import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say
from whale_jax.control.programs import Programs
from whale_jax.control.settings import SHARE, ControlSettings
from whale_jax.control.weights import rollout_starts
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS, check_context
from whale_jax.imagination.world import LoadedModel


def check_study(programs: Programs, store: EpisodeStore) -> None:
    """Raises WhaleError if the model or the episode store lacks a part that a run of the study needs."""
    model, settings = programs.model, programs.settings
    _check_parts(model, settings)
    model.check_episodes(store, settings.rollout.context)
    for task in settings.tasks:
        _check_task(recordings(store, task), task, settings.rollout.context)
        if settings.penalty_unit == SHARE:
            rollout_starts(recordings(store, task), settings.rollout.length)
    if settings.probe.penalties:
        _check_starts(recordings(store, settings.tasks[0]), settings)
    for method in _uncertainties(settings):
        _try_uncertainty(programs, method)


def recordings(store: EpisodeStore, task: str) -> EpisodeStore:
    """Selects the episodes from which a policy for the task learns."""
    return store.select(split="train", tasks=task)


def _uncertainties(settings: ControlSettings) -> list[str]:
    probed = [settings.probe.method] if settings.probe.penalties else []
    return [name for name in ESTIMATORS if name in (*settings.methods, *probed)]


def _check_parts(model: LoadedModel, settings: ControlSettings) -> None:
    if "reward" not in model.abilities:
        raise WhaleError(
            f"{model.source} holds no reward model, and imagined steps need rewards; train it with "
            "--config.stages.reward.steps=2000 or more."
        )
    if "ensemble" in _uncertainties(settings) and "ensemble" not in model.abilities:
        instead = (
            "leave the method out: --config.control.methods=retracing,entropy,none,offline"
            if "ensemble" in settings.methods
            else "probe another uncertainty: --config.control.probe.method=retracing"
        )
        raise WhaleError(
            f"{model.source} holds no ensemble; train it with --config.stages.ensemble.members=3, or {instead}."
        )


def _check_task(store: EpisodeStore, task: str, context: int) -> None:
    if not any(store.read(i).rewards.any() for i in range(len(store))):
        raise WhaleError(
            f"The episodes of {task} in {store.root} have no rewards (all are 0), and a policy learns from them. "
            "Record or import them with rewards, or leave the task out of control.tasks."
        )
    if not _reaching(store, context):
        raise WhaleError(
            f"No episode of {task} in {store.root} has the {context} frames that a rollout starts from; lower "
            "control.rollout.context."
        )


def _check_starts(store: EpisodeStore, settings: ControlSettings) -> None:
    reaching = _reaching(store, settings.rollout.context)
    if reaching < settings.probe.starts:
        raise WhaleError(
            f"The probe starts from {settings.probe.starts} episodes of {settings.tasks[0]}, and {store.root} holds "
            f"{reaching} with the {settings.rollout.context} frames that a rollout starts from; lower "
            "control.probe.starts."
        )


def _reaching(store: EpisodeStore, frames: int) -> int:
    return sum(record["length"] + 1 >= frames for record in store.records)


def _try_uncertainty(programs: Programs, method: str) -> None:
    """Traces a rollout with the estimator on shapes alone, so that a model it does not fit fails now."""
    model, context = programs.model, programs.settings.rollout.context
    program = programs.learning(method, 1.0, 1.0)
    if sentence := check_context(program.dream.estimator, context, weighed=True):
        say(f"control.rollout.context={context}: {sentence}")
    frames = jax.ShapeDtypeStruct((1, context, *model.frame_size, 3), jnp.uint8)
    actions = jax.ShapeDtypeStruct((1, context - 1, model.action_spec.dim), jnp.float32)

    def run(params, frames, actions):
        state = program.dream.start(params, frames, actions)
        return program.dream.rollout(params, state, jnp.zeros((1, 1, model.action_spec.dim)), 1, jax.random.key(0))

    jax.eval_shape(run, programs.params(program), frames, actions)
