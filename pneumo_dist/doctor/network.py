"""Checks of the network: whether other nodes can reach this one, and which interfaces gloo and NCCL would use."""

import errno
import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.doctor.findings import Finding, error, ok, warning
from pneumo_dist.doctor.job import Job
from shards.errors import InputError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915
# Prefixes of interfaces that do not leave their host.
LOCAL = ("lo", "docker", "br-", "virbr", "veth", "cni", "flannel", "podman", "lxc", "ifb", "dummy")


@dataclass(frozen=True)
class Interface:
    """A network interface. `address` is its IPv4 address, empty if it has none."""

    name: str
    address: str
    is_up: bool = True

    @property
    def is_local(self) -> bool:
        return self.name.startswith(LOCAL)


def read_interfaces(root: Path = Path("/")) -> list[Interface]:
    """Return this host's interfaces, in the kernel's order."""
    return [Interface(name, _address(name), _is_up(root, name)) for _, name in socket.if_nameindex()]


def _is_up(root: Path, name: str) -> bool:
    """Return whether an interface is up. One without a carrier, such as lo, reports `unknown`."""
    try:
        return (root / "sys/class/net" / name / "operstate").read_text().strip() in ("up", "unknown")
    except OSError:
        return True


def _address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        try:
            reply = fcntl.ioctl(query.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:  # it has no IPv4 address
            return ""
    return socket.inet_ntoa(reply[20:24])


def default_route(table: str) -> str:
    """Return the interface of the default route with the lowest metric in /proc/net/route; empty without one."""
    rows = [line.split() for line in table.splitlines()[1:]]
    routes = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"]
    return min(routes)[1] if routes else ""


def host_addresses(host: str, resolve: Callable[..., Sequence[tuple[object, ...]]] = socket.getaddrinfo) -> list[str]:
    """Return the addresses that a host name resolves to, in the resolver's order; none if it does not resolve."""
    try:
        answers = resolve(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = [answer[4] for answer in answers]
    return list(dict.fromkeys(str(address[0]) for address in addresses if isinstance(address, tuple)))


def is_loopback(address: str) -> bool:
    """Return whether an address, with or without a scope, is a loopback address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def check_host_name(addresses: Sequence[str], job: Job, route: str) -> list[Finding]:
    """Check that the host's name leads other nodes to this host, because the ranks meet at the name of one of them."""
    host, interface = job.host, route or "eth0"
    # Unless an interface is named, gloo listens at the address of its host's name.
    severity = error if job.nodes > 1 and not job.env.get(GLOO) else warning
    if not addresses:
        fix = f"add '<address> {host}' to /etc/hosts or to DNS, or export {GLOO}={interface}"
        return [severity("host name", f"{host} does not resolve; gloo would fall back to the loopback interface", fix)]
    if is_loopback(addresses[0]):
        fix = f"map {host} in /etc/hosts to the address that other nodes reach, or export {GLOO}={interface}"
        message = f"{host} resolves to {addresses[0]}, a loopback address, which other nodes cannot reach"
        return [severity("host name", message, fix)]
    return [ok("host name", f"{host} resolves to {addresses[0]}")]


def check_meeting(head: str, node: int, name: str, env: Mapping[str, str]) -> list[Finding]:
    """Check that the nodes can meet at node 0.

    Args:
        head: Address of node 0, as HOST:PORT.
        node: Number of this node.
        name: Host name of this node.
        env: Environment variables of the ranks.

    Raises:
        InputError: The address is malformed, does not resolve, or its port is not free on node 0.
    """
    host, port = _split_address(head)
    addresses = host_addresses(host)
    if not addresses:
        raise InputError(
            f"--head {head}: {host} does not resolve on this node; add it to /etc/hosts or to DNS, or give its address"
        )
    if node == 0:
        _check_free(head, port)
    if is_loopback(addresses[0]):
        return [ok("head", f"{head}: all nodes are on this host")]
    route = default_route(_routes())
    name_findings = check_host_name(host_addresses(name), Job(name, 2, 1, 0, env), route)
    return [ok("head", f"{head}: {addresses[0]}"), *name_findings]


def _routes() -> str:
    try:
        return Path("/proc/net/route").read_text()
    except OSError:
        return ""


def _split_address(head: str) -> tuple[str, int]:
    host, _, port = head.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(f"--head {head}: is not HOST:PORT; give the first node's name and a port from 1 to 65535")
    return host, int(port)


def _check_free(head: str, port: int) -> None:
    """Raise InputError if a port of this node is in use, or closed to this user."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as torchrun does, so that a closed connection is ignored
        try:
            probe.bind(("", port))
        except OSError as exception:
            in_use = exception.errno == errno.EADDRINUSE
            reason = "is in use on this node" if in_use else f"cannot be used ({exception.strerror})"
            raise InputError(f"--head {head}: port {port} {reason}; give another port") from None


def local_address(head: str) -> str:
    """Return this node's address on the route to `head` (HOST:PORT), where other nodes can reach it."""
    host, port = _split_address(head)
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing, as this is a datagram socket
        return str(probe.getsockname()[0])


def check_interfaces(interfaces: Sequence[Interface], addresses: Sequence[str], route: str, job: Job) -> list[Finding]:
    """Check that gloo and NCCL use interfaces that exist, are up and lead to the other nodes."""
    suggested = route or next((each.name for each in interfaces if not each.is_local and each.address), "eth0")
    findings = [_check_chosen("gloo", GLOO, gloo_choice(interfaces, addresses, job.env), interfaces, suggested, job)]
    if job.gpus:
        findings.append(_check_chosen("NCCL", NCCL, nccl_choice(interfaces, job.env), interfaces, suggested, job))
    return findings


def _check_chosen(
    library: str, variable: str, chosen: Sequence[str], interfaces: Sequence[Interface], suggested: str, job: Job
) -> Finding:
    check, value = f"{library} network", job.env.get(variable)
    by_name = {each.name: each for each in interfaces}
    fix = f"export {variable}={suggested}"
    if not chosen or any(name not in by_name for name in chosen):
        severity = error if job.is_distributed else warning
        problem = f"{variable}={value} names no interface of this node" if value else "there is no interface to use"
        return severity(check, f"{problem} (interfaces: {', '.join(by_name) or 'none'})", fix)
    names = ", ".join(f"{name} ({by_name[name].address or 'no IPv4 address'})" for name in chosen)
    message = f"{names}{f', set by {variable}' if value else ''}"
    severity = error if job.nodes > 1 else warning
    if not all(by_name[name].is_up for name in chosen):
        return severity(check, f"{message}: it is down", fix)
    if any(by_name[name].is_local for name in chosen):
        if job.nodes > 1:
            return error(check, f"{message}: it does not lead to other nodes", fix)
        if not all(name == "lo" for name in chosen):
            return warning(check, f"{message}: an interface of containers or virtual machines", fix)
        return ok(check, f"{message}, enough for one node")
    return ok(check, message)


def gloo_choice(interfaces: Sequence[Interface], addresses: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return the interfaces that torch's gloo uses.

    They are those in GLOO_SOCKET_IFNAME, or else the interface with the host name's address, or else lo.
    """
    if env.get(GLOO):
        return [name.strip() for name in env[GLOO].split(",") if name.strip()]
    for address in addresses:
        if is_loopback(address):
            return ["lo"]
        names = [each.name for each in interfaces if each.address == address]
        if names:
            return names
    return [each.name for each in interfaces if each.name == "lo"]


def nccl_choice(interfaces: Sequence[Interface], env: Mapping[str, str]) -> list[str]:
    """Return the interfaces that NCCL uses for its sockets.

    NCCL_SOCKET_IFNAME lists prefixes; `=` before the list means exact names, `^` means all other interfaces. Without it
    NCCL prefers InfiniBand, then any interface except docker, loopback and virtual machines, then these in this order
    (NCCL's user guide, NCCL_SOCKET_IFNAME).
    """
    ready = [each.name for each in interfaces if each.address and each.is_up]
    if env.get(NCCL):
        return _by_prefixes([each.name for each in interfaces], env[NCCL])
    infiniband = [name for name in ready if name.startswith("ib")]
    if infiniband:
        return infiniband
    last = ("docker", "lo", "virbr")
    others = [name for name in ready if not name.startswith(last)]
    for names in (others, *([name for name in ready if name.startswith(prefix)] for prefix in last)):
        if names:
            return names
    return []


def _by_prefixes(names: Sequence[str], value: str) -> list[str]:
    inverse = value.startswith("^")
    rest = value.removeprefix("^")
    exact = rest.startswith("=")
    listed = [each.strip() for each in rest.removeprefix("=").split(",") if each.strip()]
    matches = [name for name in names if any(name == each if exact else name.startswith(each) for each in listed)]
    return [name for name in names if name not in matches] if inverse else matches
