"""The networks of a recurrent state-space model (Hafner et al. 2023, DreamerV3), in float32.

Dimension keys: N frames or states in any order, H W pixels, A actions, D deterministic state, G groups of C classes of
the stochastic state, U hidden units, E embedded frame.
"""

import math

import einops
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.models.rssm.settings import SMALLEST, RssmSettings
from whale_jax.nn.categorical import mode, unimix_log_probs
from whale_jax.nn.layers import to_unit
from whale_jax.nn.placement import constrain, gather

HIDDEN = nn.initializers.variance_scaling(1.0, "fan_avg", "truncated_normal")
OUTPUT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
TRUNCATED_STD = 0.87962566  # standard deviation of a standard normal variable that is cut at -2 and 2


@flax.struct.dataclass
class State:
    """States of N trajectories, or of N trajectories at T frames.

    Attributes:
      deter: (N, ..., D), which carries the past.
      stoch: (N, ..., G, C) one-hot vectors, which say what the past leaves open.
    """

    deter: jax.Array
    stoch: jax.Array

    @property
    def features(self) -> jax.Array:
        """The input of decoder and heads, (N, ..., G C + D)."""
        return jnp.concatenate([self.stoch.reshape(*self.deter.shape[:-1], -1), self.deter], axis=-1)


def part_of(inputs: int, outputs: int) -> nn.initializers.Initializer:
    """Returns `HIDDEN` for some rows of a kernel of (inputs, outputs)."""
    return nn.initializers.truncated_normal(math.sqrt(2.0 / (inputs + outputs)) / TRUNCATED_STD)


class Linear(nn.Module):
    """A linear layer.

    Attributes:
      features: size of the output.
      axes: logical names of the kernel's axes.
      kernel_init: initialiser of the kernel.
      use_bias: whether a bias is added.
    """

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    kernel_init: nn.initializers.Initializer = HIDDEN
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, inputs) to (N, features)."""
        init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        y = x @ gather(self.param("kernel", init, (x.shape[-1], self.features)), *self.axes)
        if not self.use_bias:
            return y
        names = self.axes[1:]
        init = nn.with_logical_partitioning(nn.initializers.zeros, names)
        return y + gather(self.param("bias", init, (self.features,)), *names)


def _norm(name: str | None = None) -> nn.LayerNorm:
    def one_axis(init):
        return nn.with_logical_partitioning(init, (None,))

    ones, zeros = one_axis(nn.initializers.ones), one_axis(nn.initializers.zeros)
    return nn.LayerNorm(1e-3, scale_init=ones, bias_init=zeros, use_fast_variance=False, name=name)


def _spread(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    return nn.with_logical_partitioning(init, (None,) * 4)


class Doubling(nn.Module):
    """A transposed 4x4 convolution that doubles the sides: every pixel of the input adds 4x4 pixels to the output.

    It is written as a product and a sum of shifted maps, because the gradient of a dilated convolution takes XLA's CPU
    backend ten times as long.

    Attributes:
      features: channels of the output.
      kernel_init: initialiser of the kernel.
      use_bias: whether a bias is added.
    """

    features: int
    kernel_init: nn.initializers.Initializer = HIDDEN
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, h, w, channels) to (N, 2 h, 2 w, features)."""
        n, h, w, channels = x.shape
        kernel = self.param("kernel", _spread(self.kernel_init), (4, 4, channels, self.features))
        kernel = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        # Output pixels are counted in pairs along each side. A pixel's 4x4 are two pairs by two pairs, the second pair
        # of which is the first one of the next pixel.
        parts = (x.reshape(-1, channels) @ kernel).reshape(n, h, w, 2, 2, 2, 2, self.features)
        y = jnp.zeros((n, h + 1, w + 1, 2, 2, self.features))
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            shift = ((0, 0), (down, 1 - down), (right, 1 - right), (0, 0), (0, 0), (0, 0))
            y = y + jnp.pad(parts[:, :, :, down, :, right], shift)
        y = einops.rearrange(y, "n h w p q c -> n (h p) (w q) c")[:, 1:-1, 1:-1]
        if not self.use_bias:
            return y
        init = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        return y + self.param("bias", init, (self.features,))


class Encoder(nn.Module):
    """Strided 4x4 convolutions down to a map of 4x4."""

    settings: RssmSettings

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """Embeds frames (N, H, W, 3), uint8 or float in [0, 1], as (N, E)."""
        x = constrain(to_unit(frames) - 0.5, "batch", None, None, None)
        for i, width in enumerate(self.settings.widths):
            halved = nn.Conv(width, (4, 4), (2, 2), use_bias=False, kernel_init=_spread(HIDDEN), name=f"conv_{i}")
            x = nn.silu(_norm(f"norm_{i}")(halved(x)))
        return x.reshape(x.shape[0], -1)


