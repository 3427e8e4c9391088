"""How other nodes would find this one, and the interfaces that gloo and NCCL would take."""

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
# Interfaces that end on their own host: other nodes are not behind them.
LOCAL = ("lo", "docker", "br-", "virbr", "veth", "cni", "flannel", "podman", "lxc", "ifb", "dummy")


@dataclass(frozen=True)
class Interface:
    """`address` is its IPv4 address, empty where it has none."""

    name: str
    address: str
    is_up: bool = True

    @property
    def is_local(self) -> bool:
        return self.name.startswith(LOCAL)


def read_interfaces(root: Path = Path("/")) -> list[Interface]:
    """Return this host's interfaces in the kernel's order."""
    return [Interface(name, _address(name), _is_up(root, name)) for _, name in socket.if_nameindex()]


def _is_up(root: Path, name: str) -> bool:
    """An interface without a carrier, as lo, says unknown."""
    try:
        return (root / "sys/class/net" / name / "operstate").read_text().strip() in ("up", "unknown")
    except OSError:
        return True


def _address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:  # it has no IPv4 address
            return ""
    return socket.inet_ntoa(answer[20:24])


def default_route(table: str) -> str:
    """Return the interface of the default route with the least metric, of /proc/net/route; empty without one."""
    rows = [line.split() for line in table.splitlines()[1:]]
    routes = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"]
    return min(routes)[1] if routes else ""


def host_addresses(host: str, resolve: Callable[..., Sequence[tuple[object, ...]]] = socket.getaddrinfo) -> list[str]:
    """Return the addresses that a host name resolves to, in the resolver's order; none where it does not."""
    try:
        found = resolve(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = [each[4] for each in found]
    return list(dict.fromkeys(str(address[0]) for address in addresses if isinstance(address, tuple)))


def is_loopback(address: str) -> bool:
    """Return whether an address, with or without a scope, is the host's own loopback."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def check_host_name(addresses: Sequence[str], job: Job, route: str) -> list[Finding]:
    """Does the host's name lead other nodes to this host? The ranks meet at the name of one of them."""
    host, interface = job.host, route or "eth0"
    # Without an interface by name, gloo listens where its own host's name leads.
    grade = error if job.nodes > 1 and not job.env.get(GLOO) else warning
    if not addresses:
        mend = f"add '<address> {host}' to /etc/hosts or to DNS, or export {GLOO}={interface}"
        return [grade("host name", f"{host} does not resolve; gloo would fall back to the loopback interface", mend)]
    if is_loopback(addresses[0]):
        mend = f"map {host} in /etc/hosts to the address that other nodes reach, or export {GLOO}={interface}"
        found = f"{host} resolves to {addresses[0]}, a loopback address: other nodes cannot reach this one by it"
        return [grade("host name", found, mend)]
    return [ok("host name", f"{host} resolves to {addresses[0]}")]


def check_meeting(head: str, node: int, own: str, env: Mapping[str, str]) -> list[Finding]:
    """Can the nodes meet at `head` (HOST:PORT), which is node 0's? `own` is this node's name. Raises InputError."""
    host, port = _parted(head)
    addresses = host_addresses(host)
    if not addresses:
        raise InputError(
            f"--head {head}: {host} has no address here; add it to /etc/hosts or to DNS, or give its address"
        )
    if node == 0:
        _check_free(head, port)
    if is_loopback(addresses[0]):
        return [ok("head", f"{head}: all nodes are on this host")]
    route = default_route(_routes())
    grades = check_host_name(host_addresses(own), Job(own, 2, 1, 0, env), route)
    return [ok("head", f"{head}: {addresses[0]}"), *grades]


def _routes() -> str:
    try:
        return Path("/proc/net/route").read_text()
    except OSError:
        return ""


def _parted(head: str) -> tuple[str, int]:
    host, _, port = head.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InputError(f"--head {head}: is no HOST:PORT; give the first node's name and a number from 1 to 65535")
    return host, int(port)


def _check_free(head: str, port: int) -> None:
    """Raise InputError where something listens to a port of this node already, or this user may not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torchrun's own: what has ended is no hindrance
        try:
            probe.bind(("", port))
        except OSError as fault:
            reason = "is in use on this node" if fault.errno == errno.EADDRINUSE else f"({fault.strerror})"
            raise InputError(f"--head {head}: port {port} {reason}; give another") from None


def local_address(head: str) -> str:
    """Return this node's address on the way to `head` (HOST:PORT), at which the others then reach it."""
    host, port = _parted(head)
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as asking:
        asking.connect(address)  # of a datagram socket: nothing is sent
        return str(asking.getsockname()[0])


def check_interfaces(interfaces: Sequence[Interface], addresses: Sequence[str], route: str, job: Job) -> list[Finding]:
    """Do gloo and NCCL take interfaces that exist, are up and lead to the other nodes?"""
    suggested = route or next((each.name for each in interfaces if not each.is_local and each.address), "eth0")
    findings = [_check_taken("gloo", GLOO, gloo_choice(interfaces, addresses, job.env), interfaces, suggested, job)]
    if job.gpus:
        findings.append(_check_taken("NCCL", NCCL, nccl_choice(interfaces, job.env), interfaces, suggested, job))
    return findings


def _check_taken(
    library: str, variable: str, taken: Sequence[str], interfaces: Sequence[Interface], suggested: str, job: Job
) -> Finding:
    check, value = f"{library} network", job.env.get(variable)
    by_name = {each.name: each for each in interfaces}
    mend = f"export {variable}={suggested}"
    if not taken or any(name not in by_name for name in taken):
        grade = error if job.is_distributed else warning
        known = ", ".join(by_name)
        what = f"{variable}={value} names no interface here" if value else "no interface to take"
        return grade(check, f"{what} (there are {known})", mend)
    where = ", ".join(f"{name} ({by_name[name].address or 'no IPv4 address'})" for name in taken)
    found = f"{where}{f', by {variable}' if value else ''}"
    grade = error if job.nodes > 1 else warning
    if not all(by_name[name].is_up for name in taken):
        return grade(check, f"{found}: it is down", mend)
    if any(by_name[name].is_local for name in taken):
        if job.nodes > 1:
            return error(check, f"{found}: other nodes are not behind it", mend)
        if not all(name == "lo" for name in taken):
            return warning(check, f"{found}: an interface of containers or virtual machines", mend)
        return ok(check, f"{found}, enough for one node")
    return ok(check, found)


def gloo_choice(interfaces: Sequence[Interface], addresses: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return the interfaces that torch's gloo takes: those named, else the one of the host name's address, else lo."""
    if env.get(GLOO):
        return [name.strip() for name in env[GLOO].split(",") if name.strip()]
    for address in addresses:
        if is_loopback(address):
            return ["lo"]
        found = [each.name for each in interfaces if each.address == address]
        if found:
            return found
    return [each.name for each in interfaces if each.name == "lo"]


def nccl_choice(interfaces: Sequence[Interface], env: Mapping[str, str]) -> list[str]:
    """Return the interfaces that NCCL takes for its sockets.

    Named by prefixes (`=` before them: exactly; `^`: all others), else InfiniBand's, else any but those of docker,
    virtual machines and loopback, else these, in this order (NCCL's user guide, NCCL_SOCKET_IFNAME).
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
    hits = [name for name in names if any(name == each if exact else name.startswith(each) for each in listed)]
    return [name for name in names if name not in hits] if inverse else hits
