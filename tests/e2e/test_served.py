"""A store behind servers answers every command as one in a folder does, over each kind of connection."""
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import clusters
import numpy as np
import pytest
import zmq
from machines import Machines
from processes import Served, contents, counted, refused, run, run_json, start, zipf_text

import kvps
import kvps.cli
from kvps.ps import connection as connections
from kvps.ps import remote_store

ON_RAY = pytest.param("ray", marks=clusters.NEEDED)
AWAY = pytest.param("away", marks=pytest.mark.slow)        # some shards on other machines
CURVE = pytest.param("curve", marks=pytest.mark.slow)
TRANSPORTS = ["ipc", CURVE, AWAY, ON_RAY]
SERVED = ["ipc", ON_RAY]


@contextlib.contextmanager
def place(transport, store, folder, *, kills=0):
    """Give (what commands are told in the place of STORE, options) for one kind of connection; servers die `kills` times."""
    if transport == "ray":
        there = f"ray://{clusters.shared().address}{store}"
        if store.exists():
            run("status", there)               # starts its actors
        try:
            yield there, []
        finally:
            clusters.leave()
            run("servers", there, "--stop")
        return
    if transport == "away":
        servers = Machines(folder)
        try:
            yield servers.there, []
        finally:
            servers.end()
        return
    options, keys = ["--bind", f"ipc://{folder}/sock"], []
    if transport == "curve":
        run("keygen", folder / "keys", "me")
        options = ["--bind", "tcp://127.0.0.1:0", "--keys", folder / "keys"]
        keys = ["--keys", folder / "keys" / "client-me"]
    servers = Served(store, *options)
    try:
        yield servers.address, keys
    finally:
        code, said = servers.end()
        assert (code, len(said.splitlines())) == (0, kills) and all("ended with code -9" in line for line in said.splitlines())


@pytest.fixture
def texts(tmp_path):
    """Three texts, the last of which is a part of the first two."""
    for name, seed, lines in (("a", 1, 400), ("b", 2, 300), ("held", 3, 50)):
        (tmp_path / name).write_bytes(zipf_text(seed, lines, n_words=300))
    return tmp_path


