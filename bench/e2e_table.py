"""End to end, tables: pushes and pulls of 64-bit keys; beside one LMDB row a key, and over a server beside Redis."""
import importlib.util

from bench import measure
from bench.setting import benchmark

BATCH = 100_000            # keys of a push and of a pull
PEER = "LMDB, a row a key"
CURVE, REDIS, REDIS_PY = "kvps, tcp and keys", "Redis", "redis-py"


def _measured(setting, n_keys, contenders):
    """Let jobs of children.py work on n_keys in turn; return {figure: {contender: values}}.

    contenders: {name: (job, further arguments), or None for a peer that is not there}.
    """
    found = {}

    def contender(who, job, *more):
        def turn():
            place = setting.scratch("table")
            figures, run = setting.child(job, place, str(n_keys), str(min(BATCH, n_keys // 4)), str(setting.seed), *more)
            for name, value in figures.items():
                found.setdefault(name, {}).setdefault(who, []).append(value)
            setting.drop(place)
            return run
        return turn

    measure.interleave(setting.runs, {who: job and contender(who, *job) for who, job in contenders.items()})
    return found


@benchmark("table", "pushes and pulls of 100,000 random 64-bit keys, at two sizes of the table; beside one LMDB row a key")
def table(setting):
    """Fill a table with random keys, batch by batch, then push to keys that are there and pull them.

    Each contender is a process of its own; shown are the median push and pull of each, every one durable on return.
    """
    for n_keys in (1_000_000, 10_000_000) if setting.full else (20_000,):
        found = _measured(setting, n_keys, {"kvps": ("table",), PEER: ("rows",) if importlib.util.find_spec("lmdb") else None})
        size = f"{n_keys // 1_000_000}m" if setting.full else "small"
        setting.figure(f"fill_{size}_ms_per_batch", found["fill"], better="less")
        setting.figure(f"push_{size}_ms", found["push"], better="less", goal="10 ms and the sync; 5 times faster")
        setting.figure(f"pull_{size}_ms", found["pull"], better="less", goal="20 ms at 1m; 5 times faster")
        setting.figure(f"pull_100_keys_{size}_ms", found["pull_few"], better="less")
        setting.figure(f"table_{size}_bytes_per_key", found["bytes"], better="less")


@benchmark("served", "the same over a server, a socket of the machine or tcp with keys; beside Redis, HINCRBY pipelined and HMGET")
def served(setting):
    """As table(), over `kvps serve` and over a redis-server; then several clients push at once.

    A push of kvps is on disk when it is answered; one of Redis is within a second of its answer.
    """
    there = setting.peer("redis-server")
    with_library = there and importlib.util.find_spec("redis")
    if there and not with_library:
        print("  (no redis-py among the installed packages: measured without)")
    found = _measured(setting, 1_000_000 if setting.full else 20_000, {
        "kvps": ("served", "ipc"), CURVE: ("served", "tcp"), REDIS: ("redis", "bytes") if there else None,
        REDIS_PY: ("redis", "redis-py") if with_library else None})
    for figure, name, goal in (("fill", "fill_ms_per_batch", None), ("push", "push_ms", "20 times faster than Redis"),
                               ("push_together", "push_of_4_clients_ms_per_batch", None),
                               ("pull", "pull_ms", "2 times faster than Redis"), ("pull_few", "pull_100_keys_ms", None)):
        ours, keyed = ({who: values for who, values in found[figure].items() if who != left} for left in (CURVE, "kvps"))
        setting.figure(name, ours, better="less", goal=goal)
        setting.figure(f"{name}_with_keys", keyed, better="less")
