"""Copies an episode store to another, file by file."""

import shutil
from pathlib import Path

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import replacing, write
from whale_jax.base.progress import Progress
from whale_jax.data.store.resume import resuming
from whale_jax.data.store.storage import MANIFEST, read_header
from whale_jax.data.store.store import EpisodeStore, open_store


def copy_store(
    source: Path | str, root: Path, image_size: int | None, progress: bool
) -> tuple[EpisodeStore, dict[str, int]]:
    """Copies a store file by file, and checks each file first. Episodes that exist already are kept.

    Returns:
      The new store, and an empty dictionary, because nothing is left out.

    Raises:
      WhaleError: a file cannot be read, another size is requested, or `root` holds other episodes.
    """
    store = open_store(source)
    if image_size and store.image_size != (image_size, image_size):
        raise WhaleError(
            f"{store.root} holds frames of {store.image_size[0]}x{store.image_size[1]} pixels, which are copied as "
            "they are; leave --image-size out."
        )
    wanted = {record["file"] for record in store.records}
    with resuming(root, wanted, {}) as headers:
        if strays := sorted(set(headers) - wanted):
            raise WhaleError(
                f"{root} holds episodes that {store.root} does not ({strays[0]}); give --to another directory."
            )
        there = {file for file, header in headers.items() if header == read_header(store.root / file)}
        with Progress(root.name, "Copied", "episodes", len(store), len(there), "frames", progress) as bar:
            for i, record in enumerate(store.records):
                if record["file"] not in there:
                    bar.step(store.read(i).length + 1)
                    with replacing(root / record["file"]) as file, open(store.root / record["file"], "rb") as old:
                        shutil.copyfileobj(old, file)
        write(root / MANIFEST, (store.root / MANIFEST).read_bytes())
    return open_store(root), {}
