"""Ids of data sets on the Hugging Face Hub, where the path of a directory belongs."""

import re
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def download(source: Path | str) -> str:
    """Returns the commands for a missing directory that may be the id of a data set, as a sentence after a space.

    It is "" for what does not look like OWNER/NAME, and where OWNER is a directory here.
    """
    text = str(source)
    if not _ID.fullmatch(text) or Path(text).parent.is_dir():
        return ""
    name = text.partition("/")[2]
    return (
        f" If it is a data set on the Hugging Face Hub, download it: `hf download --repo-type dataset {text} "
        f"--local-dir {name}`; then `whale data import --from={name} --to=STORE --robot=FILE.yaml` makes an episode "
        "store of it."
    )
