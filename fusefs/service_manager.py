"""Tells the service manager that has started a mount how that stands: the protocol of sd_notify(3), as systemd has it.

A unit of `Type=notify` is started when the mount answers. A silent store, or a recovery, at the start and the uploads
at the end may take longer than a manager waits before it kills: it is asked for more time for as long as they go on.

The protocol is one datagram to the socket that NOTIFY_SOCKET names; the packages for it bring nothing beyond that.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import closing
from typing import Final

_log = logging.getLogger(__name__)

EXTENSION_SECONDS: Final = 60
"""How much more time is asked for: it is told a dozen times in that how far the mount is."""

SEND_SECONDS: Final = 1.0
"""A manager that takes nothing for so long is told nothing: it must not hold up the mount."""


class ServiceManager:
    """The manager whose socket is at `address`; nobody, where that is empty. Nothing here raises."""

    def __init__(self, address: str) -> None:
        self._address: Final = address
        self._has_failed = False

    @classmethod
    def of_environment(cls) -> ServiceManager:
        """Return the manager that has started this process, if one has."""
        return cls(os.environ.get("NOTIFY_SOCKET", ""))

    def starting(self, line: str) -> None:
        """Tell how far a mount is that does not answer yet, and ask for time."""
        self._send(f"STATUS={line}", f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 10**6}")

    def ready(self) -> None:
        """Tell that the mount answers."""
        self._send("READY=1", "STATUS=mounted")

    def ending(self, line: str) -> None:
        """Tell what is left to be done before the process ends, and ask for time."""
        self._send("STOPPING=1", f"STATUS={line}", f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 10**6}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(each.replace("\n", " ") for each in assignments)
        try:
            with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as manager:
                manager.settimeout(SEND_SECONDS)
                manager.connect(address)
                manager.sendall(message.encode(errors="backslashreplace"))
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _log.warning(
                    "the service manager at %s cannot be told how the mount stands: %s", self._address, error
                )
