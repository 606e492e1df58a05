"""Files: the one atomic writer, the one lock, digests and cached results."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError

FORMAT = "whale-kept/1"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_space(error: BaseException) -> bool:
    """Returns whether an error says that the disk is full. Libraries in C++ say so only in their message."""
    return getattr(error, "errno", None) in _NO_SPACE or "No space left" in str(error)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """Yields a temporary binary file that replaces `path` only once it is complete and on the disk.

    Raises:
      WhaleError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if not no_space(error):
            raise
        raise WhaleError(
            f"No space left to write {path}: the disk is full. What was complete before is untouched; free "
            "some space or choose another directory, then run the same command again."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary directory that replaces `path` and everything in it when the block ends."""
    beside = _beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(path, ignore_errors=True)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write(path: Path, data: bytes) -> None:
    """Writes a temporary file next to `path`, then moves it into place.

    Raises:
      WhaleError: the disk is full.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path` and creates its directory if needed.

    The thread that holds the lock may enter again. The operating system releases it when this process ends, even if
    the process is killed.

    Args:
      path: the lock file.
      wait: whether to wait for a process that holds the lock instead of raising.

    Raises:
      WhaleError: another process holds the lock, or the directory cannot be created or written.
    """
    import filelock  # takes 30 ms, which commands that only read need not spend

    directory = path.parent
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A resolved path and a singleton give one lock object per file, so that a nested call finds the lock held.
        lock = filelock.FileLock(directory.resolve() / path.name, is_singleton=True, on_acquired=_sign)
        lock.acquire(blocking=wait)
    except filelock.Timeout:
        raise WhaleError(
            f"Another process is writing into {directory}{_signature(path)}; wait for it or choose another directory."
        ) from None
    except OSError as error:
        why = "it is a file" if directory.is_file() else error.strerror
        raise WhaleError(f"{directory} cannot be made or written ({why}); choose another directory.") from error
    try:
        yield
    except BaseException:
        # What was refused before it wrote anything leaves no directory behind.
        with contextlib.suppress(OSError):  # the reason for the refusal counts more than the directory
            if new and [file.name for file in directory.iterdir()] == [path.name]:
                path.unlink()
                directory.rmdir()
        raise
    finally:
        lock.release()


def _sign(descriptor: int) -> None:
    """Writes the holder's process and host into a lock file, for the error that another process raises."""
    with contextlib.suppress(OSError):  # a full disk must not stop anyone from reading or resuming
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


def _signature(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if holder := path.read_text().strip():
            return f" (process {holder})"
    return ""


def digest(parts: Iterable[Any]) -> str:
    """Returns the hexadecimal SHA-256 of arrays (shape, type and content) and of values that JSON can hold."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(f"{part.shape} {part.dtype.str} ".encode())
            whole.update(np.ascontiguousarray(part).data)
        else:
            whole.update(json.dumps(part).encode())
    return whole.hexdigest()


def cached(root: Path, name: str, parts: Iterable[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the cached result of `make` if its inputs are unchanged and its files exist.

    Otherwise computes the result and caches it.

    Args:
      root: directory of the evaluation.
      name: name of the JSON file in `root` that caches the result.
      parts: everything that the result depends on, as `digest` takes it.
      make: returns a dictionary that JSON can hold; its entry "films" names files below `root`.
    """
    made_of = digest([FORMAT, *parts])
    try:
        entry = json.loads((root / name).read_text())
        if entry.pop("made_of") == made_of and all((root / film).exists() for film in entry.get("films", ())):
            return entry
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, or not a file of this kind
        pass
    entry = make()
    write(root / name, json.dumps(entry | {"made_of": made_of}).encode())
    return entry


def check_writable(directory: Path | str, option: str, folders: Iterable[str] = ()) -> None:
    """Raises WhaleError unless files can be made in a directory and in those of its folders that exist.

    A long job asks before it begins.

    Args:
      directory: the directory, which need not exist.
      option: the option that names another one, such as "--output=DIR".
      folders: names of folders in it.
    """
    directory = Path(directory).expanduser().absolute()
    for place in (directory, *filter(os.path.isdir, (directory / folder for folder in folders))):
        there = next(path for path in (place, *place.parents) if os.path.lexists(path))
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            if no_space(error):
                continue  # to be said by whoever writes, with what is complete
            above = "" if there == place else f", because {there} cannot be written to"
            why = "it is a file" if there.is_file() else error.strerror
            raise WhaleError(f"{place} cannot be written{above} ({why}); name another place with {option}.") from error


def absolute(path: str) -> str:
    """Returns a path that means the same from every directory. "" and addresses such as gs://... stay as they are."""
    return path if not path or "://" in path else str(Path(path).expanduser().absolute())


def check_file(path: Path, or_directory: bool = True) -> None:
    """Raises OSError for a pipe, a socket or a device, which may never end, and for a path that leads nowhere.

    A directory passes, of which whoever opens it tells, unless `or_directory` is False.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode) and not or_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))


def stamp(path: Path) -> tuple[int, int] | None:
    """Returns a file's size and time, which differ once it has been written to; None if it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


_LFS = b"version https://git-lfs"


def is_pointer(path: Path) -> bool:
    """Returns whether a file is one that git-lfs leaves in place of data that have not been fetched."""
    with open(path, "rb") as file:
        return file.read(len(_LFS)) == _LFS


def reason(path: Path, error: BaseException | str) -> str:
    """Returns why the contents of a file cannot be read, for an error: its own text, or what the file is instead."""
    try:
        check_file(path)
        with open(path, "rb") as file:
            head = file.read(len(_LFS))
    except OSError as unreadable:
        return unreadable.strerror or str(unreadable)
    if head == _LFS:
        return "it is a pointer of git-lfs in place of the data, which `git lfs pull` brings"
    if not head:
        return "it is empty"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with GZIP; unpack it first"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
