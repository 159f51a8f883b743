"""What a schema says of texts, as automata; and how much of that a schema may ask."""

from __future__ import annotations

from typing import Any, Final

from erllama_py._grammar.automaton import Automaton, automaton_of
from erllama_py._grammar.reading import Path, SchemaError
from erllama_py._grammar.regex import PatternError

__all__ = ("FORMATS", "Patterns")

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
        patterns = _patterns(schema)
        if schema.get("format") in FORMATS:
            patterns = (*patterns, FORMATS[schema["format"]])
        if not patterns:
            return None
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        return self._compiled(patterns, least, None if most is None else int(most), path)

    def fits(self, text: str, schema: dict[str, Any], path: Path) -> bool:
        """Whether a listed text has the length and matches the pattern that stand beside it."""
        least, most = schema.get("minLength", 0), schema.get("maxLength", len(text))
        if not least <= len(text) <= most:
            return False
        patterns = _patterns(schema)
        return not patterns or self._compiled(patterns, 0, None, path).accepts(text)

    def _compiled(
        self, patterns: tuple[str, ...], least: int, most: int | None, path: Path
    ) -> Automaton:
        try:
            found = automaton_of(patterns, least, most)
        except PatternError as error:
            raise SchemaError((*path, "pattern"), error.problem, error.mend) from None
        if found is None:
            raise SchemaError(path, "no text is all that it asks", "look at pattern and lengths")
        # Told of what is remembered, too: what is refused must not depend on it.
        self._left -= found.work
        if self._left < 0:
            raise SchemaError((), "its patterns are too many, or too large", "use fewer of them")
        return found


def _patterns(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the patterns of a schema: one, or several that were joined."""
    found = schema.get("pattern", ())
    return (found,) if isinstance(found, str) else found
