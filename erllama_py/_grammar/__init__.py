"""JSON Schemas as grammars.  Pure.

The grammar (GBNF) holds a reply to JSON that satisfies the schema.  What a schema asks and
a grammar cannot promise is refused, with the place in the schema and a mend: a reply that
ends by itself is valid, always.  The grammar may be narrower than the schema (an object has
the properties that are named and no others), never wider.

``llama_cpp`` has a converter, too.  It is not used: strings may hold raw control characters
there, quotes and backslashes of keys break the grammar, ``minimum`` and its kin are left
out unsaid, references that end alike are taken for one, and it would load the engine into
the core.

=============  =============================================================
``reading``    what a caller gives, as JSON; limits of size and depth
``keywords``   what each keyword is: enforced, an annotation, or refused
``merging``    ``$ref``, ``allOf`` and neighbours made one flat schema
``branches``   a schema as a list of simple ones; which of them exclude each other
``numbers``    ranges of numbers as digits
``patterns``   what is said of texts, as automata of ``automaton``: their regular
               expressions are read by ``regex``, classes are sets of ``charsets``
``names``      which properties an object may have, by names and patterns
``spelling``   the texts of an automaton as JSON
``text``       quoting, tries, and the rules every grammar may use
``ambiguity``  how many ways the engine has to follow at once, at most
``compiler``   all of it put together
``gbnf``       what a caller's own grammar may be
=============  =============================================================
"""

from __future__ import annotations

from erllama_py._grammar.compiler import grammar_of
from erllama_py._grammar.gbnf import too_much
from erllama_py._grammar.reading import SchemaError

__all__ = ("SchemaError", "grammar_of", "too_much")
