"""Another loaded model as the source of a request's drafts, on the core's side.

The request's engine asks through a frame and decodes on; here the question becomes a
short greedy request of the draft model, whose answer goes back in a frame.  The prompt
of that is the context so far, of which the draft model's own cache has all but the last
tokens.  Nobody waits, and nothing that becomes of the draft model, its unload, its death
or its being busy, is more than an empty answer.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from erllama_py._engine.frames import Drafted, Frame, WantDraft
from erllama_py._engine.prompt import refusal
from erllama_py._engine.request import Request
from erllama_py.config import GenerateOptions, Speculate
from erllama_py.errors import ErllamaError
from erllama_py.types import Atom

if TYPE_CHECKING:
    from erllama_py._engine.host import ModelHost

__all__ = ("DraftModel", "draft_model")

SAMPLE = "def naïve(x): return {'a': [1, 2.50, 300]}  # Ünïcode → 漢字 🙂\n\tThe end.".encode()
"""Two vocabularies of one size that split this alike are one."""


class DraftModel:
    """Makes drafts for one request.

    :param find: returns the draft model's host, ``None`` where it is not loaded.
    """

    def __init__(self, find: Callable[[], ModelHost | None]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._asked: tuple[ModelHost, Request] | None = None
        self._stopped = False

    def ask(self, frame: WantDraft, tokens: array[int], send: Callable[[Frame], None]) -> None:
        """Have a draft made.  Returns at once; the answer is sent when it is there.

        :param tokens: the context that it is to follow.
        """

        def over(request: Request) -> None:
            with self._lock:
                self._asked = None
            made = b"" if request.error else request.generated.tobytes()
            send(Drafted(frame.id, frame.length, made))

        try:
            self._submit(frame.count, tokens, over)
        except ErllamaError:  # gone, verifying, or the context is too long for it
            send(Drafted(frame.id, frame.length, b""))

    def _submit(self, count: int, tokens: array[int], over: Callable[[Request], None]) -> None:
        host = self._find()
        if host is None:
            raise ErllamaError("not_found")
        if refused := refusal(tokens, host.info, "infer"):
            raise ErllamaError(*refused)
        options = GenerateOptions(response_tokens=count, bit=host.config.exactness == "bit")
        request = Request("infer", options, tokens=tokens, on_over=over)
        with self._lock:
            if self._stopped:
                return
            self._asked = host, request
        host.submit(request)

    def stop(self) -> None:
        """The request is over: a draft on its way is not needed any more."""
        with self._lock:
            self._stopped = True
            asked = self._asked
        if asked is not None:
            host, request = asked
            host.cancel(request)


def draft_model(
    host: ModelHost, options: Speculate | None, find: Callable[[str], ModelHost | None]
) -> DraftModel | None:
    """Return what drafts for a request to a model; ``None`` where no other model does.

    One that the model was loaded with may be loaded later, and be gone again; one that a
    request names must be there.

    :raises ErllamaError: ``{invalid, speculate, Value}``: it is not, or its tokens are
        others.
    """
    if options is None or not options.draft:
        return None
    name = options.draft
    found = find(name)
    why = ""
    if found is host:
        why = "a model cannot draft for itself: use lookup"
    elif found is None and options is not host.config.speculate:
        why = f"no model {name!r} is loaded: load it first"
    elif found is not None and found.pid and not _same_vocabulary(host, found):
        why = f"the model {name!r} has another vocabulary than {host.id!r}"
    if why:
        value = {"draft": name.encode(errors="surrogateescape"), "max": options.most}
        problem, _, mend = why.partition(": ")
        raise ErllamaError((Atom("invalid"), Atom("speculate"), value), problem, mend)
    return DraftModel(lambda: find(name))


def _same_vocabulary(one: ModelHost, other: ModelHost) -> bool:
    """Whether two loaded models mean the same by their tokens.

    :raises ModelGone: one of them is gone.
    """
    ours, theirs = one.info, other.info
    if (ours.n_vocab, ours.bos, ours.eos) != (theirs.n_vocab, theirs.bos, theirs.eos):
        return False
    pair = (one.config.model_path, other.config.model_path)
    if pair not in _compared:
        same = one.call("tokenize", SAMPLE) == other.call("tokenize", SAMPLE)
        _compared[pair] = bool(same)
    return _compared[pair]


_compared: dict[tuple[str, str], bool] = {}
"""What two files' vocabularies were found to be; a file is not another one meanwhile."""
