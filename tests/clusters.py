"""Ray clusters for tests: nodes are processes of this machine, in a process of their own that ends with us."""
import atexit
import functools
import importlib.util
import subprocess
import sys

import pytest
from processes import environment

# Marks of tests that need Ray, which no extra but its own brings along: it is large.
MISSING, WHY = importlib.util.find_spec("ray") is None, 'needs ray: pip install "kvps[ray]"'
NEEDED = [pytest.mark.slow, pytest.mark.skipif(MISSING, reason=WHY)]

_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster, nodes = Cluster(), {}
for line in sys.stdin:
    what, name = line.split()
    if what == "add":
        nodes[name] = cluster.add_node(num_cpus=2, object_store_memory=200 << 20, resources={name: 1},
                                       **({} if nodes else {"include_dashboard": False}))
    else:
        cluster.remove_node(nodes.pop(name), allow_graceful=False)
    print("done", cluster.address, flush=True)
cluster.shutdown()
"""


class Cluster:
    """A cluster of nodes of two CPUs, each with a resource of its own name."""

    def __init__(self, *nodes):
        """Start them; the first is the head."""
        self._process = subprocess.Popen([sys.executable, "-c", _NODES], env=environment(RAY_USAGE_STATS_ENABLED="0"), text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for name in nodes:
            self.tell("add", name)

    def tell(self, what, name):
        """Add a node, or kill one."""
        print(what, name, file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("done "):
            assert line, "no cluster"
        self.address = line.split()[1]

    def tasks(self):
        """Return the ids of the processes that run tasks of kvps."""
        found, below = [], {self._process.pid}
        for line in subprocess.run(["ps", "-eo", "pid=,ppid=,args=", "--sort=pid"], capture_output=True, text=True,
                                   check=True).stdout.splitlines():
            pid, parent, name = line.split(None, 2)
            if int(parent) in below:
                below.add(int(pid))
                found += [int(pid)] if name.startswith("ray::count") else []
        return found

    def end(self):
        """End all nodes."""
        self._process.communicate(timeout=60)


@functools.cache
def shared():
    """Return a cluster of one node, until the end of the tests of this process."""
    cluster = Cluster("head")
    atexit.register(cluster.end)
    return cluster


def leave():
    """Leave the cluster that this process has joined, if it has."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()