def reads(there, keys, folder):
    """Return what the commands that read print, of one store."""
    arpa = folder / "out.arpa"
    run("export", there, arpa, *keys)
    files = [arpa.read_bytes()]
    for how in (["--prune", "0,1"], ["--limit-vocab", folder / "held"], ["--prune-to", "600", "--smoothing", "wb"]):
        run("export", there, arpa, *how, *keys)
        files.append(arpa.read_bytes())
    run("export", there, folder / "out.counts", "--counts", *keys)
    files += [path.read_bytes() for path in sorted((folder / "out.counts").glob("*/*"))]
    shutil.rmtree(folder / "out.counts")
    stats = run_json("stats", there, *keys)
    found = {
        "files": files,
        "dump": [run("dump", there, "--order", k, "--sorted", *keys).stdout for k in (1, 2, 3)],
        "counts": run("counts", there, "w1 w2", "w1", "<s> w2 w1", "nothing", *keys).stdout,
        "stats": {name: stats[name] for name in ("version", "tokens", "sentences", "ngrams", "t", "discounts", "shards", "order")},
        "perplexity": [run("perplexity", there, folder / "held", "--smoothing", name, *keys).stdout
                       for name in ("mkn", "witten-bell", "stupid-backoff")],
        "scores": [run("score", there, folder / "held", *how, *keys).stdout for how in ([], ["--words"], ["--json"])],
        "sentences": run("perplexity", there, folder / "held", "--per-sentence", "-o", "2", *keys).stdout,
        "next": [run("next", there, "w1 w2", "<s>", "nothing", *how, *keys).stdout for how in ([], ["-k", "0", "--json"])],
        "drawn": [run("generate", there, "--prompt", "w1", "--count", 40, "--seed", 3, *how, *keys).stdout
                  for how in (["--json"], ["--top-k", 5, "--max-words", 7], ["--smoothing", "wb", "--temperature", 0.7])],
        "completed": run("complete", there, "w1 w", "w", "--min-count", 1, *keys).stdout,
        "explained": [run("explain", there, "w1 w2 nothing", "--json", *how, *keys).stdout for how in ([], ["--smoothing", "mle"])],
        "evaluated": run("evaluate", there, folder / "held", "--by-order", "--json", *keys).stdout,
        "history": [{name: row[name] for name in ("version", "command", "tokens", "label")}
                    for row in map(json.loads, run("history", there, "--json", *keys).stdout.splitlines())],
        "check": [json.loads(run("check", there, "--full", "--json", *keys).stdout.splitlines()[-1])[name]
                  for name in ("damage", "version", "shards", "level")],
        "status": run_json("status", there, *keys)["state"],
    }
    arpa.unlink()
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_command(texts, transport):
    """Train, update, forget, labels, abort, checkpoints: the store is what plain counting says, and all commands print it."""
    store, a, b = texts / "store", texts / "a", texts / "b"
    with place(transport, store, texts) as (there, keys):
        made = run_json("train", there, a, "-o", 3, "--shards", 3, *keys)
        assert made["version"] == 1
        assert run_json("update", there, b, "--label", "second", *keys)["version"] == 2
        assert run_json("update", there, b, *keys)["already"] == {str(b): 2}
        assert run_json("update", there, "-", *keys, input="w1 w2 w3\n")["version"] == 3
        assert run_json("forget", there, "-", *keys, input="w1 w2 w3\n")["version"] == 4
        refusal = refused("forget", there, "-", *keys, input="w1 nobody said this\n")
        assert "would have count -1" in refusal
        found = reads(there, keys, texts)
        assert found["status"] == "idle"
        assert run_json("checkpoint", "create", there, "one", *keys)["version"] == 4
        assert run_json("checkpoint", "list", there, *keys)["name"] == "one"
        assert "sound" in run("checkpoint", "verify", there, *keys).stdout
        assert run_json("forget", there, "--label", "second", *keys)["labels"] == ["second"]
        run("compact", there, *keys)
        assert run_json("resume", there, *keys) == {"resumed": False}
        assert run_json("abort", there, *keys) == {"aborted": False}
        gone = run("checkpoint", "delete", there, "one", *keys).stdout
        assert "deleted checkpoint one" in gone
        run("checkpoint", "create", there, "last", *keys)
    run("checkpoint", "restore", "--from", store / "checkpoints", "last", "--into", texts / "whole")
    assert contents(texts / "whole") == counted(a.read_bytes(), 3)
    for place_of_it in [texts / "whole"] + [store] * (transport != "away"):
        run("check", place_of_it, "--full")
    plain = texts / "plain"
    run("train", plain, a, "-o", 3, "--shards", 3)
    run("update", plain, b, "--label", "second")
    for command in ("update", "forget"):
        run(command, plain, "-", input="w1 w2 w3\n")
    assert reads(plain, [], texts) == found


@pytest.mark.parametrize("transport", SERVED)
def test_mixtures_of_addresses(texts, transport):
    """A mixture of an address and a folder is, to the last digit, that of the two folders: weights, answers and ARPA file."""
    run("train", texts / "far", texts / "a", "-o", 3)
    run("train", texts / "near", texts / "b", "-o", 2)
    found = {}
    with place(transport, texts / "far", texts) as (there, _):
        for name, far in (("folder", texts / "far"), ("address", there)):
            mix = texts / f"{name}.mix"
            made = run_json("mix", mix, far, texts / "near", "--dev", texts / "held", "--smoothing", "mkn,wb")
            run("export", mix, texts / f"{name}.arpa")
            classes = [f"far={far}", f"near={texts / 'near'}"]
            found[name] = [
                [row["weight"] for row in made["models"]], made["perplexity"], (texts / f"{name}.arpa").read_bytes(),
                run("classify", *classes, "--smoothing", "lidstone:0.1", "--input", texts / "held").stdout,
                *(run(command, mix, *more).stdout for command, *more in (
                    ("score", texts / "held"), ("score", texts / "held", "--words"), ("perplexity", texts / "held"),
                    ("next", "w1 w2", "<s>", "nothing"), ("generate", "--count", 3, "--seed", 1), ("complete", "w1 w"),
                    ("evaluate", texts / "held", "--json")))]
    assert found["folder"] == found["address"]


