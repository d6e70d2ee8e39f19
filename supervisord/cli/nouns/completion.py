"""``sctl completion bash|zsh``: a script that completes nouns, verbs and flags.

The words are taken from the parsers themselves, so the script cannot drift from the commands.
"""

from __future__ import annotations

import argparse
import sys

from ..arguments import NOUNS, Noun, Parser, build


def register(noun: Noun) -> None:
    """Declares the command."""
    parser = noun.command(
        script,
        "Prints a completion script.\n\n"
        "bash:  source <(sctl completion bash)\nzsh:   source <(sctl completion zsh)",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))


def script(args: argparse.Namespace) -> None:
    """Prints the script of one shell."""
    top = build()
    lines = [_case("", [entry.name for entry in NOUNS], _flags(top))]
    for entry in NOUNS:
        noun = _choices(top)[entry.name].filled()
        verbs = _choices(noun)
        for name in (entry.name, *entry.aliases):
            lines.append(_case(name, list(verbs), _flags(noun)))
            lines += [_case(f"{name} {verb}", [], _flags(verbs[verb])) for verb in verbs]
    text = _BASH.replace("@CASES@", "\n".join(lines))
    if args.shell == "zsh":
        text = "autoload -U +X bashcompinit && bashcompinit\n" + text
    sys.stdout.write(text)


def _case(path: str, words: list[str], flags: list[str]) -> str:
    return f'    "{path}") words="{" ".join(words)}"; flags="{" ".join(flags)}" ;;'


def _choices(parser: Parser) -> dict[str, Parser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings if flag[1] == "-"]


_BASH = """_sctl() {
  local current="${COMP_WORDS[COMP_CWORD]}" path="" word words flags skip=""
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    if [ -n "$skip" ]; then skip=""; continue; fi
    case "$word" in
      -a|-n|--address|--namespace|--timeout|--connect-timeout) [ -z "$path" ] && skip=1 ;;
      -*) ;;
      *) case "$path" in "") path="$word" ;; *" "*) ;; *) path="$path $word" ;; esac ;;
    esac
  done
  case "$path" in
@CASES@
    *) words=""; flags="" ;;
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
  if [ -z "$words" ] && [ "${current#-}" = "$current" ]; then
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _sctl sctl
"""
