"""The options of the magics: one table, read by the parser, the help and the completer.

Parsing is argparse's, with two differences that notebooks need.  A wrong line raises
:class:`BadUsage`, an ordinary exception: IPython's own ``UsageError`` is printed and
passes as success for Run All, nbclient and nbval.  And nothing on the line is expanded:
braces, dollars and backslashes are the text they are.
"""

from __future__ import annotations

import argparse
import difflib
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from erllama_py.errors import ErllamaError

__all__ = (
    "COMMANDS",
    "DEFAULT_MAX_TOKENS",
    "PROMPT",
    "BadUsage",
    "Command",
    "Option",
    "nearest",
    "parse",
    "split",
)

DEFAULT_MAX_TOKENS: Final = 512
"""A small model may never stop by itself; half a thousand tokens are a screenful."""

FORMATS: Final = ("markdown", "text", "json")
EXACTNESS: Final = ("token", "bit")
THINKING: Final = ("show", "hide", "off")


class BadUsage(ErllamaError):
    """A magic was called in a way that means nothing."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__("badarg", message, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class Option(NamedTuple):
    """One option of a command."""

    flags: tuple[str, ...]
    help: str
    value: str = ""
    """What the value is called in the help; empty for a switch."""
    convert: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    repeated: bool = False
    completes: str = ""
    """What the completer offers as value: ``loaded``, ``loadable``, ``variable``, ..."""

    @property
    def dest(self) -> str:
        """The attribute of the parsed line that holds it."""
        return self.flags[-1].lstrip("-").replace("-", "_")


class Command(NamedTuple):
    """One subcommand of ``%erllama``, or the cell magic."""

    name: str
    help: str
    argument: str = ""
    """What its argument is called in the help; in brackets where it may be absent."""
    completes: str = ""
    options: tuple[Option, ...] = ()

    @property
    def usage(self) -> str:
        """The line to type."""
        if self is PROMPT:
            return "%%erllama [options]"
        parts = ["%erllama", self.name, self.argument, *(_usage(item) for item in self.options)]
        return " ".join(part for part in parts if part)


def _number(
    read: Callable[[str], Any], what: str, low: float, high: float = math.inf
) -> Callable[[str], Any]:
    allowed = f"{what} from {low}" + (f" to {high}" if high < math.inf else "")

    def convert(text: str) -> Any:
        try:
            value = read(text)
        except ValueError:
            value = math.nan
        # Nothing compares with a NaN, and infinity is no setting.
        if not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be a {allowed}, not {text!r}")
        return value

    return convert


def _whole(low: int, high: float = math.inf) -> Callable[[str], Any]:
    return _number(int, "whole number", low, high)


def _real(low: int, high: float = math.inf) -> Callable[[str], Any]:
    return _number(float, "number", low, high)


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number such as 0.5, not {text!r}")
    return value


def _stop(text: str) -> str:
    r"""Read ``\n``, ``\t`` and ``\\``, which cannot be typed on a line otherwise."""
    out, rest = "", text
    while rest:
        pair = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}.get(rest[:2])
        out += rest[0] if pair is None else pair
        rest = rest[1 if pair is None else 2 :]
    return out


_EXACTNESS_OPTION: Final = Option(
    ("--exactness",),
    "token: the same tokens as cold; bit: the same bits, computed alone",
    "MODE",
    choices=EXACTNESS,
)

PROMPT: Final = Command(
    "",
    "Send the cell to a model and stream its reply.",
    options=(
        Option(("--model",), "which loaded model", "NAME", completes="loaded"),
        Option(
            ("--max",), f"most tokens of a reply ({DEFAULT_MAX_TOKENS})", "N", convert=_whole(1)
        ),
        Option(("--temperature",), "randomness; 0, the default, has none", "T", _real(0)),
        Option(("--top-k",), "sample among the K likeliest tokens", "K", _whole(1)),
        Option(("--top-p",), "sample among tokens of this total probability", "P", _real(0, 1)),
        Option(("--min-p",), "drop tokens below this share of the likeliest", "P", _real(0, 1)),
        Option(("--repetition-penalty",), "above 1: repeat less", "R", _real(0)),
        Option(("--seed",), "of the random numbers", "S", _whole(0, 2**64 - 1)),
        Option(
            ("--stop",), r"end the reply before this text (\n, \t); repeatable", "TEXT", _stop,
            repeated=True,
        ),
        Option(("--raw",), "send the text as it is"),
        Option(("--chat",), "send it as a chat message (the default where the model can)"),
        Option(("--system",), "system message of the chat", "TEXT"),
        Option(
            ("--session",), "go on in this conversation: what was said in it comes first", "NAME",
            completes="session",
        ),
        Option(
            ("-i", "--input"), "put this variable's text before the cell", "NAME", repeated=True,
            completes="variable",
        ),
        Option(("-o", "--output"), "bind the reply to this name", "NAME", completes="variable"),
        Option(("--fill",), "replace {{name}} by that variable's text"),
        Option(
            ("--json-schema",), "reply in JSON that satisfies this: a variable, or a file",
            "NAME_OR_FILE", completes="variable",
        ),
        Option(("--logprobs",), "keep each token's log probability, and N alternatives", "N",
            _whole(0, 20)),
        Option(("-f", "--format"), "how the reply is shown", "FORMAT", choices=FORMATS),
        Option(
            ("--thinking",), "of a model that thinks: shown set apart (the default), hidden, or "
            "off: left in the text", "MODE", choices=THINKING,
        ),
        Option(
            ("--thinking-budget",), "most tokens of thinking; the rest is reply", "N", _whole(1)
        ),
        _EXACTNESS_OPTION,
        Option(
            ("--speculate",),
            "draft ahead, from the text itself (lookup) or with another loaded model; the"
            " reply is the same",
            "HOW",
        ),
        Option(("--traceback",), "show errors with their whole traceback"),
    ),
)  # fmt: skip

COMMANDS: Final = {
    command.name: command
    for command in (
        Command(
            "load",
            "Load a model: a known name or a GGUF file.",
            "MODEL",
            "loadable",
            (
                Option(("--as",), "its name here", "NAME"),
                Option(("--n-ctx",), "tokens of context", "N", _whole(1)),
                Option(("--slots",), "requests at a time", "N", _whole(1, 255)),
                Option(("--threads",), "processor threads", "N", _whole(1, 1024)),
                Option(("--keep",), "not to be evicted to make room for another"),
                Option(("--chat-template",), "of its chats: a name such as chatml", "NAME"),
                Option(
                    ("--lora",),
                    "attach this LoRA adapter; repeatable",
                    "PATH[:SCALE]",
                    repeated=True,
                ),
                _EXACTNESS_OPTION,
            ),
        ),
        Command("unload", "End a model and free its memory.", "[NAME]", "loaded"),
        Command("use", "Make this the model that cells talk to.", "NAME", "loaded"),
        Command(
            "lora",
            "Attach a LoRA adapter, or list what is attached.",
            "[PATH]",
            "attached",
            (
                Option(("--scale",), "how much it counts (1)", "S", _scale),
                Option(("--unload",), "detach it; without a PATH, all"),
                Option(("--model",), "of which loaded model", "NAME", completes="loaded"),
            ),
        ),
        Command(
            "session",
            "List the conversations of cells, or show what was said in one.",
            "[NAME]",
            "session",
            (Option(("--end",), "forget it, here and in the models; without a NAME, all"),),
        ),
        Command("models", "List loaded models, and the files on this machine."),
        Command("status", "Say what each loaded model is doing."),
        Command(
            "cache",
            "Show what the cache has done and holds.",
            options=(
                Option(("--live",), "as a view that updates while cells run"),
                Option(("--stop",), "end the live view"),
            ),
        ),
        Command(
            "why",
            "Say what the latest cell's prompt hit in the cache, and why no more.",
            "[REPLY]",
            "variable",
        ),
        Command(
            "verify",
            "Run a text cold and warm, and compare the logits of its reply.",
            "TEXT",
            options=(
                Option(("--model",), "which loaded model", "NAME", completes="loaded"),
                Option(("--max",), "tokens of reply to compare (32)", "N", convert=_whole(1)),
                _EXACTNESS_OPTION,
            ),
        ),
        Command("version", "Show the versions of the parts."),
        Command("help", "Show this.", "[COMMAND]", "command"),
    )
}


def split(line: str) -> list[str]:
    """Split a line at spaces, with quotes as in a shell.

    :raises BadUsage: a quote is not closed.
    """
    try:
        return shlex.split(line)
    except ValueError:
        raise BadUsage(
            f"a quote is not closed: {line.strip()}",
            """put the text in the other kind of quotes: --stop "don't" """.strip(),
        ) from None


def parse(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words behind a command.

    Options that were not given are ``None``, ``False``, or an empty list.

    :raises BadUsage: the words mean nothing.
    """
    parser = _Parser(command)
    namespace, unknown = parser.parse_known_args(list(words))
    if unknown:
        raise _unknown_word(command, unknown[0])
    return namespace