class Decoder(nn.Module):
    """Transposed convolutions up from a map of 4x4, in the encoder's widths."""

    settings: RssmSettings

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Draws frames (N, H, W, 3) from the features of states. They may leave [0, 1]."""
        *widths, top = self.settings.widths
        x = Linear(SMALLEST**2 * top, kernel_init=OUTPUT, use_bias=True, name="dense")(features)
        x = constrain(x.reshape(-1, SMALLEST, SMALLEST, top), "batch", None, None, None)
        for i, width in enumerate(reversed(widths)):
            x = nn.silu(_norm(f"norm_{i}")(Doubling(width, name=f"conv_{i}")(x)))
        # The encoder's inputs are centred at 0 too.
        return Doubling(3, OUTPUT, use_bias=True, name="out")(x) + 0.5


class Core(nn.Module):
    """The recurrent cell, and the distributions of the stochastic state without (prior) and with a frame (posterior).

    Where a layer has two inputs of which one is known before the recurrence or means something else in fine-tuning,
    each has a kernel of its own. Their sum is the layer of both inputs together.
    """

    settings: RssmSettings

    def setup(self):
        s = self.settings
        embedded = SMALLEST**2 * s.widths[-1]
        into, seen = (part_of(rows, s.hidden) for rows in (s.latent_dim + s.action_dim, s.deter + embedded))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        self.initial = self.param("initial", zeros, (s.deter,))
        self.stoch_in = Linear(s.hidden, kernel_init=into)
        self.action_in = Linear(s.hidden, (None, "mlp"), into)
        self.norm_in = _norm()
        self.gates = Linear(3 * s.deter)
        self.norm_gates = _norm()
        self.prior_in = Linear(s.hidden)
        self.norm_prior = _norm()
        self.prior_out = Linear(s.latent_dim, ("mlp", "embed"), OUTPUT, use_bias=True)
        self.posterior_in = Linear(s.hidden, kernel_init=seen)
        self.frame_in = Linear(s.hidden, kernel_init=seen)
        self.norm_posterior = _norm()
        self.posterior_out = Linear(s.latent_dim, ("mlp", "embed"), OUTPUT, use_bias=True)

    def __call__(self, embedded: jax.Array, actions: jax.Array) -> jax.Array:
        """Returns log-probabilities (N, G, C) of first frames; it uses every parameter."""
        deter = self.advance(self.first(embedded.shape[0]), actions)
        return self.posterior(deter, self.see(embedded))

    def first(self, count: int) -> State:
        """Returns the learnt state of N = `count` trajectories before their first frame."""
        deter = jnp.broadcast_to(jnp.tanh(self.initial), (count, self.settings.deter))
        return State(deter, mode(self.prior(deter)))

    def advance(self, state: State, actions: jax.Array) -> jax.Array:
        """Returns the deterministic state (N, D) after actions (N, A)."""
        stoch = state.stoch.reshape(state.stoch.shape[0], -1)
        x = nn.silu(self.norm_in(self.stoch_in(stoch) + self.action_in(actions)))
        gates = self.norm_gates(self.gates(jnp.concatenate([x, state.deter], axis=-1)))
        reset, candidate, update = jnp.split(gates, 3, axis=-1)
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1.0)  # at first the state changes slowly
        return update * candidate + (1.0 - update) * state.deter

    def prior(self, deter: jax.Array) -> jax.Array:
        """Returns log-probabilities (N, G, C) of the stochastic state before its frame is seen."""
        return self._distribution(self.prior_out(nn.silu(self.norm_prior(self.prior_in(deter)))))

    def see(self, embedded: jax.Array) -> jax.Array:
        """Returns what frames, embedded as (N, E), add to the posterior's hidden layer: (N, U)."""
        return self.frame_in(embedded)

    def posterior(self, deter: jax.Array, seen: jax.Array) -> jax.Array:
        """Returns log-probabilities (N, G, C) of the stochastic state, with the frames of `see`."""
        return self._distribution(self.posterior_out(nn.silu(self.norm_posterior(self.posterior_in(deter) + seen))))

    def _distribution(self, logits: jax.Array) -> jax.Array:
        s = self.settings
        return unimix_log_probs(logits.reshape(-1, s.stoch, s.classes), s.unimix)


class Mlp(nn.Module):
    """Hidden layers and an output: what is read off the features of states.

    Attributes:
      outputs: size of the output.
      output_init: initialiser of the last kernel.
    """

    settings: RssmSettings
    outputs: int
    output_init: nn.initializers.Initializer = OUTPUT

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps features (N, G C + D) to (N, outputs)."""
        x = features
        for i in range(self.settings.head_layers):
            x = nn.silu(_norm(f"norm_{i}")(Linear(self.settings.head_units, name=f"hidden_{i}")(x)))
        return Linear(self.outputs, ("embed", None), self.output_init, use_bias=True, name="out")(x)
