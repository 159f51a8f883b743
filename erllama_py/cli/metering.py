"""``--metrics``: where to serve them, and what is wrong where that does not work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from erl_bridge.service import ErllamaNode

__all__ = ("metrics_address", "served_metrics")


def metrics_address(_ctx: object, _option: object, given: str | None) -> tuple[str, int] | None:
    """Read ``[HOST:]PORT``; loopback where no host is given.

    :raises click.BadParameter: it is neither.
    """
    if given is None:
        return None
    host, _, port = given.rpartition(":")
    if not (port.isdecimal() and int(port) < 1 << 16):
        raise click.BadParameter(f"{given!r} has no port: give PORT or HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


@contextlib.contextmanager
def served_metrics(address: tuple[str, int] | None, node: ErllamaNode) -> Iterator[None]:
    """Serve metrics for the length of a ``with`` block, where an address is given.

    :raises click.ClickException: they cannot be served; the message says what to do.
    """
    if address is None:
        yield
        return
    try:
        from erllama_py import metrics

        server = metrics.serve(*address, node=node)
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        where = ":".join(map(str, address))
        raise click.ClickException(
            f"cannot serve metrics on {where}: {error.strerror or error}"
        ) from error
    with server:
        click.echo(f"metrics: {server.url}")
        yield
