"""Servers of one store as on several machines: shards in folders of their own, which is all that their servers can tell."""
import shutil
import signal

from processes import Served, run, run_json


class Machines:
    """A store of three shards, of which 1 and 2 are served from folders of their own."""

    def __init__(self, folder):
        """Start all servers; the store is not there yet."""
        self.folder, self.there, self.store = folder, f"kvps://{folder}/root", folder / "store"
        self.homes = {}
        for number in (1, 2):
            self.begin(number)
        away = [f"--away={number}=kvps://{folder}/{number}" for number in (1, 2)]
        self.root = Served(self.store, "--bind", f"ipc://{folder}/root", *away)

    def begin(self, number):
        """Start the server of a shard."""
        self.homes[number] = Served(self.folder / f"home{number}", "--shard", number, "--root", self.there, "--bind",
                                    f"ipc://{self.folder}/{number}")

    def lose(self, number, then=lambda home: None):
        """Lose the disk of a shard, and start its server again; `then` is called with the folder before."""
        self.homes[number].end(signal.SIGKILL)
        shutil.rmtree(self.folder / f"home{number}")
        then(self.folder / f"home{number}")
        self.begin(number)

    def contents(self):
        """Return what the store has, from a checkpoint of it."""
        name = run_json("checkpoint", "create", self.there)["name"]
        run("checkpoint", "restore", "--from", self.store / "checkpoints", name, "--into", self.folder / "whole")
        found = run("dump", self.folder / "whole", "-o", 3, "--sorted").stdout
        run("check", self.folder / "whole", "--full")
        shutil.rmtree(self.folder / "whole")
        return found

    def end(self):
        """End all servers."""
        for server in (self.root, *self.homes.values()):
            server.end()
