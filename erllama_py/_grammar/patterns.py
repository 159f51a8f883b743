"""What a schema says of texts, as automata; and how much of that a schema may ask."""

from __future__ import annotations

from typing import Any, Final

from erllama_py._grammar.automaton import Automaton, automaton_of
from erllama_py._grammar.reading import Path, SchemaError
from erllama_py._grammar.regex import PatternError

__all__ = ("FORMATS", "Patterns", "patterns_of")

MAX_ALL_WORK: Final = 600_000

_CLOCK: Final = r"([01]\d|2[0-3]):[0-5]\d"
_DATE: Final = (
    r"[12]\d{3}-("
    r"(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))"
)
_TIME: Final = rf"{_CLOCK}:[0-5]\d(\.\d{{1,6}})?(Z|[-+]{_CLOCK})"
_HEX: Final = "[0-9a-fA-F]"
FORMATS: Final = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "uuid": f"^{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$",
}
"""What texts of these formats match."""


class Patterns:
    """Compiles the patterns of one schema."""

    def __init__(self) -> None:
        self._left = MAX_ALL_WORK

    def automaton(self, schema: dict[str, Any], path: Path) -> Automaton | None:
        """Return the automaton of the texts of a flat schema.

        :returns: ``None`` where all that is said of them is their length.
        :raises SchemaError: no text satisfies it, or it cannot be promised.
        """
        patterns = patterns_of(schema)
        if not patterns:
            return None
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        most = None if most is None else int(most)
        found = self.compiled(patterns, (*path, "pattern"), least, most)
        if found is None:
            raise SchemaError(path, "no text is all that it asks", "look at pattern and lengths")
        return found

    def fits(self, text: str, schema: dict[str, Any], path: Path) -> bool:
        """Whether a listed text has the length and matches the pattern that stand beside it."""
        least, most = schema.get("minLength", 0), schema.get("maxLength", len(text))
        if not least <= len(text) <= most:
            return False
        patterns = _patterns(schema)
        if not patterns:
            return True
        found = self.compiled(patterns, (*path, "pattern"))
        return found is not None and found.accepts(text)

    def compiled(
        self,
        patterns: tuple[str, ...],
        path: Path,
        least: int = 0,
        most: int | None = None,
        never: tuple[str, ...] = (),
    ) -> Automaton | None:
        """Return what :func:`automaton_of` returns.

        :param path: where the patterns stand.
        :raises SchemaError: they cannot be promised, or are too many.
        """
        try:
            found = automaton_of(patterns, least, most, never)
        except PatternError as error:
            raise SchemaError(path, error.problem, error.mend) from None
        # Counted for what is remembered, too: what is refused must not depend on it.
        self._left -= found.work if found else 0
        if self._left < 0:
            raise SchemaError((), "its patterns are too many, or too large", "use fewer of them")
        return found


def patterns_of(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the patterns of a flat schema, and that of its format."""
    form = schema.get("format")
    return (*_patterns(schema), FORMATS[form]) if form in FORMATS else _patterns(schema)


def _patterns(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the patterns of a schema: one, or several that were joined."""
    found = schema.get("pattern", ())
    return (found,) if isinstance(found, str) else found
