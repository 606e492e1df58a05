"""Learning to act in imagined environments.

Importing it registers "whale/Dream-v0" with Gymnasium, as gymnasium.make("whale_jax.control:whale/Dream-v0") does.
"""

DREAM = "whale/Dream-v0"


def register() -> None:
    """Registers the environment `DREAM` with Gymnasium, unless it is; free of JAX."""
    import gymnasium

    if DREAM not in gymnasium.registry:
        home = "whale_jax.imagination.environments.envs"
        gymnasium.register(DREAM, f"{home}:DreamEnv", vector_entry_point=f"{home}:DreamVectorEnv")


register()
