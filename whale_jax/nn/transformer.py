"""The ST-transformer (docs/method.md §2): attention inside a frame, causal attention over time, one feed-forward."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least, check_one_of, execution
from whale_jax.nn.attention import KERNELS, attention, attention_to_slots, resolve_kernel
from whale_jax.nn.execution import is_counted
from whale_jax.nn.layers import Dense, LayerNorm
from whale_jax.nn.placement import constrain
from whale_jax.nn.positions import grid_codes, rotate
from whale_jax.nn.precision import DTYPES, resolve_dtype

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSettings(Settings):
    """How a transformer is executed. No value changes its results beyond rounding."""

    scan: bool = False  # run the blocks as one scanned body: compiles faster, and stacks their parameters
    # What the backward pass recomputes: "none", "dots" (all but matrix products) or "full".
    remat: str = execution("none")
    # Type of matrix products: "float32", "bfloat16" or "auto", which depends on the device.
    dtype: str = execution("auto")
    residual_dtype: str = execution("float32")  # type of the residual stream
    space_kernel: str = execution("auto")  # kernel of attention inside a frame, see `whale_jax.nn.attention`
    time_kernel: str = execution("auto")  # kernel of attention over time

    def __post_init__(self):
        check_one_of(self, REMAT_POLICIES, "remat")
        check_one_of(self, (*DTYPES, "auto"), "dtype", "residual_dtype")
        check_one_of(self, (*KERNELS, "auto"), "space_kernel", "time_kernel")


@dataclasses.dataclass(frozen=True)
class TransformerSettings(ExecutionSettings):
    """Size and execution of one ST-transformer."""

    num_layers: int  # spatial plus temporal layers, as the paper counts them; two make one block
    width: int  # d, size of the residual stream
    num_heads: int  # attention heads per layer
    causal: bool = True  # temporal attention does not see later frames

    def __post_init__(self):
        super().__post_init__()
        check_least(self, width=4, num_heads=1)
        if self.num_layers % 2 or self.num_layers < 2:
            raise WhaleError(f"num_layers counts spatial and temporal layers, so it is even; it is {self.num_layers}.")
        if self.width % self.num_heads:
            raise WhaleError(f"num_heads={self.num_heads} does not divide width={self.width}; choose one that does.")
        if self.width % 4:
            raise WhaleError(f"width={self.width} is no multiple of 4, as position codes need; choose one that is.")

    @property
    def num_blocks(self) -> int:
        """Number of blocks, each of one spatial layer, one temporal layer and one feed-forward layer."""
        return self.num_layers // 2

    @property
    def residual_gain(self) -> float:
        """Factor on the initial weights of layers that add to the residual stream: three additions per block."""
        return (3 * self.num_blocks) ** -0.5


@flax.struct.dataclass
class Places:
    """The positions of S frames among the slots of a cache.

    Attributes:
      times: (S,) int32, positions of the frames in time.
      slot: () int32, slot of the first frame, which the others follow. It counts among the slots for branches if
        there are any.
      seen: (S, W) bool, slots that each frame attends to, including its own. Slots for branches come last.
    """

    times: jax.Array
    slot: jax.Array
    seen: jax.Array

    @classmethod
    def after(cls, time: jax.Array, frames: int, slots: int) -> "Places":
        """Returns the places of consecutive frames from `time` on, each of which sees all frames before it."""
        times = time + jnp.arange(frames)
        return cls(times, time, jnp.arange(slots) <= times[:, None])


@flax.struct.dataclass
class LayerCache:
    """Keys and values (B·N, H, W, D) of one block, with one slot for each of W frames.

    If blocks are scanned, it holds all of them, with the blocks as second axis of every array.

    Attributes:
      keys, values: keys and values of the window's frames.
      branch_keys, branch_values: keys and values of frames that branch off the window; None without branches.
    """

    keys: jax.Array
    values: jax.Array
    branch_keys: jax.Array | None = None
    branch_values: jax.Array | None = None

    def write(self, keys: jax.Array, values: jax.Array, slot: jax.Array) -> "LayerCache":
        """Returns the cache with keys and values written from `slot` on.

        They go into the slots for branches if there are any, else into those of the window.
        """

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)

        if self.branch_keys is None:
            return self.replace(keys=put(self.keys, keys), values=put(self.values, values))
        branch = {"branch_keys": put(self.branch_keys, keys), "branch_values": put(self.branch_values, values)}
        return self.replace(**branch)

    def pairs(self) -> list[tuple[jax.Array, jax.Array]]:
        """Returns the keys and values of the window, then those of the branches."""
        window = [(self.keys, self.values)]
        return window if self.branch_keys is None else [*window, (self.branch_keys, self.branch_values)]

    def branch(self, slots: int) -> "LayerCache":
        """Returns the cache with `slots` empty slots for branches."""
        keys, values = (jnp.zeros((*x.shape[:-2], slots, x.shape[-1]), x.dtype) for x in (self.keys, self.values))
        return self.replace(branch_keys=keys, branch_values=values)


@flax.struct.dataclass
class TimeCache:
    """The state of temporal attention after earlier frames.

    Attributes:
      time: () int32, number of real frames; later slots are not seen.
      layers: one cache per block, or a single one if blocks are scanned. It is empty before the first frames.
      slots: W, the number of frames that fit.
      places: positions of the next frames if they do not simply follow. Such frames do not count as real.
    """

    time: jax.Array
    layers: tuple[LayerCache, ...]
    slots: int = flax.struct.field(pytree_node=False)
    places: Places | None = None

    @classmethod
    def empty(cls, slots: int) -> "TimeCache":
        """Returns a cache without frames; the first frames fill it from its first slot on."""
        return cls(jnp.int32(0), (), slots)

    def until(self, time: jax.Array | int) -> "TimeCache":
        """Returns the cache as it was after its first `time` frames."""
        return self.replace(time=jnp.int32(time))

    def branch(self, slots: int) -> "TimeCache":
        """Returns the cache with slots for frames that branch off the window, which is then only read."""
        return self.replace(layers=tuple(layer.branch(slots) for layer in self.layers))


class HeadNorm(nn.Module):
    """Root-mean-square normalisation of each head's queries and keys, in float32.

    One learned scale on the queries serves both, because only the product of two scales would matter.

    Attributes:
      rotate: whether features are rotated by their positions in time, see `whale_jax.nn.positions`.
    """

    rotate: bool

    @nn.compact
    def __call__(self, qk: jax.Array, times: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns normalised queries and keys, each (B, S, H, D), in the type of `qk`.

        Args:
          qk: (B, S, 2, H, D) queries and keys.
          times: (S,) positions in time, as `rotate` of `whale_jax.nn.positions` takes them.
        """
        init = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        scale = self.param("scale", init, qk.shape[-1:])
        x = qk.astype(jnp.float32)
        x = (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)).astype(qk.dtype)
        q, k = x[:, :, 0], x[:, :, 1]
        q = q * scale.astype(q.dtype)
        return (rotate(q, times), rotate(k, times)) if self.rotate else (q, k)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second-to-last axis, with normalised queries and keys."""

    settings: TransformerSettings
    axis: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        past: LayerCache | None = None,
        places: Places | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """Maps (B, S, D) to (B, S, D) and returns the keys and values too.

        Args:
          x: normalised features.
          lengths: (B,) number of real keys.
          past: cache into which the keys and values of x are written. Without it, only those of x are returned, as
            (B, S, H, D).
          places: where in `past` they are written, and the slots that they see.
        """
        s = self.settings
        dtype = resolve_dtype(s.dtype)
        heads = (s.num_heads, s.width // s.num_heads)
        qkv = Dense((3, *heads), ("embed", None, "heads", None), dtype, use_bias=False, name="qkv")(x)
        qkv = constrain(qkv, "batch", None, None, "heads", None)
        in_time = self.axis == "time"
        q, k = HeadNorm(rotate=in_time, name="norm")(qkv[:, :, :2], None if places is None else places.times)
        v = qkv[:, :, 2]
        if past is None:
            kernel = resolve_kernel(s.time_kernel if in_time else s.space_kernel, self.axis)
            y = attention(q, k, v, causal=in_time and s.causal, kernel=kernel, lengths=lengths)
            cache = LayerCache(k, v)
        else:
            # Transposed before the write: fused into one operation, the two take five times as long on a CPU.
            k, v = jax.lax.optimization_barrier((k.swapaxes(1, 2), v.swapaxes(1, 2)))
            cache = past.write(k, v, places.slot)
            y = attention_to_slots(q, cache.pairs(), places.seen)
        gain = s.residual_gain
        return Dense(s.width, ("heads", None, "embed"), dtype, gain=gain, use_bias=False, name="out")(y), cache


class STBlock(nn.Module):
    """Spatial attention, temporal attention and feed-forward with pre-norm residuals (docs/method.md §2).

    Attributes:
      keep: whether to return the keys and values of temporal attention.
    """

    settings: TransformerSettings
    keep: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None, places: Places | None, past: LayerCache | None):
        """Maps (B, T, N, D) to (B, T, N, D) and returns the keys and values of temporal attention, or None.

        `lengths` (B,) is the number of real frames. `past` and `places` are as in `SelfAttention`.
        """
        s = self.settings
        dtype = resolve_dtype(s.dtype)
        batch, frames, tokens, width = x.shape
        y = LayerNorm(dtype, name="space_norm")(x).reshape(batch * frames, tokens, width)
        x = x + SelfAttention(s, "space", name="space")(y)[0].reshape(x.shape)

        # Over time, every token attends to itself in other frames, so tokens become part of the batch.
        y = LayerNorm(dtype, name="time_norm")(x).swapaxes(1, 2).reshape(batch * tokens, frames, width)
        # Every row of that larger batch needs a length.
        rows = None if lengths is None else jnp.broadcast_to(lengths[:, None], (batch, tokens)).reshape(-1)
        y, cache = SelfAttention(s, "time", name="time")(y, rows, past, places)
        x = x + y.reshape(batch, tokens, frames, width).swapaxes(1, 2)

        y = LayerNorm(dtype, name="mlp_norm")(x)
        y = nn.gelu(constrain(Dense(4 * width, ("embed", "mlp"), dtype, name="mlp_in")(y), "batch", None, None, "mlp"))
        x = x + Dense(width, ("mlp", "embed"), dtype, gain=s.residual_gain, name="mlp_out")(y)
        x = constrain(x.astype(resolve_dtype(s.residual_dtype)), "batch", None, None, None)
        return x, cache if self.keep else None


class STTransformer(nn.Module):
    """Position codes of the grid, ST blocks and final normalisation.

    Dimension keys: B batch, T frames, N tokens per frame, D width.
    """

    settings: TransformerSettings

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Maps embeddings (B, T, N, D) to features (B, T, N, D) in float32.

        Args:
          x: embedded tokens without positions, of order 1 as the codes are.
          lengths: (B,) number of real frames of each row. Causal models can omit it because they never see padding,
            which is to the right.
        """
        return self.extend(x, lengths=lengths)[0]

    @nn.compact
    def extend(
        self, x: jax.Array, cache: TimeCache | None = None, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, TimeCache | None]:
        """Does the same with state, so that a later call can add frames at the cost of those frames only.

        Args:
          x: (B, T, N, D) embeddings; with `cache`, those of the frames that follow it.
          cache: state after the earlier frames, or `TimeCache.empty` if there are none. None keeps no state.
          lengths: as in `__call__`, but not with a cache that holds frames.

        Returns:
          Features (B, T, N, D), and the cache with these frames, or None.
        """
        s = self.settings
        x = x.astype(resolve_dtype(s.residual_dtype))
        x = x + grid_codes(*x.shape[2:]).astype(x.dtype)
        frames, keep, places = x.shape[1], cache is not None, None
        past = cache.layers if keep else ()
        if past:
            places = Places.after(cache.time, frames, cache.slots) if cache.places is None else cache.places
        block = STBlock
        if s.remat != "none" and not is_counted():
            # A barrier keeps XLA from merging the recomputation with the first one. Inside a scan it cannot anyway.
            block = nn.remat(block, policy=REMAT_POLICIES[s.remat], prevent_cse=not s.scan)
        if s.scan:
            stacked = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, 1),
                out_axes=1,
                length=s.num_blocks,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, layer = stacked(s, keep, name="blocks")(x, lengths, places, past[0] if past else None)
            layers = (layer,)
        else:
            layers = ()
            for i in range(s.num_blocks):
                x, layer = block(s, keep, name=f"block_{i}")(x, lengths, places, past[i] if past else None)
                layers += (layer,)
        x = LayerNorm(name="final_norm")(x)
        if not keep:
            return x, None
        if not past:
            layers = jax.tree.map(lambda leaf: _with_room(leaf, cache.slots), layers)
        counted = frames if cache.places is None else 0
        return x, cache.replace(time=cache.time + counted, layers=layers, places=None)


def _with_room(x: jax.Array, slots: int) -> jax.Array:
    """Returns keys or values (…, S, H, D) in a cache's layout (…, H, W, D), where they fill the first S of W slots."""
    x = x.swapaxes(-3, -2)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, slots - x.shape[-2]), (0, 0)])
