"""Checkpoints in one file each: written in one move, read back only if they are whole and belong to the run."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path

import torch

from nls import _checks

_FORMAT = b"nls checkpoint 1"


def checked_path(value: object) -> Path:
    """Return ``value`` as the path of a file in a folder that exists."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be the path of a file, got {_checks.describe(value)}")
    path = Path(value).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"checkpoint must be a file in a folder that exists, got {os.fspath(value)!r}")
    return path


def digest(words: object, tensors: dict[str, torch.Tensor]) -> bytes:
    """Return 32 bytes that change with the ``repr`` of ``words`` and with name, type, shape or bits of any tensor."""
    kinds = [(name, str(value.dtype), tuple(value.shape)) for name, value in tensors.items()]
    found = hashlib.sha256(repr((words, kinds)).encode())
    for value in tensors.values():
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.digest()


def write_checkpoint(path: Path, fingerprint: bytes, state: dict) -> None:
    """Write a checkpoint in one move: readers see the old one or the new one."""
    body = io.BytesIO()
    torch.save(state, body)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            for piece in (_FORMAT, fingerprint, hashlib.sha256(body.getbuffer()).digest(), body.getbuffer()):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, fingerprint: bytes) -> dict | None:
    """Return the state in a checkpoint, or None if there is none or it is of no use, which is said in a warning."""
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    head = len(_FORMAT)
    found, digest, body = content[head : head + 32], content[head + 32 : head + 64], content[head + 64 :]
    if content[:head] != _FORMAT or hashlib.sha256(body).digest() != digest:
        problem = "is damaged or cut short"
    elif found != fingerprint:
        problem = "belongs to a run with other data, arguments or versions"
    else:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    warnings.warn(f"checkpoint {path} {problem}: training starts anew", RuntimeWarning, stacklevel=4)
    return None
