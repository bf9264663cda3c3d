"""Servers and connections: answers, errors, order, limits, keys, and what is neither."""
import contextlib
import os
import socket
import stat
import threading
import time
import zlib

import numpy as np
import pytest
import zmq

from kvps import errors
from kvps.errors import ArgumentError, CorruptionError, KvpsError, StoreError, Unreachable
from kvps.ps import connection as connections
from kvps.ps import curve as keyfiles
from kvps.ps import protocol
from kvps.ps.answering import Function
from kvps.ps.connection import Connection
from kvps.ps.protocol import REQUEST, Message, ProtocolError
from kvps.ps.server import Server, check_bind


def echo(message):
    """Answer with what came."""
    return {key: value for key, value in message.call.items() if key != "call"}, message.arrays


def fail(message):
    """Raise what the request names."""
    raise getattr(errors, message.call["error"], RuntimeError)("it failed", **message.call.get("facts", {}))


def long(message):
    """Raise more than a message can take."""
    raise StoreError("it failed", path="x" * protocol.MAX_BODY_BYTES)


class Running:
    """A server in a thread, with functions that note their calls."""

    def __init__(self, bind, **options):
        """Bind and begin to answer."""
        self.log, self.gate = [], threading.Event()
        self.gate.set()
        functions = {"echo": Function(echo), "fail": Function(fail), "long": Function(long), "slow": Function(self.slow),
                     "note": Function(self.note, changes=True)}
        self.server = Server(bind, functions, **options)
        self.address = self.server.address
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def slow(self, message):
        """Wait for the gate."""
        assert self.gate.wait(20)
        return {"thread": threading.get_ident()}, {}

    def note(self, message):
        """Note a change, taking a while."""
        self.log.append(message.sequence)
        time.sleep(0.001)
        return {"sequence": message.sequence, "client": message.client.hex()}, {}

    def __enter__(self):
        """Return it."""
        return self

    def __exit__(self, *_):
        """Let the server end."""
        self.gate.set()
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(params=["ipc", "tcp"])
def bind(request, tmp_path):
    """An address of either kind."""
    return f"ipc://{tmp_path}/socket" if request.param == "ipc" else "tcp://127.0.0.1:0"


def test_calls(bind):
    """Arguments and arrays come back as they went, one call after another and from several connections."""
    with Running(bind) as running, Connection(running.address) as one, Connection(running.address) as two:
        for n in range(20):
            arrays = {"x": np.arange(n, dtype=np.uint64), "y": np.ones((n, 3), np.float32)}
            answer = (one, two)[n % 2].call("echo", {"n": n, "text": "ä"}, arrays)
            assert answer.call == {"n": n, "text": "ä"}
            assert answer.arrays["x"].tolist() == list(range(n))
            assert answer.arrays["y"].shape == (n, 3)


def test_errors_come_across(bind):
    """What a function raises is raised in the client, with its facts; what is no error of ours says no more than its kind."""
    with Running(bind) as running, Connection(running.address) as connection:
        with pytest.raises(CorruptionError, match="it failed") as caught:
            connection.call("fail", {"error": "CorruptionError", "facts": {"path": "p", "found": 3, "odd": 1}})
        assert (caught.value.path, caught.value.found, hasattr(caught.value, "odd")) == ("p", 3, False)
        with pytest.raises(StoreError, match="RuntimeError"):
            connection.call("fail", {"error": "nothing of ours"})
        with pytest.raises(ProtocolError, match="no function 'nothing'; there are echo, fail, long, note, server, slow"):
            connection.call("nothing")
        assert connection.call("echo", {"n": 1}).call == {"n": 1}


def test_a_change_is_made_once(bind):
    """A change that is asked again under its number gets the answer that it had, and is not made again."""
    with Running(bind) as running, zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.connect(running.address)
        for number in (7, 7, 8, 7):
            client.send_multipart(protocol.pack(Message(protocol.REQUEST, number, {"call": "note"}, sequence=number)))
            assert client.poll(5000)
            answer = protocol.unpack(client.recv_multipart())
            assert (answer.number, answer.call["sequence"]) == (number, number)
        assert running.log == [7, 8]