@pytest.mark.parametrize("transport", SERVED)
def test_python(texts, transport):
    """What connect() returns has the interface of a store."""
    store = texts / "store"
    with place(transport, store, texts) as (there, _), kvps.connect(there) as remote:
        run("train", there, texts / "a", "-o", 3)
        assert remote.order == 3 and remote.version == 1
        assert remote.update(["a b c", "a b d"])["version"] == 2
        assert remote.count("a b") == 2
        with remote.model() as model, kvps.load(store) as local:
            lines = (texts / "held").read_text().splitlines()
            assert model.score(lines).tolist() == local.score(lines).tolist()
            assert model.score_words("a b nobody") == local.score_words("a b nobody")
            assert model.log10("c", "a b") == local.log10("c", "a b")
            assert model.perplexity(lines) == local.perplexity(lines)
            assert model.explain(lines) == local.explain(lines)
            lists = [{"id": i // 3, "text": line} for i, line in enumerate(lines)]
            assert list(model.rescore(lists)) == list(local.rescore(lists))
            assert model.complete(["a ", "w"], 3) == local.complete(["a ", "w"], 3)
            assert model.generate("w1", 300, seed=1, max_words=400) == local.generate("w1", 300, seed=1, max_words=400)
            for odd in ({"temperature": math.nan}, {"top_p": math.inf}):           # JSON has no such numbers
                with pytest.raises(kvps.ArgumentError, match="is not possible"):
                    model.generate("w1", **odd)
            for call in (lambda asked: asked.complete(["a"], "", beam=10**8),
                         lambda asked: asked.complete(["a"], "", min_count=2**70),
                         lambda asked: list(asked.generate([], 1, top_k=2**70)),
                         lambda asked: list(asked.generate([], 1, max_words=10**10))):
                with pytest.raises(kvps.ArgumentError, match="is not possible"):   # whatever a client sends
                    call(model._following())
            assert model.measure(lines).as_dict() == local.measure(lines).as_dict()
            for ours, theirs in zip(model.next(["a b", "w1", ""], None), local.next(["a b", "w1", ""], None), strict=True):
                assert ours.words == theirs.words and ours.cumulative.tolist() == theirs.cumulative.tolist()
            with kvps.load(there, "witten-bell") as loaded, kvps.load(store, "witten-bell") as other:
                assert loaded.next("w1").words == other.next("w1").words
            assert not model.refresh()
            remote.forget(["a b c", "a b d"])
            assert model.refresh() and model.version == 3
        with kvps.open(store) as local:
            assert dict(remote.vocabulary) == dict(local.vocabulary)
            assert list(remote.dump(2, in_order=True)) == list(local.dump(2, in_order=True))
            assert remote.history() == local.history()
            assert remote.statistics == local.statistics
            assert remote.labels == local.labels
        for name, place_of_it in (("there", there), ("here", store)):
            kvps.export(place_of_it, texts / f"{name}.arpa", prune=[0, 1])
        assert (texts / "there.arpa").read_bytes() == (texts / "here.arpa").read_bytes()
        for refusal in (lambda: kvps.merge(texts / "sum", [there]), lambda: remote.limit(texts / "few", min_count=2)):
            with pytest.raises(kvps.ArgumentError, match="name folders"):
                refusal()
        with remote.table("t", kind="count", key_bytes=8) as table:
            table.push([1, 2, 1])
        assert remote.tables()["t"]["entries"] == 2
        assert remote.status()["state"] == "idle"
        assert remote.compact()["version"] == 3
        for refusal in (remote.purge, lambda: remote.compact(vacuum=True), lambda: remote.checkpoint(to="/elsewhere")):
            with pytest.raises(kvps.KvpsError, match="server"):
                refusal()


@pytest.mark.parametrize("transport", SERVED)
def test_one_writer(texts, transport):
    """A second client waits for the first, a folder's writer is refused, and readers of the folder read on."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 2)
    with place(transport, store, texts) as (there, _):
        assert f"is using it ({'ray' if transport == 'ray' else 'serve'})" in refused("update", store, texts / "b", code=5)
        assert "order" in run("stats", store).stdout
        stopped = start("update", there, "-", stdin=subprocess.PIPE)      # has its session, and waits for its text
        with kvps.connect(there) as remote:
            while remote.status()["state"] != "running":
                time.sleep(0.05)
            assert remote.status()["command"] == "update"
            assert "another client of its server is using it (update)" in refused("update", there, texts / "b", code=5)
            waiting = []
            thread = threading.Thread(target=lambda: waiting.append(run_json("update", there, texts / "b", "--wait", 30)))
            thread.start()
            _, err = stopped.communicate("a b c\n", timeout=30)
            assert (stopped.returncode, err) == (0, "")
            thread.join(60)
        assert waiting[0]["version"] == 3
    assert contents(store) == counted((texts / "a").read_bytes() + b"a b c\n" + (texts / "b").read_bytes(), 2)


def test_ray_is_not_installed(monkeypatch):
    """Without Ray an address on a cluster is refused with the way to get it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "kvps.ps.ray", raising=False)
    with pytest.raises(kvps.StoreError, match="pip install"):
        kvps.connect("ray:///data/store")


@pytest.mark.parametrize("address", ["ray://", "ray:///", "ray://host/store", "ray://host:port/store", "ray://127.0.0.1:1",
                                     "ray://127.0.0.1:1/", "ray://127.0.0.1:1/store#x"])
@pytest.mark.skipif(clusters.MISSING, reason=clusters.WHY)
def test_no_address_on_ray(address):
    """What is no address on Ray is refused, before any cluster is looked for."""
    assert "expected ray://" in refused("stats", address, code=2)
    assert "no Ray cluster is there" in refused("stats", "ray://127.0.0.1:1/store", code=4)


def test_places_that_are_taken(texts):
    """A server takes no file for its socket, for a shard's neither, and no socket where another server is at work."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 2)
    for name in ("data.csv", "sock.1"):
        (texts / name).write_text("mine")
        bind = f"ipc://{texts}/{name.removesuffix('.1')}"
        assert "no socket" in refused("serve", store, "--bind", bind, code=2)
        assert (texts / name).read_text() == "mine"
        (texts / name).unlink()
    run("train", texts / "other", texts / "a", "-o", 2)
    with place("ipc", store, texts) as (there, _):
        assert "another server" in refused("serve", texts / "other", "--bind", f"ipc://{texts}/sock")
        assert run_json("stats", there)["order"] == 2


@pytest.mark.slow
def test_a_server_that_stood_still_ends_no_session(texts):
    """A root that was stopped for a while hears its living client before it believes another one that it is silent."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 2, "--shards", 1)
    with place("ipc", store, texts) as (there, _), remote_store.RemoteDirectory(there, writable=True, command="one") as one:
        row = next(row for row in map(json.loads, run("servers", there, "--json").stdout.splitlines()) if row["server"] == "root")
        begun = []

        def ask():
            """Ask for the session, as clients do that wait."""
            with contextlib.suppress(kvps.StoreLocked), remote_store.RemoteDirectory(there, writable=True, wait=8, command="two"):
                begun.append(True)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        os.kill(row["pid"], signal.SIGSTOP)
        time.sleep(6)
        os.kill(row["pid"], signal.SIGCONT)
        asking.join(60)
        one.reseal()
        assert not begun


def test_nothing_there(texts):
    """Addresses that are none, servers that are not there, and a store that nobody has made yet."""
    assert "expected kvps://HOST:PORT" in refused("stats", "kvps://nonsense", code=2)
    with pytest.raises(kvps.Unreachable), kvps.connect(f"kvps://{texts}/none", retry_s=0.1, patience_s=0.3) as remote:
        remote.status()
    assert "no such store" in refused("serve", texts / "store", code=2)
    for command in (["upgrade"], ["reshard", "--shards", 2]):
        assert "name its folder" in refused(*command[:1], "kvps://127.0.0.1:1", *command[1:], code=2)
    for command in (["compact", "--vacuum"], ["forget", "--purge"]):
        assert "stop" in refused(*command[:1], "kvps://127.0.0.1:1", *command[1:], code=2)
    with place("ipc", texts / "store", texts) as (there, _):
        assert "there is no store yet" in refused("stats", there)
        (texts / "empty").write_text("")
        assert "empty" in refused("train", there, texts / "empty", "-o", 3)
        assert "order 99 is not possible" in refused("train", there, texts / "a", "-o", 99, code=2)
        assert run_json("train", there, texts / "a", "-o", 2)["version"] == 1
        assert "name its folder" in refused("recover", there, code=2)
        shard = f"kvps://{texts}/sock.0"
        assert "perhaps that of a shard" in refused("stats", shard)
    assert "expected kvps://HOST:PORT" in refused("stats", "kvps://127.0.0.1:70000", code=2)
    assert "kvps keygen" in refused("stats", "kvps://127.0.0.1:7000", "--keys", texts, code=2)
    (texts / "file").write_text("x")
    assert "is something else" in refused("serve", texts / "file", "--bind", f"ipc://{texts}/sock")


@pytest.mark.parametrize("transport", SERVED)
def test_resume_after_a_kill(texts, transport):
    """A client that is killed leaves a job that another one goes on with, or rolls back."""
    store = texts / "store"
    (texts / "long").write_bytes(zipf_text(5, 30_000))
    run("train", store, texts / "a", "-o", 3)
    with place(transport, store, texts) as (there, _):
        for command, version in (("abort", 1), ("resume", 2)):
            client = start("update", there, texts / "long", "-S", "1M", "--threads", 1)
            with kvps.connect(there) as remote:
                while not remote.status()["done_bytes"]:
                    time.sleep(0.01)
            client.kill()
            client.communicate()
            assert client.returncode == -signal.SIGKILL
            run(command, there, "--wait", 20)
            with kvps.connect(there) as remote:
                assert remote.version == version and remote.status()["state"] == "idle"
    assert contents(store) == counted((texts / "a").read_bytes() + (texts / "long").read_bytes(), 3)


@pytest.mark.parametrize("command", ["train", "forget"])
@pytest.mark.parametrize("transport", SERVED)
def test_workers(texts, transport, command):
    """Several workers count one text; one that is killed, and one whose text is another, do no harm."""
    store = texts / "store"
    # Words that are new all the time: each worker counts n-grams of words that the others have not met.
    lines = zipf_text(6, 20_000).splitlines()
    (texts / "long").write_bytes(b"".join(b"%s n%d\n" % (line, number) for number, line in enumerate(lines)))
    if command == "forget":
        run("train", store, texts / "a", "-o", 3)
        run("update", store, texts / "long")
    with place(transport, store, texts) as (there, _):
        workers = [start("work", there, "--threads", 1, "--wait", 30) for _ in range(3)]
        shape = ["-o", 3] if command == "train" else []
        began = start(command, there, texts / "long", *shape, "-S", "512K", "--threads", 1)
        with kvps.connect(there) as remote:
            while True:
                with contextlib.suppress(kvps.StoreError):
                    if remote.status()["done_bytes"]:
                        break
                time.sleep(0.01)
        workers[0].kill()
        for process in (began, *workers[1:]):
            out, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, ""), out
        workers[0].communicate()
        assert "no job came" in run("work", there, "--wait", 0).stdout
        rows = [json.loads(line) for line in run("servers", there, "--json").stdout.splitlines()]
        assert [row["server"] for row in rows] == ["root", "shard 0", "shard 1", "shard 2", "shard 3"]
        assert {row["state"] for row in rows} == {"up"} and sum(row.get("keys", 0) for row in rows) > 0
    expected = (texts / ("long" if command == "train" else "a")).read_bytes()
    assert contents(store) == counted(expected, 3)
    run("check", store, "--full")


