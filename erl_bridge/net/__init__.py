"""Sockets: the only place of the package that has any.

=============================================  =====================================
:class:`~erl_bridge.net.endpoint.Endpoint`     listener, arbitration, connections
:class:`~erl_bridge.net.connection.Connection` one peer
:mod:`~erl_bridge.net.epmd_client`             asking epmd, staying registered
:class:`~erl_bridge.net.epmd_server.EpmdServer` an epmd of our own
=============================================  =====================================
"""

from __future__ import annotations

from erl_bridge.net.epmd_server import EpmdServer
from erl_bridge.net.errors import EpmdError, NameTaken, NotConnected
from erl_bridge.net.limits import NetLimits

__all__ = ("EpmdError", "EpmdServer", "NameTaken", "NetLimits", "NotConnected")