def test_changes_are_made_in_order(bind):
    """Changes that are sent ahead are made one after another, in their order; each is answered with its sequence."""
    client = bytes(range(16))
    with Running(bind) as running, Connection(running.address, client=client) as connection:
        numbers = [connection.begin("note", sequence=n) for n in range(1, 60)]
        answers = [connection.wait(number) for number in numbers]

        assert running.log == list(range(1, 60))
        assert [(answer.call["sequence"], answer.sequence, answer.client) for answer in answers] == [
            (n, n, client) for n in range(1, 60)]
        with pytest.raises(ArgumentError, match="no request"):
            connection.wait(numbers[0])


def test_reads_run_side_by_side(bind):
    """Requests that change nothing do not wait for each other, nor for changes."""
    with Running(bind, threads=3) as running, Connection(running.address) as connection:
        running.gate.clear()
        waiting = [connection.begin("slow") for _ in range(2)]
        assert connection.call("echo", {"n": 1}).call == {"n": 1}
        assert connection.call("note", sequence=1).call["sequence"] == 1
        running.gate.set()
        assert len({connection.wait(number).call["thread"] for number in waiting}) == 2


def test_only_so_many_requests_are_taken_in(bind):
    """A server that has its hands full leaves further requests with their senders, and answers all in the end."""
    with Running(bind, threads=1, in_flight=2) as running, Connection(running.address) as connection:
        running.gate.clear()
        numbers = [connection.begin("slow") for _ in range(8)]
        time.sleep(0.3)
        assert running.server.answerer.counted["slow"].requests == 2
        running.gate.set()
        for number in numbers:
            connection.wait(number)
        assert running.server.answerer.counted["slow"].requests == 8


def test_server_that_is_not_there_yet(tmp_path):
    """A client that comes first waits for its server; one that waits in vain is told."""
    address = f"ipc://{tmp_path}/late"
    with Connection(address, retry_s=0.1, patience_s=0.4) as connection, pytest.raises(Unreachable, match="no answer") as caught:
        connection.call("echo")
    assert caught.value.exit_code == 4
    with Connection(address, retry_s=0.1, patience_s=20) as connection:
        number = connection.begin("echo", {"n": 1})
        time.sleep(0.3)
        with Running(address):
            assert connection.wait(number).call == {"n": 1}


def test_server_that_comes_again(tmp_path):
    """What a server took in and did not answer is asked of the next one, in order; late answers are not mistaken."""
    address = f"ipc://{tmp_path}/socket"
    with Connection(address, retry_s=0.2, patience_s=30) as connection:
        with Running(address) as first:
            assert connection.call("note", sequence=1).call["sequence"] == 1
            first.server._socket.setsockopt(zmq.RCVHWM, 1)
        numbers = [connection.begin("note", sequence=n) for n in range(2, 12)]
        time.sleep(0.3)
        with Running(address) as second:
            assert [connection.wait(number).call["sequence"] for number in numbers] == list(range(2, 12))
            # Asked again, some may have come twice: never out of order, and never skipping one.
            assert sorted(set(second.log)) == list(range(2, 12))


def test_what_takes_long_is_worked_on_once(bind):
    """A read that takes longer than a client waits before it asks again, and than its patience, is done once and answered."""
    with Running(bind, threads=4) as running, Connection(running.address, retry_s=0.05, patience_s=0.4) as connection:
        running.gate.clear()
        threading.Timer(1.0, running.gate.set).start()
        assert "thread" in connection.call("slow").call
        assert running.server.answerer.counted["slow"].requests <= 2       # of 20; the last one may come just when it is answered