def stopped_at_random(texts, rng, n_stops):
    """Stop workers by SIGTERM and Ctrl-C at random; each ends soon, and what is counted in the end is what it should be."""
    store = texts / "store"
    (texts / "long").write_bytes(zipf_text(9, 60_000))
    stops = 0
    with place("ipc", store, texts) as (there, _):
        run("train", there, texts / "a", "-o", 4)
        while stops < n_stops:
            began = start("update", there, texts / "long", "-S", "1M", "--threads", 1)
            while began.poll() is None and stops < n_stops:
                worker = start("work", there, "--threads", 2, "--wait", 5)
                time.sleep(rng.uniform(0.2, 1.5))
                number = rng.choice([signal.SIGTERM, signal.SIGINT])
                worker.send_signal(number)
                out, err = worker.communicate(timeout=30)
                starting = "init_import_site" in err
                assert starting or worker.returncode in (0, 4, 130, -number), (number, worker.returncode, out, err)
                stops += 1
            out, err = began.communicate(timeout=120)
            assert (began.returncode, err) == (0, ""), out
            run("forget", there, texts / "long")
    assert contents(store) == counted((texts / "a").read_bytes(), 4)


@pytest.mark.slow
def test_workers_that_are_stopped(texts, rng):
    """A worker that is to stop, whatever it is at, ends, and nothing is lost or counted twice."""
    stopped_at_random(texts, rng, 6)


