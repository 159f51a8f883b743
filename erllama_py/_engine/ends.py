"""How a model process ended, as the error that whoever waited for it gets."""

from __future__ import annotations

from typing import Any

from erllama_py.errors import ErllamaError, ModelGone
from erllama_py.types import Atom, ModelPid

__all__ = ("died", "load_crashed", "model_evicted", "model_gone", "reason_of", "stream_ended")


def model_gone(model_id: str) -> ModelGone:
    """Return the error for an id that names no model."""
    return ModelGone(
        (Atom("noproc"), (Atom("erllama_model"), Atom("not_found"), model_id)),
        f"no model {model_id!r} is loaded",
        "load it first, or look at list_models()",
    )


def model_evicted(model_id: str, successor: str) -> ModelGone:
    """Return the error for the id of a model that made room for another: the same reason."""
    return ModelGone(
        model_gone(model_id).reason,
        f"the model {model_id!r} was evicted to make room for {successor!r}",
        "load it again, with keep to have it stay, or raise ERLLAMA_MODEL_MEMORY_BYTES",
    )


def load_crashed(model_id: str, path: str, reason: Any, words: str) -> ErllamaError:
    """Return the error of a load whose process ended.

    :param path: of the model file; empty for the stub.
    :param words: the last that the process said.
    """
    if reason == "oom":
        return ErllamaError("oom", f"the kernel ended the load of {model_id!r} for memory")
    return ErllamaError(
        "malformed_gguf" if path else "load_failed",
        f"the engine died ({_say(reason)}) loading {path or model_id!r}"
        + (f": {words}" if words else ""),
        "the file is probably damaged: compare its checksum with the publisher's",
    )


def died(model_id: str, pid: ModelPid | None, reason: Any, call: str) -> ModelGone:
    """Return the exit of a caller that waited."""
    return ModelGone(
        (reason, (Atom("gen_statem"), Atom("call"), [pid, Atom(call), Atom("infinity")])),
        f"the model {model_id!r} ended ({_say(reason)}) while the call waited",
        "" if reason == "shutdown" else "it is restarted by itself; call again",
    )


def stream_ended(model_id: str, reason: Any) -> ErllamaError:
    """Return the error that ends a stream."""
    word = "unloaded" if reason == "shutdown" else "model_down"
    return ErllamaError(
        (Atom(word), reason),
        f"the model {model_id!r} ended ({_say(reason)}) during the stream",
        "" if reason == "shutdown" else "it is restarted by itself; ask again",
    )


def reason_of(value: Any) -> Any:
    """Give a reason back its Erlang types after MessagePack: lists were tuples."""
    if isinstance(value, list):
        return tuple(reason_of(item) for item in value)
    return Atom(value) if isinstance(value, str) else value


def _say(reason: Any) -> str:
    if reason == "killed":
        return "killed with SIGKILL"
    if reason == "oom":
        return "killed by the kernel for memory"
    if isinstance(reason, tuple):
        return " ".join(str(part) for part in reason)
    return str(reason)