@pytest.mark.parametrize("kind", [protocol.REPLY, protocol.ERROR])
def test_a_lost_request_is_asked_again_among_others(tmp_path, kind):
    """A request that was lost is sent again though others get their answers, over the same socket."""
    address = f"ipc://{tmp_path}/socket"
    with zmq.Context() as context, Connection(address, retry_s=0.2, patience_s=20) as connection:
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(address)
        seen, ended = [], threading.Event()

        def answer():
            """Answer all but the first message."""
            while not ended.is_set():
                if router.poll(20):
                    peer, *frames = router.recv_multipart()
                    seen.append((peer, protocol.unpack(frames).number))
                    if len(seen) > 1:
                        said = {"error": "StoreError", "message": "no"} if kind == protocol.ERROR else {}
                        router.send_multipart([peer, *protocol.pack(Message(kind, seen[-1][1], said))])

        def others():
            """Ask and ask."""
            while not ended.is_set():
                number = connection.begin("echo")
                time.sleep(0.05)
                with contextlib.suppress(StoreError):
                    connection.wait(number)

        threads = [threading.Thread(target=answer), threading.Thread(target=others)]
        lost = connection.begin("echo")
        threads[0].start()
        while not seen:
            time.sleep(0.01)
        threads[1].start()
        began = time.monotonic()
        try:
            connection.wait(lost)
        except StoreError as exc:
            assert kind == protocol.ERROR and not isinstance(exc, Unreachable)
        finally:
            ended.set()
            for thread in threads:
                thread.join(20)
        assert time.monotonic() - began < 5
        assert len({peer for peer, _ in seen}) == 1
        assert [number for _, number in seen].count(lost) == 2
        router.close()