@pytest.mark.slow
def test_workers_that_are_stopped_often(texts, rng):
    """As before, a hundred times."""
    stopped_at_random(texts, rng, 100)


def killed(there, name):
    """Kill a server, and wait until it answers again."""
    def pids():
        rows = [json.loads(line) for line in run("servers", there, "--json", check=None).stdout.splitlines()]
        return {row["server"]: row.get("pid") for row in rows if "server" in row}

    before = pids()[name]
    os.kill(before, signal.SIGKILL)
    while pids().get(name) in (before, None):
        time.sleep(0.05)


@pytest.mark.parametrize("transport", SERVED)
def test_a_session_outlives_the_server(texts, transport):
    """A root that is started again knows whose session it is: another client waits for its end, and the holder goes on."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 2, "--shards", 1)
    with place(transport, store, texts, kills=1) as (there, _), kvps.connect(there) as one:
        one.update_files([texts / "b"])
        with remote_store.RemoteDirectory(there, writable=True, command="first") as holder:
            killed(there, "root")
            connection = holder.connection
            with remote_store.RemoteDirectory(there) as other:
                for _ in range(3):
                    with pytest.raises(kvps.StoreLocked):
                        other.connection.call("begin", {"command": "second"})
            before = connection.epoch
            holder.fence()
            assert connection.epoch == before + 1
            connection.epoch = before
            assert connection.call("fence").call["epoch"] == before + 1        # asked again for want of an answer
            connection.epoch += 1
            holder.reseal()
        with pytest.raises(kvps.StoreLocked):
            holder = remote_store.RemoteDirectory(there)
            holder.take_part(before + 1)
            holder.root.clear_job()
        holder.close()
        one.forget_files([texts / "b"])
    assert contents(store) == counted((texts / "a").read_bytes(), 2)


def test_what_comes_late_and_again_changes_nothing(texts, rng, monkeypatch):
    """Every request that was ever sent may come again, at any time and in any order, also after restarts of the servers."""
    store, sent = texts / "store", []
    (texts / "c").write_bytes(zipf_text(8, 100, n_words=300))
    original = connections.Connection._transmit

    def transmit(self, frames):
        """Send a request, and before it another copy of some that were sent before."""
        for _ in range(2):
            if sent and rng.random() < 0.3:
                address, old = rng.choice(sent)
                if address == self.address:
                    original(self, old)
        sent.append((self.address, frames))
        original(self, frames)

    def again(there):
        """Send everything again, to servers that remember nothing of it."""
        for name in ("shard 0", "shard 1", "root"):
            killed(there, name)
        chosen = rng.sample(sent, len(sent))
        with zmq.Context() as context:
            sockets = {}
            for address, frames in chosen:
                if address not in sockets:
                    sockets[address] = context.socket(zmq.DEALER)
                    sockets[address].linger = 0
                    sockets[address].connect(address)
                sockets[address].send_multipart(frames)
                assert sockets[address].poll(20_000)
                sockets[address].recv_multipart()
            for socket in sockets.values():
                socket.close()

    monkeypatch.setattr(connections.Connection, "_transmit", transmit)
    run("train", store, texts / "a", "-o", 3, "--shards", 2)
    with place("ipc", store, texts, kills=9) as (there, _):
        with kvps.connect(there) as remote:
            remote.update_files([texts / "b"], label="one")
            remote.update_files([texts / "c"], label="two")
            remote.forget_labels(["one"])
        again(there)
        with kvps.connect(there) as remote:
            remote.update_files([texts / "b"], wait=20)
            with pytest.raises(kvps.DataError, match="would have count"):
                remote.forget_files([texts / "held"], wait=20)
            again(there)
            remote.forget_files([texts / "a"], wait=20)
        again(there)
        with remote_store.RemoteDirectory(there) as remote:
            assert (remote.root.state()["version"], remote.root.job()) == (6, None)
        run("check", there, "--full")
    assert contents(store) == counted((texts / "b").read_bytes() + (texts / "c").read_bytes(), 3)


@pytest.mark.parametrize("transport", SERVED)
def test_records_of_any_length(texts, transport):
    """A job of many inputs, whose record no message takes as JSON, begins, is read, and ends; too many are refused before it."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 3)
    row = {"digest": "0" * 64, "fingerprint": [1, 2], "input": {"name": "x" * 100, "options": {"field": "text"}}}
    with place(transport, store, texts) as (there, _), remote_store.RemoteDirectory(there, writable=True, command="test") as remote:
        inputs = [{**row, "digest": f"{number:064x}"} for number in range(8000)]
        job = {"id": "x", "version": 2, "inputs": inputs}
        remote.root.begin_job(job)
        assert remote.root.job() == job and remote.at_work() == (remote.connection.epoch, "x")
        remote.root.clear_job()
        random = np.random.default_rng(1)
        inputs = [{**row, "digest": random.bytes(32).hex()} for _ in range(160_000)]
        with pytest.raises(kvps.ArgumentError, match="160,000 inputs are too many"):
            remote.root.begin_job({**job, "inputs": inputs})
        assert remote.root.job() is None


