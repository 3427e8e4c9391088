"""Host names and interfaces that lead to other nodes, and those that do not."""

import socket
from collections.abc import Mapping
from typing import Any

import pytest
from only_finding import only

from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.job import Job, job_of
from pneumo_dist.doctor.network import (
    GLOO,
    NCCL,
    Interface,
    check_host_name,
    check_interfaces,
    default_route,
    gloo_choice,
    host_addresses,
    is_loopback,
    nccl_choice,
    read_interfaces,
)

LO, ETH = Interface("lo", "127.0.0.1"), Interface("eth0", "10.0.0.5")
DOCKER, BRIDGE = Interface("docker0", "172.17.0.1"), Interface("virbr0", "192.168.122.1")
IB, DOWN, BARE = Interface("ib0", "10.1.0.5"), Interface("eth1", "10.0.1.5", is_up=False), Interface("eth2", "")
ALL = [LO, DOCKER, BRIDGE, ETH, DOWN, BARE]
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
"""


def job(nodes: int = 1, ranks: int = 2, gpus: int = 0, env: Mapping[str, str] | None = None) -> Job:
    return Job("n0", nodes, ranks, gpus, env or {})


def test_default_route_has_the_lowest_metric() -> None:
    assert default_route(ROUTES) == "eth0"
    assert default_route("") == default_route(ROUTES.splitlines()[0]) == ""


def test_addresses_keep_the_order_of_the_resolver() -> None:
    def resolve(host: str, *_: Any, **__: Any) -> list[tuple[object, ...]]:
        if host != "n0":
            raise socket.gaierror(-2, "Name or service not known")
        listed = [("127.0.1.1", 0), ("10.0.0.5", 0), ("127.0.1.1", 0), ("fe80::1%eth0", 0, 0, 2)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in listed]

    assert host_addresses("n0", resolve) == ["127.0.1.1", "10.0.0.5", "fe80::1%eth0"]
    assert host_addresses("elsewhere", resolve) == []


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.1.1", True), ("::1", True), ("10.0.0.5", False), ("fe80::1%eth0", False)],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_host_name_that_other_nodes_can_use() -> None:
    only(check_host_name(["10.0.0.5"], job(nodes=2), "eth0"), Status.OK, "n0 resolves to 10.0.0.5")


@pytest.mark.parametrize(
    ("nodes", "env", "status"),
    [(1, {}, Status.WARNING), (2, {}, Status.ERROR), (2, {GLOO: "eth0"}, Status.WARNING)],
)
def test_host_name_that_leads_to_loopback_or_nowhere(nodes: int, env: dict[str, str], status: Status) -> None:
    words = ("n0 resolves to 127.0.1.1, a loopback address", "map n0 in /etc/hosts", f"export {GLOO}=eth0")
    only(check_host_name(["127.0.1.1", "10.0.0.5"], job(nodes, env=env), "eth0"), status, *words)
    words = ("n0 does not resolve", "'<address> n0' to /etc/hosts or to DNS", f"export {GLOO}=eth0")
    only(check_host_name([], job(nodes, env=env), "eth0"), status, *words)


def test_gloo_uses_the_interface_of_the_host_name() -> None:
    assert gloo_choice(ALL, ["10.0.0.5"], {}) == ["eth0"]
    assert gloo_choice(ALL, ["10.9.9.9", "10.0.0.5"], {}) == ["eth0"]
    assert gloo_choice(ALL, ["127.0.1.1", "10.0.0.5"], {}) == ["lo"]
    assert gloo_choice(ALL, [], {}) == ["lo"]
    assert gloo_choice(ALL, ["10.0.0.5"], {GLOO: "eth1, ib0"}) == ["eth1", "ib0"]


@pytest.mark.parametrize(
    ("interfaces", "value", "chosen"),
    [
        (ALL, None, ["eth0"]),
        ([*ALL, IB], None, ["ib0"]),
        ([LO, DOCKER], None, ["docker0"]),
        ([LO, BRIDGE], None, ["lo"]),
        (ALL, "eth", ["eth0", "eth1", "eth2"]),
        (ALL, "=eth0", ["eth0"]),
        (ALL, "=eth", []),
        (ALL, "^docker,lo,virbr", ["eth0", "eth1", "eth2"]),
        (ALL, "ib", []),
    ],
)
def test_nccl_choice(interfaces: list[Interface], value: str | None, chosen: list[str]) -> None:
    assert nccl_choice(interfaces, {NCCL: value} if value else {}) == chosen


def test_good_interfaces() -> None:
    gloo, nccl = check_interfaces(ALL, ["10.0.0.5"], "eth0", job(nodes=2, gpus=2))
    only([gloo], Status.OK, "eth0 (10.0.0.5)")
    only([nccl], Status.OK, "eth0 (10.0.0.5)")
    assert (gloo.check, nccl.check) == ("gloo network", "NCCL network")
    only(check_interfaces(ALL, ["10.0.0.5"], "eth0", job(env={GLOO: "eth0"})), Status.OK, f"set by {GLOO}")
    only(check_interfaces(ALL, ["127.0.1.1"], "eth0", job()), Status.OK, "lo (127.0.0.1), enough for one node")


def test_interface_that_is_named_but_missing() -> None:
    words = (f"{GLOO}=eth9 names no interface of this node (interfaces: lo, docker0", f"export {GLOO}=eth0")
    only(check_interfaces(ALL, [], "eth0", job(env={GLOO: "eth9"})), Status.ERROR, *words)
    only(check_interfaces(ALL, [], "eth0", job(ranks=1, env={GLOO: "eth9"})), Status.WARNING, *words)
    _, nccl = check_interfaces(ALL, ["10.0.0.5"], "eth0", job(gpus=2, env={NCCL: "ib"}))
    only([nccl], Status.ERROR, f"{NCCL}=ib names no interface", f"export {NCCL}=eth0")


def test_no_interface_at_all() -> None:
    only(
        check_interfaces([], [], "", job()),
        Status.ERROR,
        "no interface to use (interfaces: none)",
        f"export {GLOO}=eth0",
    )


@pytest.mark.parametrize(
    ("name", "nodes", "status", "word"),
    [
        ("docker0", 1, Status.WARNING, "containers or virtual machines"),
        ("docker0", 2, Status.ERROR, "it does not lead to other nodes"),
        ("virbr0", 2, Status.ERROR, "it does not lead to other nodes"),
        ("lo", 2, Status.ERROR, "it does not lead to other nodes"),
        ("eth1", 1, Status.WARNING, "it is down"),
        ("eth1", 2, Status.ERROR, "it is down"),
    ],
)
def test_interface_that_leads_to_no_other_node(name: str, nodes: int, status: Status, word: str) -> None:
    findings = check_interfaces(ALL, ["10.0.0.5"], "eth0", job(nodes, env={GLOO: name}))
    only(findings, status, name, word, f"export {GLOO}=eth0")


def test_suggestion_without_a_default_route() -> None:
    findings = check_interfaces(ALL, ["127.0.1.1"], "", job(nodes=2))
    only(findings, Status.ERROR, "lo (127.0.0.1)", f"export {GLOO}=eth0")


def test_interfaces_of_this_host() -> None:
    loopback = {each.name: each for each in read_interfaces()}["lo"]
    assert loopback.address == "127.0.0.1" and loopback.is_up and loopback.is_local
    assert job_of("n0", {}, 0, None).nodes == 1
