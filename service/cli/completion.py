"""`ttc completion`: what has a shell complete the command line."""

from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)


@add_completion_class
class _Bash(BashComplete):
    """For bash, to which `--option=VALUE` is three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        words, begun = super().get_completion_args()
        if words[-1:] == ["="]:
            words.pop()
        return words, begun


class _OneWord(ShellComplete):
    """To the other shells it is one, all of which they expect."""

    def get_completions(self, args: list[str], incomplete: str) -> "list[CompletionItem[Any]]":
        found = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("--"):
            for each in found:
                each.value = f"{option}={each.value}"
        return found


@add_completion_class
class _Zsh(_OneWord, ZshComplete):
    """For zsh."""


@add_completion_class
class _Fish(_OneWord, FishComplete):
    """For fish."""


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


@click.command(epilog="Example: ttc completion bash")
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the lines that have SHELL complete verbs, options, choices and files of `ttc`.

    \b
    bash: ttc completion bash >> ~/.bashrc
    zsh:  ttc completion zsh >> ~/.zshrc       (behind its line with compinit)
    fish: ttc completion fish > ~/.config/fish/completions/ttc.fish
    """
    command = context.find_root().command
    click.echo(SHELLS[shell](command, {}, "ttc", "_TTC_COMPLETE").source(), nl=False)
