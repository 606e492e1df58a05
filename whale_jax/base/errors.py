"""Errors written for the user."""

import difflib
from collections.abc import Iterable


class WhaleError(Exception):
    """An error for the user, whose message is one sentence: what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> WhaleError:
    """Returns the error for a name that does not exist, with the nearest names that do."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"valid names: {', '.join(valid)}."
    return WhaleError(f"There is no {kind} named {name!r}; {hint}")


class BrokenRecord(Exception):
    """A record of a data set that does not hold what its file promises. The message names the cause in a few words."""
