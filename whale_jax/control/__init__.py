"""Learning to act in imagined environments.

Importing this package registers "whale/Dream-v0" with Gymnasium. gymnasium.make("whale_jax.control:whale/Dream-v0")
imports it.
"""

DREAM = "whale/Dream-v0"


def register() -> None:
    """Registers the environment `DREAM` with Gymnasium, if it is not registered yet; does not import JAX."""
    import gymnasium

    if DREAM not in gymnasium.registry:
        home = "whale_jax.imagination.environments.envs"
        gymnasium.register(DREAM, f"{home}:DreamEnv", vector_entry_point=f"{home}:DreamVectorEnv")


register()
