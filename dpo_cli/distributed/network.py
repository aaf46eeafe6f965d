"""Network interface that leads to another machine."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from pathlib import Path

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

_SIOCGIFADDR = 0x8915  # the ioctl that reads an interface's IPv4 address (linux/sockios.h)
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")  # that ioctl has no form for IPv6

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def interface_towards(host: str) -> str | None:
    """Return the network interface through which `host` is reached; None if that is unclear.

    Only Linux is asked: the calls differ on other systems.

    Gloo would use the address that belongs to this machine's own name. That is often a loopback
    address (127.0.1.1 on Debian), which other machines cannot reach.
    """
    if sys.platform != "linux":
        return None
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # for UDP this chooses a route and sends nothing
            own = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    except (OSError, ValueError):
        return None
    return next((name for name, address in _addresses() if address == own), None)


def _addresses() -> list[tuple[str, Address]]:
    addresses: list[tuple[str, Address]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # the interface has no IPv4 address
                continue
            # struct ifreq: 16 bytes name, then sockaddr_in, whose address starts at byte 4.
            addresses.append((name, ipaddress.IPv4Address(reply[20:24])))
    if _IPV6_ADDRESSES.exists():
        for line in _IPV6_ADDRESSES.read_text(encoding="ascii").splitlines():
            digits, *_, name = line.split()
            addresses.append((name, ipaddress.IPv6Address(bytes.fromhex(digits))))
    return addresses
