"""Streams out of `.gz` and `.zst` files; a stream that is cut off never passes for a whole one."""

import gzip
import io
import shutil
import tempfile
from typing import IO, Any, Final

import zstandard

COMPRESSIONS: Final = frozenset({".gz", ".zst"})

_ZSTD_INPUT_BYTES: Final = 2048  # zstd can grow 32,000-fold: this bounds one output at 64 MiB


def decompressed(stored: IO[bytes], compression: str | None) -> IO[bytes]:
    """Give the content of a stored file, read as it is asked for."""
    if compression == ".gz":
        # The buffer in front reads lines in C; a GzipFile reads them in Python.
        return io.BufferedReader(gzip.GzipFile(fileobj=stored))
    return io.BufferedReader(_ZstdStream(stored)) if compression == ".zst" else stored


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """Copy a stream to a temporary file, for formats that are read from their end."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by whoever asked for it
    try:
        shutil.copyfileobj(stream, copy)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


class _ZstdStream(io.RawIOBase):
    """A zstd stream of one or more frames; zstandard's own reader takes a cut for the end."""

    def __init__(self, stored: IO[bytes]) -> None:
        self._stored = stored
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        while not self._output:
            if not self._input:
                self._input = self._stored.read(_ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the zstd stream is cut off")
                return 0
            self._decompress()
        taken = min(len(buffer), len(self._output))
        buffer[:taken] = self._output[:taken]
        self._output = self._output[taken:]
        return taken

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._output = self._frame.decompress(self._input)
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
