"""Pushes through a bad network to a server that is killed again and again count once each."""
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
import zmq
from processes import Served, contents, counted, environment, refused, run, zipf_text

import kvps

pytestmark = pytest.mark.crash


@pytest.fixture
def store(tmp_path):
    """A store of one sentence."""
    (tmp_path / "text").write_text("a b c\n")
    run("train", tmp_path / "store", tmp_path / "text", "--order", 2)
    return tmp_path / "store"


class BadNetwork(threading.Thread):
    """Passes messages between clients and a server: drops, doubles, delays, reorders and damages some, by chance."""

    def __init__(self, folder, server, seed, rates, name="proxy"):
        """Listen at a socket in `folder` for the server at `server`."""
        super().__init__(daemon=True)
        self.address = f"kvps://{folder}/{name}"
        self._front_at, self._back_at = f"ipc://{folder}/{name}", "ipc://" + server.removeprefix("kvps://")
        self._rng, self._rates, self._ending = random.Random(seed), rates, threading.Event()
        self.done = Counter()

    def run(self):
        """Pass messages on until end()."""
        with zmq.Context() as context, context.socket(zmq.ROUTER) as front:
            front.linger = 0
            front.bind(self._front_at)
            backs, late = {}, []           # a connection to the server for each of a client
            poller = zmq.Poller()
            poller.register(front, zmq.POLLIN)
            while not self._ending.is_set():
                ready = dict(poller.poll(5))
                if front in ready:
                    peer, *frames = front.recv_multipart()
                    if peer not in backs:
                        back = backs[peer] = context.socket(zmq.DEALER)
                        back.linger, back.reconnect_ivl = 0, 20
                        back.connect(self._back_at)
                        poller.register(back, zmq.POLLIN)
                    self._pass(backs[peer], frames, late)
                for peer, back in list(backs.items()):
                    if back in ready:
                        self._pass(front, [peer, *back.recv_multipart()], late)
                while len(backs) > 60:     # clients come anew after each silence; the oldest are gone
                    gone = backs.pop(next(iter(backs)))
                    poller.unregister(gone)
                    gone.close()
                    late = [item for item in late if item[1] is not gone]
                now = time.monotonic()
                for item in [item for item in late if item[0] <= now]:
                    late.remove(item)
                    self._send(*item[1:])
            for back in backs.values():
                back.close()

    def _pass(self, socket, frames, late):
        """Send a message on, or do by chance what a bad network does with it; `late` takes what is to be sent later."""
        what, = self._rng.choices(["passed", *self._rates], [1 - sum(self._rates.values()), *self._rates.values()])
        self.done[what] += 1
        if what == "dropped":
            return
        if what == "damaged":
            at = self._rng.randrange(len(frames[-1]))
            frames = [*frames[:-1], frames[-1][:at] + bytes([frames[-1][at] ^ 64]) + frames[-1][at + 1:]]
        if what == "cut":
            frames = [*frames[:-1], frames[-1][:self._rng.randrange(len(frames[-1]))]]
        if what == "delayed":
            late.append((time.monotonic() + self._rng.random() / 3, socket, frames))
            return
        self._send(socket, frames)
        if what == "doubled":
            late.append((time.monotonic() + self._rng.random() / 5, socket, frames))

    @staticmethod
    def _send(socket, frames):
        """Send a message now; one that nobody takes is lost."""
        with contextlib.suppress(zmq.ZMQError):
            socket.send_multipart(frames, zmq.NOBLOCK)

    def end(self):
        """Stop passing messages."""
        self._ending.set()
        self.join(20)


RATES = {"dropped": 0.08, "doubled": 0.1, "delayed": 0.2, "damaged": 0.04, "cut": 0.03}


def chaos(store, tmp_path, seed, batches, kills, shards):
    """Push from two clients with a name and one without, kill the server meanwhile, and compare with plain addition."""
    rng = random.Random(seed)
    expected, failures = Counter(), []
    served = Served(store)
    network = BadNetwork(tmp_path, served.address, seed, RATES)
    network.start()

    def pusher(name, work):
        try:
            with kvps.connect(network.address, retry_s=0.15, patience_s=120) as remote, remote.table("t") as table:
                for number, (keys, deltas) in enumerate(work, 1):
                    if name:
                        table.push(keys, deltas, client=name, sequence=number)
                    else:
                        assert table.push(keys, deltas) is True
        except BaseException as exc:
            failures.append(f"{name}: {type(exc).__name__} {exc}")

    with kvps.connect(network.address, retry_s=0.15, patience_s=120) as remote:
        remote.table("t", kind="count", key_bytes=8, shards=shards)
    threads = []
    for name in ("one", "two", None):
        work = []
        for _ in range(batches):
            keys = np.array([rng.randrange(50) << rng.choice([0, 40]) for _ in range(rng.randrange(1, 60))], np.uint64)
            deltas = np.array([rng.randrange(-3, 9) for _ in keys], np.int64)
            expected.update(dict.fromkeys(keys.tolist(), 0))
            for key, delta in zip(keys.tolist(), deltas.tolist(), strict=True):
                expected[key] += delta
            work.append((keys, deltas))
        threads.append(threading.Thread(target=pusher, args=(name, work)))
    for thread in threads:
        thread.start()
    killed, longest = 0, 0.0
    while killed < kills and any(thread.is_alive() for thread in threads):
        time.sleep(rng.uniform(0.1, 0.5))
        assert served.end(signal.SIGKILL)[0] == -9
        began = time.monotonic()
        served.start()
        longest = max(longest, time.monotonic() - began)
        killed += 1
    for thread in threads:
        thread.join(180)
        assert not thread.is_alive()
    network.end()
    assert served.end(signal.SIGTERM) == (0, "")
    print(f"seed {seed}: {3 * batches} pushes, {killed} kills, serving again after {longest:.2f} s at most, {dict(network.done)}")
    assert not failures
    with kvps.open(store) as opened, opened.table("t") as table:
        found = {key: count for keys, counts in table.scan() for key, count in zip(keys.tolist(), counts.tolist(), strict=True)}
    assert found == {key: count for key, count in expected.items() if count}
    run("check", store, "--full")
    return killed


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_pushes_through_a_bad_network(store, tmp_path, seed, shards):
    """Whatever is dropped, doubled, delayed, damaged and killed, each push counts once."""
    assert chaos(store, tmp_path, seed, 25, 3, shards) > 0


