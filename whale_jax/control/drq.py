"""DrQ-v2 (Yarats et al. 2021): an actor and two critics on stacked frames, as pure functions of their state.

The WHALE paper does not name its learner. This one is that of iVideoGPT's model-based runs, without the parts that
query the environment. Dimension keys: B transitions, H W pixels, S stacked frames, A actions.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.nn.layers import to_unit

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DrqSettings(Settings):
    """Settings of the learner, shared by all tasks."""

    stack: int = 3  # S, frames that the policy sees at once
    channels: tuple[int, ...] = (32, 32, 32, 32)  # of the encoder's convolutions, like the next two
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    strides: tuple[int, ...] = (2, 1, 1, 1)
    feature: int = 50  # width of the heads' input
    hidden: int = 1024  # width of their two layers
    shift: int = 4  # most pixels by which frames are moved at random while learning
    learning_rate: float = 1e-4  # of Adam
    weight_decay: float = 1e-6
    tau: float = 0.01  # share of the critics that each update mixes into their targets
    discount: float = 0.99  # of one step
    n_step: int = 3  # steps whose rewards a target sums
    batch_size: int = 256  # B
    std: float = 0.3  # exploration's deviation falls from here
    final_std: float = 0.1  # to here
    std_updates: int = 100_000  # over this many updates
    std_clip: float = 0.3  # bound of the noise in updates
    # Weight of the squared distance to the recorded actions, added to the normalised value (Fujimoto and Gu 2021); 0
    # leaves the distance out.
    imitation: float = 0.0

    def __post_init__(self):
        if not len(self.channels) == len(self.kernels) == len(self.strides) or not self.channels:
            raise WhaleError(
                f"channels {self.channels}, kernels {self.kernels} and strides {self.strides} need one entry each per "
                "convolution, and one convolution at least."
            )
        if min(*self.channels, *self.kernels, *self.strides) < 1:
            raise WhaleError("channels, kernels and strides are at least 1 each; correct the config.")
        check_least(self, stack=1, n_step=1, batch_size=1, hidden=1, feature=1, shift=0, std_updates=0)
        check_least(self, learning_rate=0, weight_decay=0, tau=0, std=0, final_std=0, std_clip=0, imitation=0)


@flax.struct.dataclass
class Transitions:
    """B transitions over up to n steps.

    Attributes:
      frames, next_frames: (B, H, W, 3 S) uint8.
      actions: (B, A) normalised.
      rewards: (B,) discounted sum over the steps; discounts: (B,) factor of the value after them.
      recorded: (B,) bool, whether the action comes from the data.
    """

    frames: jax.Array
    actions: jax.Array
    rewards: jax.Array
    discounts: jax.Array
    next_frames: jax.Array
    recorded: jax.Array


@flax.struct.dataclass
class Learner:
    """The parts that an update changes.

    Attributes:
      params: {"encoder", "critic", "actor"}; target: the target critic's parameters.
      optimizer: optimiser states; updates: () int32, updates so far.
    """

    params: Params
    target: Params
    optimizer: Any
    updates: jax.Array


class Encoder(nn.Module):
    """A network from frames (B, H, W, 3 S) uint8 to features (B, F)."""

    settings: DrqSettings

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = to_unit(frames) - 0.5
        s = self.settings
        for channels, kernel, stride in zip(s.channels, s.kernels, s.strides, strict=True):
            x = nn.relu(_Conv(channels, kernel, stride)(x))
        return x.reshape(len(x), -1)


class _Conv(nn.Module):
    """A convolution without padding, as a product of patches: XLA's own is ten times slower in a loop on CPUs."""

    channels: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _conv, (self.size, self.size, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        height, width = ((side - self.size) // self.stride * self.stride + 1 for side in x.shape[1:3])
        places = [(i, j) for i in range(self.size) for j in range(self.size)]
        patches = [x[:, i : i + height : self.stride, j : j + width : self.stride] for i, j in places]
        return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, self.channels) + bias


class Actor(nn.Module):
    """A network from features (B, F) to the mean (B, A), in [-1, 1], of the policy's actions."""

    settings: DrqSettings
    action_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(_Head(self.settings, self.action_dim)(_trunk(self.settings, x)))


class Critic(nn.Module):
    """A network from features (B, F) and actions (B, A) to two values (2, B)."""

    settings: DrqSettings

    @nn.compact
    def __call__(self, x: jax.Array, actions: jax.Array) -> jax.Array:
        x = jnp.concatenate([_trunk(self.settings, x), actions], axis=-1)
        return jnp.stack([_Head(self.settings, 1)(x)[:, 0] for _ in range(2)])


class _Head(nn.Module):
    settings: DrqSettings
    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.relu(nn.Dense(self.settings.hidden, kernel_init=_dense)(x))
        return nn.Dense(self.out, kernel_init=_dense)(x)


def _trunk(settings: DrqSettings, x: jax.Array) -> jax.Array:
    return jnp.tanh(nn.LayerNorm()(nn.Dense(settings.feature, kernel_init=_dense)(x)))


_dense = nn.initializers.orthogonal()
_conv = nn.initializers.orthogonal(2**0.5)


@dataclasses.dataclass(frozen=True)
class Drq:
    """The networks of one learner and its update; the caller keeps the parameters."""

    settings: DrqSettings
    action_dim: int
    image_size: tuple[int, int]

    def init(self, key: jax.Array) -> Learner:
        """Returns a learner with fresh networks."""
        keys = jax.random.split(key, 3)
        frames = jnp.zeros((1, *self.image_size, 3 * self.settings.stack), jnp.uint8)
        encoder = Encoder(self.settings).init(keys[0], frames)["params"]
        features = Encoder(self.settings).apply({"params": encoder}, frames)
        actor = Actor(self.settings, self.action_dim).init(keys[1], features)["params"]
        critic = Critic(self.settings).init(keys[2], features, jnp.zeros((1, self.action_dim)))["params"]
        params = {"encoder": encoder, "critic": critic, "actor": actor}
        optimizer = {name: self._optimizer.init(part) for name, part in _parts(params).items()}
        # A copy: the state is donated, and no buffer may be donated twice.
        return Learner(params, jax.tree.map(jnp.copy, critic), optimizer, jnp.int32(0))

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adamw(self.settings.learning_rate, weight_decay=self.settings.weight_decay)

    def std(self, updates: jax.Array) -> jax.Array:
        """Returns the deviation of exploration after `updates` updates."""
        s = self.settings
        share = jnp.clip(updates / s.std_updates, 0.0, 1.0)
        return s.std + share * (s.final_std - s.std)

    def mean_action(self, params: Params, frames: jax.Array) -> jax.Array:
        """Returns the policy's normalised actions (B, A) for frames (B, H, W, 3 S), without noise."""
        return self._actor(params["actor"], self._encode(params["encoder"], frames))

    def last_layer(self, params: Params) -> Params:
        """Returns the actor's last layer, whose output the tanh follows: {"kernel": (hidden, A), "bias": (A,)}."""
        return params["actor"]["_Head_0"]["Dense_2"]

    def with_last_layer(self, params: Params, layer: Params) -> Params:
        """Replaces the last layer of the actor."""
        head = params["actor"]["_Head_0"] | {"Dense_2": layer}
        return params | {"actor": params["actor"] | {"_Head_0": head}}

    def explore(self, params: Params, frames: jax.Array, std: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the policy's actions with noise, within [-1, 1]."""
        return _noisy(self.mean_action(params, frames), std, key)

    def update(self, learner: Learner, batch: Transitions, key: jax.Array) -> tuple[Learner, dict[str, jax.Array]]:
        """Updates the critics with their encoder, then the actor, then the target; also returns scalars."""
        s, std = self.settings, self.std(learner.updates)
        keys = jax.random.split(key, 4)
        frames = random_shift(keys[0], batch.frames, s.shift)
        after = self._encode(learner.params["encoder"], random_shift(keys[1], batch.next_frames, s.shift))
        following = _noisy(self._actor(learner.params["actor"], after), std, keys[2], s.std_clip)
        # The smaller of the two values, for the larger is more often too high.
        target = batch.rewards + batch.discounts * self._critic(learner.target, after, following).min(0)
        target = jax.lax.stop_gradient(target)

        def critic_loss(parts):
            features = self._encode(parts["encoder"], frames)
            values = self._critic(parts["critic"], features, batch.actions)
            return jnp.square(values - target).mean(1).sum(), (features, values)

        old = _parts(learner.params)
        (loss, (features, values)), gradient = jax.value_and_grad(critic_loss, has_aux=True)(old["critic"])
        features = jax.lax.stop_gradient(features)
        critic, optimizer = self._apply(learner, "critic", gradient)

        def actor_loss(parts):
            mean = self._actor(parts["actor"], features)
            value = self._critic(critic["critic"], features, _noisy(mean, std, keys[3], s.std_clip)).min(0)
            distance = (jnp.square(mean - batch.actions).mean(-1) * batch.recorded).sum() / batch.recorded.sum().clip(1)
            scale = jax.lax.stop_gradient(jnp.abs(value).mean() + 1e-6) if s.imitation else 1.0
            return s.imitation * distance - value.mean() / scale, (value, distance)

        (_, (value, distance)), gradient = jax.value_and_grad(actor_loss, has_aux=True)(old["actor"])
        learner = learner.replace(optimizer=optimizer)
        actor, optimizer = self._apply(learner, "actor", gradient)
        mixed = optax.incremental_update(critic["critic"], learner.target, s.tau)
        metrics = {
            "critic_loss": loss,
            "value": values.mean(),
            "policy_value": value.mean(),
            "imitation": distance,
            "reward": batch.rewards.mean(),
        }
        return Learner(critic | actor, mixed, optimizer, learner.updates + 1), metrics

    def _apply(self, learner: Learner, name: str, gradient: Params) -> tuple[Params, Any]:
        parts = _parts(learner.params)[name]
        change, state = self._optimizer.update(gradient, learner.optimizer[name], parts)
        return optax.apply_updates(parts, change), learner.optimizer | {name: state}

    def _encode(self, params: Params, frames: jax.Array) -> jax.Array:
        return Encoder(self.settings).apply({"params": params}, frames)

    def _actor(self, params: Params, features: jax.Array) -> jax.Array:
        return Actor(self.settings, self.action_dim).apply({"params": params}, features)

    def _critic(self, params: Params, features: jax.Array, actions: jax.Array) -> jax.Array:
        return Critic(self.settings).apply({"params": params}, features, actions)


def _parts(params: Params) -> dict[str, Params]:
    """Groups parameters by optimiser; the encoder learns from the critics alone."""
    return {"critic": {name: params[name] for name in ("encoder", "critic")}, "actor": {"actor": params["actor"]}}


def _noisy(mean: jax.Array, std: jax.Array, key: jax.Array, bound: float | None = None) -> jax.Array:
    """Adds noise of deviation `std`, cut at `bound`, and clips to [-1, 1]; gradients ignore both cuts."""
    noise = std * jax.random.normal(key, mean.shape)
    noise = noise if bound is None else noise.clip(-bound, bound)
    noisy = (mean + noise).clip(-1.0, 1.0)
    # Straight through: the value is clipped, but the gradient is the mean's, which a clip would stop.
    return mean + jax.lax.stop_gradient(noisy - mean)


def random_shift(key: jax.Array, frames: jax.Array, pixels: int) -> jax.Array:
    """Moves each of the frames (B, H, W, C) at random by up to `pixels` pixels, repeating its edges."""
    if not pixels:
        return frames
    height, width = frames.shape[1:3]
    offsets = jax.random.randint(key, (len(frames), 2), 0, 2 * pixels + 1) - pixels
    rows = (jnp.arange(height) + offsets[:, :1]).clip(0, height - 1)
    columns = (jnp.arange(width) + offsets[:, 1:]).clip(0, width - 1)
    return jax.vmap(lambda x, i, j: x[i][:, j])(frames, rows, columns)
