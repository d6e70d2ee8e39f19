"""What this kernel's overlayfs needs and offers under a directory; asked once, at the start."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from supervisord.contracts.errors import Error, FailedPrecondition
from supervisord.linux import idmap
from supervisord.linux.entries import type_of

_PARAMETERS = Path("/sys/module/overlay/parameters")
_FILESYSTEMS = Path("/proc/filesystems")
_IDS = "0:1:1"


def overlay_options(root: str, configured: Sequence[str]) -> list[str]:
    """The options to add to overlay mounts under ``root``, unless they are configured already.

    ``index=off`` where the kernel has the index feature (with it, layers shared by several
    mounts are refused); ``metacopy=off`` where the kernel would copy up attributes alone, because a
    layer made of such files has no contents of its own; ``userxattr`` inside a user namespace,
    where trusted xattrs are not to be had (kernel 5.11 on, but not on tmpfs)."""
    keys = {option.partition("=")[0] for option in configured}
    options = []
    if "userxattr" not in keys and needs_userxattr(root):
        options.append("userxattr")
    if "index" not in keys and (_PARAMETERS / "index").exists():
        options.append("index=off")
    if "metacopy" not in keys and _copies_attributes_alone():
        options.append("metacopy=off")
    return options


def supported() -> bool:
    """Whether the kernel knows overlayfs, or has a module that it may load for a mount."""
    if re.search(r"^nodev\s+overlay$", _FILESYSTEMS.read_text(), re.MULTILINE):
        return True
    modules = Path("/lib/modules") / os.uname().release
    return any(modules.glob("kernel/fs/overlayfs/overlay.ko*"))


def needs_userxattr(root: str) -> bool:
    """Whether overlay metadata must go to user xattrs."""
    return in_user_namespace() and kernel() >= (5, 11) and filesystem(root) != "tmpfs"


def in_user_namespace() -> bool:
    """Whether our user ids are mapped, so that we are not the machine's root."""
    try:
        mapping = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return mapping != ["0", "0", str(2**32 - 1)]


def maps_ids(root: str) -> bool:
    """Whether layers below ``root`` can have their owners mapped: the filesystem must know how,
    and overlayfs (Linux 5.19) that they are."""
    if kernel() < (5, 19):
        return False
    try:
        with idmap.user_namespace(_IDS, _IDS) as userns:
            os.close(idmap.clone(root, 0, userns))
    except (OSError, Error):
        return False
    return True


def check_types(root: str) -> None:
    """Raises FailedPrecondition where folders do not tell the types of their entries, without
    which overlayfs shows its whiteouts as files (xfs made with ftype=0). Raises OSError."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="new-", dir=root))
            Path(folder, "entry").touch()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return  # a full disk must not keep it from starting: it was asked before
            raise
        if not type_of("entry", folder):
            raise FailedPrecondition(
                f"{root} does not support d_type. If the backing filesystem is xfs, please "
                "reformat with ftype=1 to enable d_type support"
            )


def kernel() -> tuple[int, int]:
    """Major and minor number of the running one."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def filesystem(path: str) -> str:
    """The type of the filesystem that ``path`` is on, "" if it is on none that is mounted here."""
    device = Path(path).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.partition(" ")[0]
    return ""


def _copies_attributes_alone() -> bool:
    try:
        return (_PARAMETERS / "metacopy").read_text().strip() == "Y"
    except OSError:
        return False
