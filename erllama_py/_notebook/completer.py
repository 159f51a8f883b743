"""Completion on the lines of the magics: commands, options, models, variables."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

import erllama_py
from erllama_py._notebook.args import COMMANDS, PROMPT, Command, Option
from erllama_py._notebook.lora import names

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from erllama_py._notebook.models import Models
    from erllama_py._notebook.talks import Talks

__all__ = ("make_matcher",)

_FILES_FRESH_S: Final = 10.0
"""Looking for model files reads directories: not at every key."""


def make_matcher(
    models: Models, talks: Talks, shell: InteractiveShell
) -> Callable[[CompletionContext], SimpleMatcherResult]:
    """Return the function that IPython asks at every completion."""
    completer = _Completer(models, talks, shell)

    @context_matcher()  # type: ignore[untyped-decorator]  # IPython's
    def erllama_matcher(context: CompletionContext) -> SimpleMatcherResult:
        try:
            return completer.complete(context)
        except Exception:
            # IPython would print it into what the user is typing.
            logging.getLogger(__name__).exception("completion failed")
            return SimpleMatcherResult(completions=[])

    matcher: Callable[[CompletionContext], SimpleMatcherResult] = erllama_matcher
    return matcher


class _Completer:
    def __init__(self, models: Models, talks: Talks, shell: InteractiveShell) -> None:
        self._models = models
        self._talks = talks
        self._shell = shell
        self._files: tuple[float, list[str]] = (-_FILES_FRESH_S, [])

    def complete(self, context: CompletionContext) -> SimpleMatcherResult:
        """Complete the word before the cursor."""
        before = context.text_until_cursor.lstrip()
        words = before.split()
        # Quotes are not understood: inside of them nothing is offered.
        if not words or words[0] not in ("%erllama", "%%erllama") or len(before) == len(words[0]):
            return SimpleMatcherResult(completions=[])
        fragment = "" if before[-1].isspace() else words.pop()
        if words[0] == "%%erllama":
            found = self._of_command(PROMPT, words[1:], fragment)
        elif len(words) == 1:
            found = list(COMMANDS)
        elif words[1] in COMMANDS:
            found = self._of_command(COMMANDS[words[1]], words[2:], fragment)
        else:
            found = []
        matching = [text for text in found if text.startswith(fragment)]
        return SimpleMatcherResult(
            completions=[SimpleCompletion(text, type="keyword") for text in matching],
            matched_fragment=fragment,
            # Where nothing of ours fits it may be a path: the others' turn.
            suppress=bool(matching),
        )

    def _of_command(self, command: Command, words: Sequence[str], fragment: str) -> list[str]:
        by_flag = {flag: option for option in command.options for flag in option.flags}
        asked = by_flag.get(words[-1]) if words else None
        if asked and asked.value:
            return list(asked.choices) or self._values(asked.completes)
        if fragment.startswith("-") or not command.completes:
            return _flags(command.options, words)
        has_argument = any(not word.startswith("-") for word in words)
        return [] if has_argument else self._values(command.completes)

    def _values(self, kind: str) -> list[str]:
        match kind:
            case "loaded":
                return list(self._models.loaded())
            case "loadable":
                return self._loadable()
            case "attached":
                current = self._models.current
                return [] if current is None else names(current)
            case "session":
                return self._talks.names()
            case "variable":
                return self._variables()
            case "command":
                return list(COMMANDS)
        return []

    def _loadable(self) -> list[str]:
        at, names = self._files
        if time.monotonic() - at > _FILES_FRESH_S:
            names = [found["name"] for found in erllama_py.api.find_models()]
            self._files = (time.monotonic(), names)
        return names

    def _variables(self) -> list[str]:
        return [
            name
            for name in self._shell.user_ns
            if not name.startswith("_") and name not in self._shell.user_ns_hidden
        ]


def _flags(options: Iterable[Option], words: Sequence[str]) -> list[str]:
    """Return options, without those that are on the line and may be there once."""
    return [
        flag
        for option in options
        if option.repeated or not set(option.flags) & set(words)
        for flag in option.flags
    ]
