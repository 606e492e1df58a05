"""The programs of a study, compiled once for all tasks and seeds."""

import dataclasses

import jax

from whale_jax.control.acting import Method, Program
from whale_jax.control.drq import Drq
from whale_jax.control.offline import Learning, LearningState
from whale_jax.control.replay import Replay
from whale_jax.control.search import Search, SearchState
from whale_jax.control.settings import ControlSettings
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS
from whale_jax.imagination.world import LoadedModel
from whale_jax.training.sharding import Params


class Programs:
    """The programs that the runs of a study learn or search with."""

    def __init__(self, model: LoadedModel, settings: ControlSettings):
        self.model, self.settings = model, settings
        self._made: dict[tuple[type, str, float, float], Program] = {}

    def learning(self, method: str, penalty: float, generated: float) -> Learning:
        """Returns the program that learns with a penalty on the uncertainty named `method`.

        There is no penalty if `method` names no uncertainty, or if `penalty` or `generated` is 0.
        """
        return self._program(Learning, method, penalty, generated)

    def search(self, method: str, penalty: float) -> Search:
        """Returns the program that searches the model, with a penalty as in `learning`."""
        return self._program(Search, method, penalty, 1.0)

    def _program(self, kind: type, method: str, penalty: float, generated: float):
        key = (kind, method, penalty, generated)
        if key not in self._made:
            model, named = self.model, method in ESTIMATORS and penalty and generated
            chosen = self.settings.uncertainties.get(method, method) if named else None
            dream = model.dream(chosen, self.settings.rollout.temperature)
            dream = dataclasses.replace(dream, heads=("reward",), own_reward=False, stack=self.settings.learner.stack)
            drq = Drq(self.settings.learner, model.action_spec.dim, model.frame_size)
            self._made[key] = kind(dream, drq, self.settings, Method(penalty, generated))
        return self._made[key]

    def begin(
        self, program: Program, replay: Replay, starts: jax.Array, key: jax.Array, warmup: int
    ) -> LearningState | SearchState:
        """Returns the state of a run before its first update.

        Args:
          replay, starts: the recorded transitions, and the rows where rollouts may start.
          warmup: updates, on recorded transitions alone, of the policy that a search begins with.
        """
        if isinstance(program, Learning):
            return program.init(key)
        alone = self.learning("offline", 0.0, 0.0)
        params, state = self.params(alone), alone.init(key)
        for _ in range(warmup // alone.pace.cycle):
            state, _ = alone.cycle(params, replay, starts, state)
        return program.init(key, alone.policy(state), replay)

    def params(self, program: Program) -> Params:
        """Returns the world model's parameters, with those that the estimator needs as well.

        Raises:
          WhaleError: a component that imagining or the estimator needs is not trained.
        """
        # On one device, as the learner's state is: elsewhere the cycle would compile twice.
        return dict(self.model.params) | dict(self.model.needed_by(program.dream.estimator))