def test_bytes_on_the_wire(texts, monkeypatch):
    """What reads counts runs where they are: only results travel, whatever the size of the store; text travels one way, once."""
    store = texts / "store"
    (texts / "long").write_bytes(zipf_text(7, 20_000))
    n_text = (texts / "long").stat().st_size
    with place("ipc", store, texts) as (there, _):
        made = []

        class Counted(remote_store.RemoteDirectory):
            """One that can be asked for its bytes when the command is over."""

            def __init__(self, *arguments, **options):
                """Connect, and be noted."""
                super().__init__(*arguments, **options)
                made.append(self)

        monkeypatch.setattr(remote_store, "RemoteDirectory", Counted)

        def used(*arguments):
            made.clear()
            kvps.cli.main([str(argument) for argument in arguments], standalone_mode=False)
            return tuple(map(sum, zip(*(directory.wire_bytes() for directory in made), strict=True)))

        sent, received = used("train", there, texts / "long", "-o", 4)
        with kvps.open(store) as local:
            n_grams, n_words = local.statistics.ngrams[4], local.statistics.vocabulary
            live = sum(shard.bytes()["live"] for shard in local._reader().shards)
        assert sent < 1.2 * live + 40_000 and received < 40_000 + 8 * n_words      # a routing table has some 10,000
        assert n_grams > 100_000
        for command in ("stats", "history", "status", "check"):
            assert sum(used(command, there)) < 12_000, command
        assert sum(used("counts", there, "w1 w2", "w1", "w3 w4 w5")) < 3000
        sent, received = used("perplexity", there, texts / "long")
        assert n_text < sent < 1.1 * n_text + 20_000 and received < 20_000
        for command, out in (("dump", ["--order", 4]), ("export", [texts / "out.arpa"])):
            sent, received = used(command, there, *out)
            n_out = n_grams * 30 if command == "dump" else (texts / "out.arpa").stat().st_size
            assert sent < 10_000 and received < 1.05 * n_out + 20_000
        assert sum(used("compact", there)) < 20_000
        sent, received = used("forget", there, texts / "long")
        assert sent < 1.2 * live + 40_000 and received < 40_000 + 8 * n_words      # a routing table has some 10,000


