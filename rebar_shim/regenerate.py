"""Write the forwarding modules of the OTP application from the node's own tables.

    python rebar_shim/regenerate.py

``erllama`` itself is written by hand, with its guards, types and words.  Its siblings are
there so that code which calls them compiles and runs; what their functions take is
checked by the node, which raises what the original raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from erl_bridge.service.cache_modules import SERVED
from erl_bridge.service.heads import FUNCTIONS
from erl_bridge.service.modules import MODULES

SOURCES: Final = Path(__file__).resolve().parent / "src"
HEAD: Final = """\
%% The functions of {module}, forwarded to the node that serves the models.
%%
%% Written by regenerate.py from the node's tables: change those, not this.
-module({module}).

-export([
{exports}
]).
"""
FORWARD: Final = """
-spec {name}({types}) -> term().
{name}({arguments}) ->
    erllama_call:{how}(?MODULE, {name}, [{arguments}]).
"""


def tables() -> dict[str, list[tuple[str, int]]]:
    """Return every module but ``erllama``, with its functions as (name, arity)."""
    found = {module: set(served) for module, served in (*SERVED.items(), *MODULES.items())}
    found["erllama_model"] |= FUNCTIONS
    return {module: sorted(functions) for module, functions in found.items()}


def sources() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file."""
    for module, functions in tables().items():
        exports = ",\n".join(f"    {name}/{arity}" for name, arity in functions)
        text = HEAD.format(module=module, exports=exports)
        for name, arity in functions:
            text += FORWARD.format(
                name=name,
                how="linked" if name == "start_link" else "call",
                types=", ".join(["term()"] * arity),
                arguments=", ".join(f"A{number}" for number in range(1, arity + 1)),
            )
        yield f"{module}.erl", text


def main() -> None:
    """Write them all."""
    for name, text in sources():
        (SOURCES / name).write_text(text)


if __name__ == "__main__":
    main()
