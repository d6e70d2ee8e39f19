"""What the machine boots from: a kernel of Debian's, an initramfs, and a disk made of this machine.

The disk holds this interpreter, this source tree with its virtual environment (at the same
paths), the programs that the tests run, and the libraries that all of them need; nothing is
downloaded, nothing is kept. ``machine`` boots it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = "/machine.sh"
"""The shell script in the machine that it runs, and ends after."""

_PROGRAMS = (
    "busybox runc crun criu ctr tar gzip true ip iptables iptables-restore iptables-save "
    "ip6tables ip6tables-restore ip6tables-save mkfs.ext4 mkfs.xfs"
).split()
_MODULES = (
    "virtio_pci virtio_blk overlay netlink_diag unix_diag tcp_diag udp_diag af_packet_diag "
    "nf_tables nf_conntrack_netlink tun veth loop quota_v2 xfs"
).split()
_NEEDLESS = frozenset(
    "test idlelib lib2to3 ensurepip tkinter turtledemo pydoc_data distutils site-packages "
    "dist-packages mypy mypyc grpc_tools pip setuptools ruff grimp importlinter ast_serialize "
    "librt .git .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build".split()
)
_SPARE_MIB = 300

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for module in {modules}; do /bin/busybox insmod /modules/$module; done
tries=0
until [ -b /dev/vda ] || [ $tries -gt 200 ]; do
	tries=$((tries + 1))
	/bin/busybox sleep 0.05
done
/bin/busybox mount -t ext4 -o noatime,nobarrier /dev/vda /root &&
	/bin/busybox mount --move /dev /root/dev &&
	exec /bin/busybox switch_root /root /sbin/init
/bin/busybox poweroff -f
"""

_SECOND_INIT = f"""#!/bin/busybox sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t securityfs securityfs /sys/kernel/security
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
busybox mount -t tmpfs -o mode=755 tmpfs /run
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts -o ptmxmode=0666 devpts /dev/pts
busybox mount -t tmpfs tmpfs /dev/shm
busybox ip link set lo up
busybox stty -F /dev/ttyS1 raw
busybox sh {SCRIPT} >/dev/ttyS1 2>&1
echo "machine ended: $?" >/dev/ttyS1
busybox poweroff -f
"""


class Missing(Exception):
    """Something that the machine needs is not installed; the message says what."""


def kernel() -> tuple[Path, Path]:
    """A kernel and the folder of its modules. Raises Missing."""
    for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        modules = Path("/lib/modules", image.name.removeprefix("vmlinuz-"))
        if (modules / "modules.dep").is_file() and _are_plain(_wanted(modules)):
            return image, modules
    raise Missing("no kernel in /boot with modules as they are (linux-image-cloud-amd64)")


def build(folder: Path, script: str) -> tuple[Path, Path, Path]:
    """Makes kernel, initramfs and disk below ``folder``; ``script`` is what the machine runs.
    Raises Missing."""
    image, modules = kernel()
    initramfs, disk, root = folder / "initramfs", folder / "disk", folder / "root"
    initramfs.write_bytes(_initramfs(modules))
    _lay_out(root, script)
    size = _mebibytes(root) + _SPARE_MIB
    mkfs = _program("mkfs.ext4")
    options = ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-m", "0"]
    subprocess.run(
        [mkfs, *options, "-d", str(root), str(disk), f"{size}M"], check=True, capture_output=True
    )
    shutil.rmtree(root)
    return image, initramfs, disk


# The disk -----------------------------------------------------------------------------------


def _lay_out(root: Path, script: str) -> None:
    for name in "usr/bin usr/sbin usr/lib usr/lib64 etc proc sys dev run tmp root var".split():
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / SCRIPT.strip("/")).write_text(script)
    _write_program(root / "sbin/init", _SECOND_INIT)
    elves: list[str] = []
    for program in _PROGRAMS:
        elves.append(_copy_program(root, program))
    for applet in "sh cat ls mount umount kill ps sleep false env mkdir rm stat".split():
        (root / "bin" / applet).symlink_to("busybox")
    for tree in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(REPOSITORY)):
        _copy_tree(Path(tree), root)
    plugins = Path("/usr/lib/x86_64-linux-gnu/xtables")
    if plugins.is_dir():
        _copy_tree(plugins, root)
    executable = Path(sys.executable)
    for link in (executable, *executable.parent.glob("python*")):
        _copy_link(link, root)
    _copy_file(Path(sys.prefix, "pyvenv.cfg"), root)
    elves.append(os.path.realpath(sys.executable))
    elves += [str(found) for found in root.rglob("*.so*") if not found.is_symlink()]
    for library in _libraries(elves):
        _copy_file(Path(library), root)


