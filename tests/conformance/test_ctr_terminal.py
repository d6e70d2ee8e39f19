"""``ctr run -t``, ``exec -t`` and ``attach`` on a real pseudo terminal."""

from __future__ import annotations

import fcntl
import signal
import struct
import termios
import time

from .fixtures import Shop


def test_run_on_a_terminal(shop: Shop, unique: str) -> None:
    with shop.ctr.terminal("run", "--rm", "-t", shop.image, unique, "sh") as terminal:
        terminal.send("tty && echo one=$((1 + 0))\n")
        assert "/dev/pts/" in terminal.expect("one=1\n")
        terminal.send("test -t 0 && test -t 1 && test -t 2 && echo three=$((3))\n")
        terminal.expect("three=3\n")
        terminal.send("exit 9\n")
        assert terminal.wait() == 9


def test_terminal_has_the_size_of_ours_and_follows_it(shop: Shop, unique: str) -> None:
    with shop.ctr.terminal("run", "--rm", "-t", shop.image, unique, "sh") as terminal:
        terminal.send("echo up=$((1))\n")
        terminal.expect("up=1\n")
        time.sleep(0.3)  # ctr passes sizes on from a moment after the start on
        for rows, columns in ((33, 111), (44, 122)):
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(terminal.descriptor, termios.TIOCSWINSZ, size)
            terminal.process.send_signal(signal.SIGWINCH)
            script = f"until stty size 2>/dev/null | grep -q '^{rows} '; do sleep 0.05; done"
            terminal.send(f"{script}; stty size\n")
            terminal.expect(f"{rows} {columns}\n")
        terminal.send("exit\n")
        assert terminal.wait() == 0


def test_control_c_interrupts_what_runs(shop: Shop, unique: str) -> None:
    with shop.ctr.terminal("run", "--rm", "-t", shop.image, unique, "sh") as terminal:
        terminal.send("echo up=$((1)); sleep 600\n")
        terminal.expect("up=1\n")
        terminal.send("\x03")
        terminal.send("echo code=$?\n")
        terminal.expect("code=130\n")
        terminal.send("exit\n")
        assert terminal.wait() == 0


def test_detached_terminal_and_attach(shop: Shop, unique: str) -> None:
    with shop.ctr.terminal("run", "-d", "-t", shop.image, unique, "sh") as starter:
        assert starter.wait() == 0
    assert shop.ctr("t", "ls").rows()[0][2] == "RUNNING"
    with shop.ctr.terminal("t", "attach", unique) as terminal:
        terminal.send("echo attached=$((1))\n")
        terminal.expect("attached=1\n")
        terminal.send("exit 4\n")
        assert terminal.wait() == 4


def test_exec_on_a_terminal(shop: Shop, unique: str) -> None:
    shop.ctr("run", "-d", shop.image, unique, "sleep", "600")
    arguments = ("t", "exec", "-t", "--exec-id", "e", unique, "sh")
    with shop.ctr.terminal(*arguments) as terminal:
        terminal.send("tty; echo in=$((1))\n")
        assert "/dev/pts/" in terminal.expect("in=1\n")
        terminal.send("exit 5\n")
        assert terminal.wait() == 5
    assert shop.ctr("t", "ls").rows()[0][2] == "RUNNING"


def test_large_output_on_a_terminal_is_whole(shop: Shop, unique: str) -> None:
    script = "seq 1 20000; exit 6"
    with shop.ctr.terminal("run", "--rm", "-t", shop.image, unique, "sh", "-c", script) as terminal:
        code = terminal.wait(20)
        assert code == 6
        lines = terminal.seen.split()
        assert lines == [str(n) for n in range(1, 20001)]
