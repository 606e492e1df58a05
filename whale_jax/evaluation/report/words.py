"""Numbers and lists as text."""


def decibel(value: float) -> str:
    """Returns a value as `12.3 dB`, with a true minus sign."""
    return f"{value:.1f} dB".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """Returns a difference as `+1.2 dB` or `−0.4 dB`.

    Below 0.1 dB it has two decimals, since one decimal would hide the sign.
    """
    if abs(value) < 0.005:
        return "0.0 dB"
    digits = 1 if abs(value) >= 0.1 else 2
    return f"{value:+.{digits}f} dB".replace("-", "\N{MINUS SIGN}")


def count(number: int, one: str, many: str | None = None) -> str:
    """Returns a number with its noun, such as `1 task` or `3 tasks`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: list[str]) -> str:
    """Returns names as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
