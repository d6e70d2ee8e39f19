"""What a folder itself tells of its entries, without looking at them."""

from __future__ import annotations

import ctypes
import os

_library = ctypes.CDLL(None, use_errno=True)
_library.opendir.restype = _library.readdir64.restype = ctypes.c_void_p

_NAME_AT = 19  # in a struct dirent: after inode, offset, length and type


def type_of(name: str, folder: str) -> int:
    """The type of the entry ``name`` (DT_REG, ..), or 0 from a file system that keeps none.

    Raises OSError."""
    stream = _library.opendir(os.fsencode(folder))
    if not stream:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), folder)
    try:
        while entry := _library.readdir64(ctypes.c_void_p(stream)):
            if ctypes.string_at(entry + _NAME_AT) == os.fsencode(name):
                return ctypes.string_at(entry + _NAME_AT - 1, 1)[0]
    finally:
        _library.closedir(ctypes.c_void_p(stream))
    raise FileNotFoundError(f"{folder}/{name}")
