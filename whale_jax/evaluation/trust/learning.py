"""Fits the learnt error to imagined rollouts of training episodes (docs/method.md §8).

Dimension keys: E clips, C given and H imagined frames, F inputs.
"""

import dataclasses
import functools

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.workdir import Workdir
from whale_jax.evaluation.clips import Clips, imagine, read_clips, with_progress
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.uncertainty import learnt_error
from whale_jax.imagination.uncertainty.estimators import Entropy
from whale_jax.imagination.world import LoadedModel
from whale_jax.nn import lpips

LEAST = 100  # steps that a readout of some thousand inputs is fitted to

_inputs = jax.jit(lambda *arguments: learnt_error.inputs(*arguments)[1])


def with_learnt_error(job: Job) -> tuple[LoadedModel, str]:
    """Fits the learnt error of the job's model to its training episodes, and writes it into the job's directory.

    Clips are as many a task and policy, as long and from as many given frames as the settings of the trust suite say.

    Returns:
      The model with its learnt error, and what it was fitted to.

    Raises:
      WhaleError: the training episodes are not there, are too short or too few, or predictions have no entropy.
    """
    model, settings = job.model, job.settings
    model.check_estimator(Entropy())
    learnt_error.LearntError().check(model.world.model)
    if job.training is None:
        raise WhaleError(
            f"the episodes that {model.source} was trained on are not there, and the learnt error is fitted to them; "
            f"put them back at {model.episodes}, or leave it out."
        )
    groups = read_clips(job.training, settings)
    seen, errors = [], []
    for group in with_progress(groups, "learnt error:", job.say):
        found, error = examples(model, group, settings.context, settings.batch_size)
        seen.append(found.reshape(-1, found.shape[-1]))
        errors.append(error.ravel())
    count = sum(map(len, errors))
    if count < LEAST:
        raise WhaleError(
            f"{job.training.root} has {count} steps to imagine in its training episodes, and the learnt error takes "
            f"{LEAST}; evaluate longer clips or more episodes, or leave it out."
        )
    readout = learnt_error.fit(np.concatenate(seen), np.concatenate(errors))
    learnt_error.write_readout(Workdir(job.output).learnt_error, readout, model.acting)
    return dataclasses.replace(model, readout=readout), f"{count} imagined steps of training episodes"


def examples(model: LoadedModel, group: Clips, context: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Imagines clips, and returns what a readout sees of their steps, (E, H, F), and the errors (E, H)."""
    given, real = np.split(group.frames, [context], axis=1)
    future = imagine(model, given, group.actions, size, uncertainty=Entropy())
    actions = np.asarray(model.action_spec.normalise(group.actions[:, context - 1 :]), np.float32)
    read = functools.partial(_inputs, lpips.weights(), learnt_error.begin(1))
    clips = zip(future.frames, actions, future.uncertainty, strict=True)
    found = [np.asarray(read(*(x[None] for x in clip)))[0] for clip in clips]  # one at a time, which bounds the memory
    return np.stack(found), video.lpips(real, future.frames)
