"""The hosts themselves: apart from each other and from this machine, and nothing is left of them."""

import subprocess
from pathlib import Path

import pytest

from tests.hosts.hosts import Host, Hosts, some_hosts, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LISTEN = "import socket; s = socket.create_server(('', 7000)); print('up', flush=True)\nwhile True: s.accept()"
CONNECT = "import socket; socket.create_connection(('one', 7000), timeout=1)"


def reaches(hosts: Hosts, host: Host) -> bool:
    return hosts.run(host, ["python3", "-c", CONNECT]).returncode == 0


def test_hosts_reach_each_other_by_name_unless_one_is_cut_off_or_gone(tmp_path: Path):
    with some_hosts() as hosts:
        one, two = hosts.add_host("one"), hosts.add_host("two")
        server = hosts.start(one, ["python3", "-c", LISTEN], tmp_path / "log")
        while not (tmp_path / "log").read_text():
            assert server.poll() is None
        assert reaches(hosts, two)
        hosts.partition(one)
        assert not reaches(hosts, two)
        hosts.heal(one)
        assert reaches(hosts, two)
        hosts.kill(one)
        assert server.wait() != 0
        assert not reaches(hosts, two)


def test_a_host_has_its_own_name_processes_and_scratch_and_leaves_nothing():
    before = subprocess.run(["ip", "link"], capture_output=True, check=True).stdout, Path("/proc/mounts").read_text()
    with some_hosts() as hosts:
        host = hosts.add_host("one")
        said = hosts.run(
            host, ["bash", "-c", "hostname; touch /tmp/ray/mine /dev/shm/mine; ls /proc | grep -c '^[0-9]'"]
        )
        name, processes = said.stdout.split()
        assert name == "one"
        assert int(processes) < 10
        assert not Path("/dev/shm/mine").exists()
        assert not Path("/tmp/ray/mine").exists()
    after = subprocess.run(["ip", "link"], capture_output=True, check=True).stdout, Path("/proc/mounts").read_text()
    assert before == after