@pytest.mark.slow
def test_200_kills_through_a_bad_network(store, tmp_path, seed):
    """So it is with 200 kills."""
    killed = sum(chaos(make(store, tmp_path / f"{n}"), tmp_path / f"{n}", seed + n, 400, 50, 1 + n % 3) for n in range(5))
    assert killed >= 200


def make(store, folder):
    """Return a store of its own in a new folder."""
    folder.mkdir()
    run("train", folder / "store", store.parent / "text", "--order", 2)
    return folder / "store"


# kvps as a client of a store whose shards it finds behind proxies too, and which asks again soon.
CLIENT = """
import sys
from kvps.ps import remote_store
here, there = sys.argv[1:3]
remote_store.RemoteDirectory._place = lambda self, address: address.replace(here, there)
remote_store.RemoteDirectory.__init__.__kwdefaults__["retry_s"] = 0.2
sys.argv[1:3] = []
from kvps.cli import main
main()
"""
N_SHARDS = 3


def client(here, there, *arguments):
    """Start `kvps ARGUMENTS`, the sockets of the servers being at the place `there` and not `here`."""
    return subprocess.Popen([sys.executable, "-c", CLIENT, here, there, *map(str, arguments)], env=environment(),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def children(pid):
    """Return the processes that a starter has started."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as found:
        return [int(child) for child in found.read().split()]
    return []


def counting_chaos(tmp_path, seed, kills, lines):
    """Count a text from two clients through bad networks, kill whoever is at it, and compare with plain counting."""
    rng = random.Random(seed)
    text = tmp_path / "text"
    text.write_bytes(zipf_text(seed, lines))
    served = Served(tmp_path / "store", "--bind", f"ipc://{tmp_path}/sock")
    networks = [BadNetwork(tmp_path, f"kvps://{tmp_path}/sock{end}", seed + number, RATES, f"proxy{end}")
                for number, end in enumerate(["", *(f".{shard}" for shard in range(N_SHARDS))])]
    for network in networks:
        network.start()
    places = f"{tmp_path}/sock", f"{tmp_path}/proxy"
    commands = [("train", networks[0].address, text, "-o", 3, "--shards", N_SHARDS, "-S", "1M", "--threads", 2, "--wait", 30),
                ("work", networks[0].address, "--threads", 1)]
    clients = [client(*places, *command) for command in commands]
    killed, longest = Counter(), 0.0

    def start_again(which):
        clients[which].communicate()
        clients[which] = client(*places, *commands[which])

    try:
        while clients[0].poll() is None or killed.total() < 1:
            time.sleep(rng.uniform(0.05, 0.6))
            if clients[1].poll() is not None:
                start_again(1)
            if clients[0].poll() is not None:
                break
            if killed.total() >= kills:
                continue
            victim = rng.choice(["client", "worker", "server", "server", "starter"])
            killed[victim] += 1
            if victim in ("client", "worker"):
                clients[victim == "worker"].kill()
                start_again(victim == "worker")
            elif victim == "starter":
                began = time.monotonic()
                assert served.end(signal.SIGKILL)[0] == -9
                served.start()
                longest = max(longest, time.monotonic() - began)
            elif pids := children(served.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
        _, err = clients[0].communicate(timeout=120)
        assert clients[0].returncode == 0, f"{err}{killed}{served.process.poll()}{children(served.process.pid)}"
    finally:
        for process in clients:
            process.kill()
            process.communicate()
        for network in networks:
            network.end()
    passed = sum((network.done for network in networks), Counter())
    code, err = served.end(signal.SIGTERM)
    assert code == 0 and all("and is started again" in line for line in err.splitlines()), err
    print(f"seed {seed}: killed {dict(killed)}, serving again after {longest:.2f} s at most, messages {dict(passed)}")
    assert contents(tmp_path / "store") == counted(text.read_bytes(), 3)
    run("check", tmp_path / "store", "--full")
    return killed.total()


def test_counting_through_a_bad_network(tmp_path, seed):
    """Text that two clients count through bad networks is counted once, though clients, servers and the starter are killed."""
    assert counting_chaos(tmp_path, seed, kills=4, lines=8_000) > 0


@pytest.mark.slow
def test_counting_with_200_kills(tmp_path, seed):
    """So it is with 200 kills."""
    total, number = 0, 0
    while total < 200:
        (tmp_path / f"{number}").mkdir()
        total += counting_chaos(tmp_path / f"{number}", seed + number, kills=40, lines=60_000)
        number += 1
        print(f"{total} kills so far")


READS = [("scan",), ("pull", 1, 4, 9999), ("scan", "--start", 5, "--stop", 90), ("scan", "--limit", 7, "--json")]


def test_commands_over_a_server(store, tmp_path):
    """Commands that name a server print what they print of a folder; a push by file that is killed is finished by another."""
    rows = "".join(f"{n * n % 500},{n % 7 - 2}\n" for n in range(1, 3001))
    (tmp_path / "rows.csv").write_text(rows)
    with Served(store) as served:
        run("table", "create", served.address, "t", "--key-bytes", 8)
        run("table", "push", served.address, "t", tmp_path / "rows.csv", "--client", "c", "--batch", 100)
        again = run("table", "push", served.address, "t", tmp_path / "rows.csv", "--client", "c", "--batch", 100).stdout
        assert "30 of them before" in again
        there = [run("table", command, served.address, "t", *more).stdout for command, *more in READS]
        assert "t: count, keys of 8 bytes" in run("table", "list", served.address).stdout
        assert "another process" not in refused("table", "pull", served.address, "nothing", 1)
        assert "is using it" in refused("table", "drop", store, "t", code=5)
        run("table", "create", served.address, "u", "--key-bytes", 8)
        assert f"{served.address}: deleted table u" in run("table", "drop", served.address, "u").stdout
        assert "has no table u; there are: t" in refused("table", "drop", served.address, "u")
        assert "name of a table" in refused("table", "drop", served.address, "../t", code=2)
        assert "is using it" in refused("serve", store, code=5)
        assert "is using it" in refused("table", "push", store, "t", tmp_path / "rows.csv", code=5)
    assert [run("table", command, store, "t", *more).stdout for command, *more in READS] == there
    run("check", store, "--full")
    assert not (store / "socket").exists()


def test_keys_on_the_command_line(store, tmp_path):
    """With keys, who is listed comes in and who is not does not; without keys only this machine is served."""
    run("keygen", tmp_path / "keys", "a", "b")
    (tmp_path / "keys" / "clients" / "b").unlink()
    assert "kvps keygen" in refused("serve", store, "--bind", "tcp://0.0.0.0:0", code=2)
    with Served(store, "--bind", "tcp://127.0.0.1:0", "--keys", tmp_path / "keys") as served:
        run("table", "create", served.address, "t", "--key-bytes", 4, "--keys", tmp_path / "keys" / "client-a")
        assert run("table", "pull", served.address, "t", 1, "--keys", tmp_path / "keys" / "client-a").stdout == "1,0\n"
        for keys in (None, tmp_path / "keys" / "client-b"):
            with (kvps.connect(served.address, keys=keys, retry_s=0.2, patience_s=0.5) as remote,
                  pytest.raises(kvps.Unreachable)):
                remote.tables()


def test_scans_over_a_server(store, tmp_path):
    """A scan is of one snapshot though others push meanwhile; scans that nobody goes on with make room for others."""
    with Served(store) as served, kvps.connect(served.address) as remote, kvps.connect(served.address) as other:
        table = remote.table("t", kind="count", key_bytes=8)
        n = 400_000
        table.push(np.arange(n, dtype=np.uint64), 1)
        scan = table.scan()
        keys, counts = next(scan)
        other.table("t").push(np.arange(n, dtype=np.uint64), 1)
        seen = [(keys, counts), *scan]
        assert np.concatenate([keys for keys, _ in seen]).tolist() == list(range(n))
        assert {int(count) for _, counts in seen for count in np.unique(counts)} == {1}
        assert int(table.pull(np.array([5], np.uint64))[0]) == 2
        assert len(table) == n
        begun = []
        with pytest.raises(kvps.StoreError, match="are open already"):
            for _ in range(100):
                begun.append(table.scan())
                next(begun[-1])
        with pytest.raises(kvps.KvpsError, match="too large: send smaller batches"):
            table.push(np.arange(3 << 20, dtype=np.uint64), 1)
        assert int(table.pull(np.arange(3 << 20, dtype=np.uint64)).sum()) == 2 * n
        assert table.push(np.arange(3, dtype=np.uint64), 1) is True
        with pytest.raises(kvps.DataError):
            table.push(np.array([7], np.uint64), 1 << 62)
        assert table.push(np.array([7], np.uint64), 1) is True
        assert int(table.pull(np.array([7], np.uint64))[0]) == 3