def test_no_connection_goes_through_a_fork(bind):
    """A connection that another process made is refused at once, and closing it there leaves ours alone."""
    with Running(bind) as running, Connection(running.address) as connection:
        connection.call("echo")
        child = os.fork()
        if child == 0:
            try:
                connection.call("echo")
            except StoreError as exc:
                connection.close()
                os._exit(0 if "after a fork" in str(exc) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert connection.call("echo", {"n": 1}).call == {"n": 1}


@pytest.mark.parametrize("call", ["[[[" * 300 + "]]]" * 300, '"\\udc80"', "7", '"' + "x" * 100_000 + '"'])
def test_odd_names_are_told(bind, call):
    """A name that is no text, or no name, is an error to its sender; what it says can always be sent."""
    body = f'[{{"call":{call}}},[]]'.encode()
    body += b" " * (-(len(body) + 4) % 8)
    body = len(body).to_bytes(4, "little") + body
    head = protocol.HEADER.pack(protocol.MAGIC, protocol.VERSION, REQUEST, 0, 0, 5, bytes(16), 0, len(body), 0, 0)[:-4]
    head += zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little")
    with Running(bind) as running, zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.linger = 0
        raw.connect(running.address)
        raw.send_multipart([head, body])
        assert raw.poll(5000)
        answer = protocol.unpack(raw.recv_multipart())
        assert (answer.kind, answer.number, answer.call["error"]) == (protocol.ERROR, 5, "ProtocolError")


def test_errors_that_are_too_long_are_cut(bind):
    """An error whose facts no message can take comes as its class and message; names that are no UTF-8 come whole."""
    with Running(bind) as running, Connection(running.address) as connection:
        with pytest.raises(StoreError, match="it failed") as caught:
            connection.call("long", {})
        assert caught.value.path is None
        with pytest.raises(StoreError, match="it failed") as caught:
            connection.call("fail", {"error": "StoreError", "facts": {"path": "a\udc80b"}})
        assert caught.value.path == "a\udc80b"


def test_garbage_is_told_and_survived(bind, rng):
    """Frames that are no message are answered with an error, and the server goes on."""
    head, body = protocol.pack(Message(REQUEST, 5, {"call": "echo"}))
    with Running(bind) as running, Connection(running.address) as connection, zmq.Context() as context:
        raw = context.socket(zmq.DEALER)
        raw.linger = 0
        raw.connect(running.address)
        for frames in ([b""], [b"x"] * 5, [head], [head, body, b""], [head, body[:-1]], [rng.randbytes(64), rng.randbytes(99)],
                       protocol.pack(Message(protocol.REPLY, 1, {})), protocol.pack(Message(REQUEST, 1, {"call": 3}))):
            raw.send_multipart(frames)
            assert raw.poll(5000)
            answer = protocol.unpack(raw.recv_multipart())
            assert (answer.kind, answer.call["error"]) == (protocol.ERROR, "ProtocolError")
            assert answer.number == (5 if frames[0] == head else answer.number)
        raw.close()
        assert connection.call("echo", {"n": 1}).call == {"n": 1}
        assert running.server.answerer.counted["(refused)"].errors == 8


def test_plain_sockets_and_large_frames(rng):
    """Bytes that are no ZeroMQ, and frames beyond 16 MiB, end their connection and nothing else."""
    with Running("tcp://127.0.0.1:0") as running, Connection(running.address) as connection, zmq.Context() as context:
        host, port = running.address.removeprefix("tcp://").rsplit(":", 1)
        for data in (b"", b"GET / HTTP/1.0\r\n\r\n", rng.randbytes(5000)):
            with socket.create_connection((host, int(port))) as plain:
                plain.sendall(data)
        large = context.socket(zmq.DEALER)
        large.linger = 0
        large.connect(running.address)
        large.send_multipart([b"x", bytes(protocol.MAX_BODY_BYTES + 1)])
        assert not large.poll(300)
        large.close()
        assert connection.call("echo", {"n": 1}).call == {"n": 1}


def test_damaged_answer_is_asked_for_again(tmp_path):
    """A client takes no answer whose checksum is wrong, and none that it did not ask for."""
    address = f"ipc://{tmp_path}/socket"
    with zmq.Context() as context, Connection(address, retry_s=0.2) as connection:
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(address)
        number = connection.begin("echo")
        for damage in (True, False):
            peer, head, _ = router.recv_multipart()
            assert protocol.number_of([head])[0] == number
            answer = protocol.pack(Message(protocol.REPLY, number, {"n": 1}))
            router.send_multipart([peer, *protocol.pack(Message(protocol.REPLY, 999, {"n": 2}))])
            router.send_multipart([peer, answer[0], answer[1][:-1] + b"?"] if damage else [peer, *answer])
            if damage:
                with pytest.raises(Unreachable):
                    connection.patience_s = 0.1
                    connection.wait(number)
                connection.patience_s = 20
                number = connection.begin("echo")
        assert connection.wait(number).call == {"n": 1}
        router.close()


@pytest.fixture
def keys(tmp_path):
    """A server's folder of keys with two clients."""
    keyfiles.make(tmp_path / "keys", ["a", "b"], zmq.curve_keypair)
    return tmp_path / "keys"


def test_listed_clients_come_in(keys):
    """A client whose key is listed is served, over an encrypted connection."""
    with Running("tcp://127.0.0.1:0", keys=keys) as running:
        for name in ("a", "b"):
            with Connection(running.address, keys=keys / f"client-{name}") as connection:
                assert connection.call("echo", {"n": 1}, {"x": np.arange(9)}).arrays["x"].sum() == 36


def test_others_get_nothing(keys, tmp_path):
    """Without keys, with unlisted ones, with those of another server, or none that fit, there is no answer."""
    keyfiles.make(tmp_path / "other", ["a"], zmq.curve_keypair)
    (keys / "clients" / "b").unlink()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for name, source in ((keyfiles.CLIENT, tmp_path / "other" / "client-a"), (keyfiles.SERVER_PUBLIC, keys)):
        (stranger / name).write_bytes((source / name).read_bytes())
        (stranger / name).chmod(0o600)
    with Running("tcp://127.0.0.1:0", keys=keys) as running:
        for theirs in (None, keys / "client-b", tmp_path / "other" / "client-a", stranger):
            with (Connection(running.address, keys=theirs, retry_s=0.2, patience_s=0.7) as connection,
                  pytest.raises(Unreachable)):
                connection.call("echo")
        assert not running.server.answerer.counted
        with Connection(running.address, keys=keys / "client-a") as connection:
            assert connection.call("echo", {"n": 1}).call == {"n": 1}


def test_key_files(keys):
    """Secret keys are their owner's alone; one that others may read, or that is none, is refused by name."""
    for path in keys.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    (keys / "server.secret").chmod(0o640)
    with pytest.raises(StoreError, match="others may read.*640"):
        Server("tcp://127.0.0.1:0", {}, keys=keys)
    (keys / "server.secret").chmod(0o600)
    (keys / "clients" / "a").write_text("x")
    with pytest.raises(StoreError, match="no public key"):
        Server("tcp://127.0.0.1:0", {}, keys=keys)
    (keys / "client-a" / "client.secret").write_text("x y")
    with pytest.raises(StoreError, match="no pair of keys"):
        Connection("tcp://127.0.0.1:1", keys=keys / "client-a")
    with pytest.raises(ArgumentError, match="is no folder of a client's keys"):
        Connection("tcp://127.0.0.1:1", keys=keys / "nobody")
    before = (keys / "server.public").read_bytes()
    keyfiles.make(keys, ["c"], zmq.curve_keypair)
    assert (keys / "server.public").read_bytes() == before
    for name in ("../d", "", "a/b", ".x"):
        with pytest.raises(ArgumentError):
            keyfiles.make(keys, [name], zmq.curve_keypair)


@pytest.mark.parametrize(("bind", "encrypted", "allowed"), [
    ("ipc:///tmp/x", False, True), ("tcp://127.0.0.1:0", False, True), ("tcp://localhost:80", False, True),
    ("tcp://[::1]:80", False, True), ("tcp://0.0.0.0:80", True, True), ("tcp://0.0.0.0:80", False, False),
    ("tcp://*:80", False, False), ("tcp://10.0.0.1:80", False, False), ("tcp://host.example:80", False, False),
    ("tcp://127.0.0.1", True, False), ("tcp://127.0.0.1:99999", True, False), ("udp://127.0.0.1:80", True, False),
    ("ipc://relative", True, False), ("", True, False)])
def test_addresses_to_bind(bind, encrypted, allowed):
    """Without keys only addresses of this machine are served at; what is no address is refused."""
    if allowed:
        check_bind(bind, encrypted)
    else:
        with pytest.raises(ArgumentError):
            check_bind(bind, encrypted)


def test_address_in_use(tmp_path):
    """A second server at an address is refused in one line."""
    with Running("tcp://127.0.0.1:0") as running, pytest.raises(StoreError, match="cannot be bound"):
        Server(running.address, {})
    for address in ("http://x", "ipc://x", "tcp"):
        with pytest.raises(ArgumentError):
            Connection(address)


def test_socket_file_is_its_owners(tmp_path):
    """The socket of an ipc server is open to nobody else."""
    before = os.umask(0)
    try:
        with Running(f"ipc://{tmp_path}/socket"):
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) & 0o077 == 0
    finally:
        os.umask(before)


def test_connection_from_many_threads(bind):
    """Calls of several threads over one connection all have their own answers."""
    with Running(bind) as running, Connection(running.address) as connection:
        found = {}

        def ask(n):
            found[n] = [connection.call("echo", {"n": 100 * n + i}).call["n"] for i in range(20)]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == {n: [100 * n + i for i in range(20)] for n in range(6)}


def test_errors_of_the_wire_are_errors_of_ours():
    """A ProtocolError is a KvpsError, so that the command line prints one line."""
    assert issubclass(ProtocolError, KvpsError)
    assert connections.HIGH_WATER * protocol.MAX_BODY_BYTES <= 256 << 20