def test_metrics(texts):
    """Prometheus finds what each server is doing, also of one that was started again."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 2, "--shards", 2)
    with Served(store, "--bind", f"ipc://{texts}/sock", "--metrics-port", 0) as servers:
        port = next(line.split()[-1] for line in servers.out if "metrics" in line)
        run("update", servers.address, texts / "b")
        for _ in range(100):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                found = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
            if {'kvps_requests_total{request="apply",server="shard 1"}', 'kvps_resident_bytes{server="root"}'} <= found.keys():
                break
            time.sleep(0.1)
        assert found['kvps_requests_total{request="apply",server="shard 1"}'] == "1.0"
        assert found['kvps_up{server="root"}'] == found['kvps_starts_total{server="shard 0"}'] == "1.0"
        assert float(found['kvps_resident_bytes{server="root"}']) > 10_000_000


@pytest.mark.parametrize("transport", SERVED)
def test_foreign_requests(texts, transport):
    """Requests that no client of ours makes are refused, and the server goes on."""
    store = texts / "store"
    run("train", store, texts / "a", "-o", 3)
    before = contents(store)
    with place(transport, store, texts) as (there, _), remote_store.RemoteDirectory(there, writable=True, command="test") as remote:
        shard = remote.shards[0]
        version, chunk = remote.root.state()["version"], np.frombuffer(b"nonsense", np.uint8)
        arrays = {"chunks": chunk, "lengths": np.array([8], np.uint32), "keys": np.array([1], np.uint32)}
        call = {"job": "x", "split": 0, "version": version + 1, "row": {}, "staged": 0}
        remote.root.begin_job({"id": "x", "version": version + 1})
        for name, arguments, given, expected in (
                ("apply", call, arrays, "is not one"), ("apply", {**call, "split": "0"}, arrays, "split is str"),
                ("apply", call, {**arrays, "lengths": np.array([9], np.uint32)}, "no chunks"),
                ("run", {"function": "eval", "arguments": {}}, {}, "no function"),
                ("run", {"function": "tidy", "arguments": {"nonsense": 1}}, {}, "missing a required|unexpected"),
                ("run", {"function": "tidy", "arguments": []}, {}, "no function"),
                ("run", {"function": "tidy", "arguments": {"progress": 1}}, {}, "cannot be given"),
                ("stage", {**call, "job": "y", "part": 0}, arrays, "job is over"),
                ("apply", {**call, "version": version}, arrays, "job is over"),
                ("drop", {"job": "x", "version": version - 1}, {}, "job is over"),
                ("drop", {"job": "y", "version": version}, {}, "job is over"),
                ("mark", {"labels": ["a"], "version": version}, {}, "job is over"),
                ("sweep", {"version": version - 1, "job": "x"}, {}, "another version"),
                ("sweep", {"version": version, "job": None}, {}, "another job"),
                ("more", {"stream": 7, "number": 0}, {}, "again")):
            with pytest.raises(kvps.KvpsError, match=expected):
                shard.connection.call(name, arguments, given)
        for method in ("claim", "add_words", "__init__", None, "close"):
            with pytest.raises(kvps.KvpsError, match="to call|expected text"):
                remote.connection.call("root-change", {"method": method, "arguments": {}})
        for segment in (b"", b"\1\0\0\0\3\0\0\0a b", b"\1\0\0\0\3\0\0\0<s>", b"\1\0\0\0\0\0\0\0"):
            with pytest.raises(kvps.KvpsError):
                remote.root.share_words(segment)
        model = {"kind": "../../x", "order": 3, "exact": False, "labels": None, "stale": "wait"}
        for function, arguments in (("compile_model", model), ("dump", {"k": 2, "scratch": str(texts)}),
                                    ("statistics", {"threads": 100})):
            with pytest.raises(kvps.ArgumentError, match="of kind|cannot be given"):
                remote.connection.call("run", {"function": function, "arguments": arguments})
        for epoch in (remote.connection.epoch + 1, (1 << 32) - 1):
            shard.connection.epoch = epoch
            with pytest.raises(kvps.StoreLocked, match="another client"):
                shard.connection.call("fence")
        shard.connection.epoch = remote.connection.epoch
        shard.connection.call("drop", {"job": "x", "version": version})
        remote.root.clear_job()
        shard.connection.epoch -= 1
        with pytest.raises(kvps.StoreLocked, match="another client"):
            shard.connection.call("drop", {"job": "x", "version": version})
        shard.connection.epoch += 1
    assert contents(store) == before
