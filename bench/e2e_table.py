"""End to end, tables: pushes and pulls of 64-bit keys; beside one LMDB row a key."""
import importlib.util

from bench import measure
from bench.setting import benchmark

BATCH = 100_000            # keys of a push and of a pull
PEER = "LMDB, a row a key"


@benchmark("table", "pushes and pulls of 100,000 random 64-bit keys, at two sizes of the table; beside one LMDB row a key")
def table(setting):
    """Fill a table with random keys, batch by batch, then push to keys that are there and pull them.

    Each contender is a process of its own; shown are the median push and pull of each, every one durable on return.
    """
    with_peer = importlib.util.find_spec("lmdb")
    for n_keys in (1_000_000, 10_000_000) if setting.full else (20_000,):
        found = {name: {"kvps": [], PEER: []} for name in ("fill", "push", "pull", "pull_few", "bytes")}

        def contender(who, job, n_keys=n_keys, found=found):
            def turn():
                store = setting.scratch("table")
                figures, run = setting.child(job, store, str(n_keys), str(min(BATCH, n_keys // 4)), str(setting.seed))
                for name, values in figures.items():
                    found[name][who].append(values)
                setting.drop(store)
                return run
            return turn

        measure.interleave(setting.runs, {"kvps": contender("kvps", "table"),
                                          PEER: contender(PEER, "rows") if with_peer else None})
        size = f"{n_keys // 1_000_000}m" if setting.full else "small"
        found = {name: {who: values for who, values in by.items() if values} for name, by in found.items()}
        setting.figure(f"fill_{size}_ms_per_batch", found["fill"], better="less")
        setting.figure(f"push_{size}_ms", found["push"], better="less", goal="10 ms and the sync; 5 times faster")
        setting.figure(f"pull_{size}_ms", found["pull"], better="less", goal="20 ms at 1m; 5 times faster")
        setting.figure(f"pull_100_keys_{size}_ms", found["pull_few"], better="less")
        setting.figure(f"table_{size}_bytes_per_key", found["bytes"], better="less")
