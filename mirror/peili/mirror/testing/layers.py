"""Writes layers of random bytes into the blobs of an OCI image layout. Manifests are `images`' matter."""

from __future__ import annotations

import gzip
import hashlib
import random
import tarfile
import uuid
from pathlib import Path
from typing import Protocol, Self

from peili.mirror.oci.references import Descriptor, Digest

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PIECE = 1 << 20


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class BlobWriter:
    """A file in the directory `blobs` that takes its digest as its name once it is left without an error."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self._unfinished = blobs / f".{uuid.uuid4().hex}"
        self._file = self._unfinished.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> Digest:
        """The digest of what is written so far."""
        return Digest(f"sha256:{self._hash.hexdigest()}")

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._unfinished.replace(self._blobs / self.digest.encoded)
        else:
            self._unfinished.unlink()


def write_layer(blobs: Path, name: str, size: int, source: random.Random, *, compress: bool) -> tuple[Descriptor, str]:
    """A layer, a tar of one file `name` with `size` random bytes, and its diff id (OCI image spec, "Layer DiffID").

    The diff id is the digest of the tar before it was compressed.
    """
    with BlobWriter(blobs) as blob:
        if compress:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=blob, mtime=0) as zipped:
                diff_id = _write_tar(zipped, name, size, source)
        else:
            diff_id = _write_tar(blob, name, size, source)
    return Descriptor(OCI_LAYER + ("+gzip" if compress else ""), blob.digest, blob.size), diff_id


def _write_tar(to: _Writable, name: str, size: int, source: random.Random) -> str:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    diff_id = hashlib.sha256()

    def write(data: bytes) -> None:
        diff_id.update(data)
        to.write(data)

    write(header.tobuf(tarfile.PAX_FORMAT))
    for start in range(0, size, _PIECE):
        write(source.randbytes(min(_PIECE, size - start)))
    write(bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
    return f"sha256:{diff_id.hexdigest()}"