def _copy_program(root: Path, name: str) -> str:
    source = _program(name)
    _copy_link(Path(source), root)
    target = root / "usr/bin" / name
    if not target.exists() and not target.is_symlink():
        target.symlink_to(os.path.realpath(source))
    return os.path.realpath(source)


def _program(name: str) -> str:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"the program {name} is not installed")
    return found


def _copy_link(path: Path, root: Path) -> None:
    """A file at its path, with the links that lead to it."""
    while path.is_symlink():
        target = _inside(path, root)
        if not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(path))
        path = Path(os.path.normpath(path.parent / os.readlink(path)))
    _copy_file(path, root)


def _copy_file(path: Path, root: Path) -> None:
    target = _inside(path, root)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _link(str(path.resolve()), str(target))


def _inside(path: Path, root: Path) -> Path:
    """Where a path of this machine is in the other, whose /lib and /bin are links into /usr."""
    relative = str(path).lstrip("/")
    if relative.split("/")[0] in ("lib", "lib64", "bin", "sbin"):
        relative = f"usr/{relative}"
    return root / relative


def _copy_tree(source: Path, root: Path) -> None:
    top = sysconfig.get_path("purelib")

    def needless(folder: str, names: list[str]) -> Iterable[str]:
        unwanted = set(_NEEDLESS.intersection(names))
        unwanted |= {name for name in names if name.startswith("config-")}
        if folder == top:
            unwanted |= {name for name in names if "__mypyc." in name}
        return unwanted

    target = _inside(source, root)
    shutil.copytree(
        source, target, symlinks=True, ignore=needless, copy_function=_link, dirs_exist_ok=True
    )


def _link(source: str, target: str) -> str:
    """A file of the disk is the very file of this machine where both share a filesystem."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _libraries(elves: list[str]) -> set[str]:
    """The shared libraries that files need, the loader among them."""
    done = subprocess.run(["ldd", *elves], capture_output=True, text=True, check=False)
    found: set[str] = set()
    for line in done.stdout.splitlines():
        words = line.split()
        if "=>" in words and len(words) > 2 and words[2].startswith("/"):
            found.add(words[2])
        elif words and words[0].startswith("/") and not line.endswith(":"):
            found.add(words[0])
    return found


def _mebibytes(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            total += os.lstat(os.path.join(folder, name)).st_size + 4096
    return total >> 20


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


# The initramfs ------------------------------------------------------------------------------


def _wanted(modules: Path) -> list[str]:
    """Paths of the modules to load, each after those that it needs; what is part of the kernel
    itself is not among them."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    wanted: list[str] = []
    for path in needs:
        if Path(path).name.partition(".")[0] in _MODULES:
            wanted += [*reversed(needs[path]), path]
    return list(dict.fromkeys(wanted))


def _are_plain(paths: Iterable[str]) -> bool:
    """Whether busybox can load them: it does not decompress."""
    return all(path.endswith(".ko") for path in paths)


def _initramfs(modules: Path) -> bytes:
    """A cpio archive ("newc") with busybox and the modules that the disk needs."""
    archive = b"".join(
        _member(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "root")
    )
    archive += _member("bin/busybox", stat.S_IFREG | 0o755, Path(_program("busybox")).read_bytes())
    wanted = _wanted(modules)
    for path in wanted:
        data = (modules / path).read_bytes()
        archive += _member(f"modules/{Path(path).name}", stat.S_IFREG | 0o644, data)
    script = _INIT.format(modules=" ".join(Path(path).name for path in wanted)).encode()
    archive += _member("init", stat.S_IFREG | 0o755, script)
    return archive + _member("TRAILER!!!", 0)


def _member(name: str, mode: int, data: bytes = b"") -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
