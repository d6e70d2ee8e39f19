"""The command line: every verb has help, aliases lead to the same place, errors are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from supervisord.cli.arguments import NOUNS, build
from supervisord.cli.main import main
from tests.unit.cli.commands import choices, every

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [words for words, _ in every()]

ALIASES = [
    ("i ls", "images list"),
    ("image import f", "images import f"),
    ("c create I id", "container create I id"),
    ("t kill id", "task kill id"),
    ("ns c name", "namespace create name"),
    ("snapshot rm k", "snapshots delete k"),
    ("content del d", "content remove d"),
    ("lease del l", "leases rm l"),
    ("plugin list", "plugins ls"),
    ("event", "events"),
    ("t metric id", "tasks metrics id"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_verb_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert shown.out.startswith(f"usage: sctl {' '.join(words)}")
    assert shown.err == ""


@pytest.mark.parametrize("entry", NOUNS, ids=lambda entry: entry.name)
def test_a_noun_alone_shows_its_verbs(entry: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = getattr(entry, "name", "")
    verbs = choices(choices(build())[name].filled())
    if not verbs:
        pytest.skip("the noun is a command itself")
    assert main([name]) == 0
    shown = capsys.readouterr().out
    assert all(f" {verb}" in shown or f"({verb}" in shown for verb in verbs)


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_aliases_lead_to_the_same_command(alias: str, name: str) -> None:
    short, long = (build().parse_args(text.split()) for text in (alias, name))
    assert short.run is long.run


def test_no_arguments_show_the_nouns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(entry.name in shown and entry.summary in shown for entry in NOUNS)


def test_the_version_needs_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sctl ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nonsense", "argument NOUN: invalid choice: 'nonsense'"),
        ("images nonsense", "images: argument VERB: invalid choice: 'nonsense'"),
        ("images import", "images import: the following arguments are required: FILE"),
        ("tasks kill -s NOPE id", "tasks kill: argument --signal/-s: 'NOPE' is not the name of a"),
        ("--timeout soon version", "argument --timeout: 'soon' is not a duration like 10s"),
        ("run --memory-limit lots a b", "run: argument --memory-limit: 'lots' is not a size"),
        (
            "ns label foo =x",
            "namespaces label: argument KEY=VALUE: '=x' is not of the form key=value",
        ),
        ("images ls --form json", "unrecognized arguments: --form"),
        ("run --rm -d image id", "--rm and --detach exclude each other"),
        ("run image", "the container's id is missing: IMAGE ID [COMMAND] [ARG...]"),
        ("tasks exec id", "the command is missing: ID COMMAND [ARG...]"),
        ("images label image", "images label: no labels were given"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"sctl: {message}")
    assert shown.err.count("\n") == 1


def test_an_absent_daemon_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    socket = tmp_path / "none.sock"
    assert main(["--address", str(socket), "version"]) == 1
    assert capsys.readouterr().err == (
        f"sctl: cannot connect to {socket}: no such file or directory "
        "(is the daemon running? --address names another socket)\n"
    )


def test_the_environment_names_daemon_and_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/somewhere")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "mine")
    monkeypatch.setenv("CONTAINERD_SNAPSHOTTER", "native")
    args = build().parse_args(["snapshots", "ls"])
    assert (args.address, args.namespace, args.snapshotter) == ("/somewhere", "mine", "native")
    args = build().parse_args(["-a", "/other", "-n", "yours", "version"])
    assert (args.address, args.namespace) == ("/other", "yours")


def test_a_containers_arguments_are_left_alone() -> None:
    words = ["run", "--rm", "image", "id", "sh", "-c", "echo --rm $1", "--detach", "-t"]
    args = build().parse_args(words)
    assert (args.rm, args.detach, args.tty) == (True, False, False)
    assert args.args == ["sh", "-c", "echo --rm $1", "--detach", "-t"]
    args = build().parse_args(["tasks", "exec", "--exec-id", "e", "id", "ls", "-d", "--cwd"])
    assert (args.detach, args.cwd, args.args) == (False, None, ["ls", "-d", "--cwd"])


def test_help_loads_nothing_heavy() -> None:
    """``sctl --help`` and ``sctl run --help`` must feel instant."""
    for words in ("'--help'", "'run', '--help'"):
        script = (
            "import sys\nfrom supervisord.cli.main import main\n"
            f"try: main([{words}])\nexcept SystemExit: pass\n"
            "print({'grpc', 'rich', 'google.protobuf', 'asyncio', 'ssl'} & set(sys.modules))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert ran.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_is_valid_bash(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("sctl im", "images"),
        ("sctl images imp", "import"),
        ("sctl -n x i e", "export"),
        ("sctl run --net", "--net-host"),
        ("sctl tasks kill --sig", "--signal"),
    ],
)
def test_completion_completes(
    typed: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["completion", "bash"])
    words = typed.split()
    script = (
        capsys.readouterr().out
        + f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _sctl\n"
        + 'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert expected in ran.stdout.split()
