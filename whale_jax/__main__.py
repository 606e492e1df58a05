"""`python -m whale_jax` is the `whale` command."""

from whale_jax.cli.whale import main

if __name__ == "__main__":
    raise SystemExit(main())