def nearest(word: str, known: Sequence[str]) -> str:
    """Return ``did you mean …?`` for a known word that is close, else nothing."""
    found = difflib.get_close_matches(word, known, 1)
    return f"did you mean {found[0]}?" if found else ""


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the interpreter."""

    def __init__(self, command: Command) -> None:
        super().__init__(add_help=False, allow_abbrev=False, exit_on_error=False)
        self._command = command
        if command.argument:
            optional = command.argument.startswith("[")
            self.add_argument("argument", nargs="?" if optional else None)
        for option in command.options:
            kind: dict[str, Any] = {"action": "store_true"}
            if option.value:
                kind = {"action": "store", "type": option.convert}
            if option.repeated:
                kind |= {"action": "append", "default": []}
            if option.choices:
                kind["choices"] = option.choices
            self.add_argument(*option.flags, dest=option.dest, **kind)

    def error(self, message: str) -> NoReturn:
        """Raise in argparse's words."""
        if message.endswith("required: argument"):
            message = f"{self._command.name} needs a {self._command.argument}"
        hint = f"usage: {self._command.usage}"
        if self._command is PROMPT:
            hint = "%erllama help lists the options"
        if message.endswith("expected one argument"):
            hint = "a value that begins with a dash is given as --option=-value"
        raise BadUsage(message.removeprefix("argument "), hint)

    def parse_known_args(  # type: ignore[override]  # argparse's overloads take any namespace
        self, args: Sequence[str], namespace: None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Turn the errors that argparse raises, rather than reports, into ours."""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(str(error))


def _unknown_word(command: Command, word: str) -> BadUsage:
    what = "the cell magic" if command is PROMPT else f"%erllama {command.name}"
    if word.startswith("-"):
        flags = [flag for option in command.options for flag in option.flags]
        hint = nearest(word, flags) or (
            "%erllama help lists the options" if flags else f"usage: {command.usage}"
        )
        return BadUsage(f"{what} has no option {word}", hint)
    if command is PROMPT:
        return BadUsage(
            f"unexpected {word!r} on the first line",
            "the prompt goes into the lines below; --model NAME chooses a model",
        )
    return BadUsage(f"{what} has no use for {word!r}", f"usage: {command.usage}")


def _usage(option: Option) -> str:
    value = "|".join(option.choices) or option.value
    return f"[{option.flags[-1]} {value}]" if value else f"[{option.flags[-1]}]"
