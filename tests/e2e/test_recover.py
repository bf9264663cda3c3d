"""kvps recover: shards made again from checkpoints and text, the seal from the root; killed anywhere and run again."""
import gzip
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from processes import contents, damage_shard, refused, run, run_json, start, stopped, tree, zipf_text

import kvps

pytestmark = pytest.mark.crash

SHARDS = 3
# What is done to a shard.
DAMAGES = ("deleted", "cut", "a bit", "empty")


def make(folder, *, checkpoint=False):
    """Make a store in a folder whose text came and went in every way; with a checkpoint in the middle of its life."""
    text = {name: zipf_text(number, 150 + 30 * number, n_words=400) for number, name in enumerate("abcdefg")}
    for name in "abcdef":
        (folder / f"{name}.txt").write_bytes(text[name])
    (folder / "g.txt.gz").write_bytes(gzip.compress(text["g"]))
    store = folder / "s"
    run("train", store, folder / "a.txt", "-o", 3, "--shards", SHARDS)
    run("update", store, folder / "b.txt", "--label", "x")
    run("update", store, folder / "c.txt")
    run("update", store, folder / "d.txt", "--label", "y")
    if checkpoint:
        run("checkpoint", "create", store)
    run("update", store, "-", input=text["e"].decode())
    run("forget", store, folder / "c.txt")
    run("update", store, folder / "f.txt", "--label", "x")
    run("forget", store, "--label", "x")
    run("update", store, folder / "f.txt", "--label", "z")
    run("update", store, folder / "f.txt", "--label", "z", "--again")
    run("update", store, folder / "g.txt.gz")
    (folder / "e.txt").rename(folder / "stdin")
    return store


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Return folders with such a store: without and with a checkpoint; not to be changed, nor moved."""
    folders = {}
    for checkpoint in (False, True):
        folders[checkpoint] = tmp_path_factory.mktemp("recover")
        make(folders[checkpoint], checkpoint=checkpoint)
    return folders


@pytest.fixture
def folder(made, tmp_path):
    """Return a copy of the folder without a checkpoint, whose text is found at its first place."""
    return Path(shutil.copytree(made[False], tmp_path / "f"))


@pytest.fixture(scope="session")
def right(made):
    """Return what the store holds."""
    found = {checkpoint: contents(folder / "s") for checkpoint, folder in made.items()}
    assert found[True] == found[False]
    return found[False]


def damage(store, kind, number=1):
    """Damage a shard."""
    damage_shard(store, kind, number)


def is_sound(store):
    """Return whether a full check finds no damage."""
    return not [finding for finding in kvps.check(store, "full") if finding.severity == "damage"]


# Shards


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_shard_is_made_again(made, tmp_path, right, kind, checkpoint):
    """A damaged shard is made again from text alone, or from a checkpoint and the text since; the damaged one is kept."""
    store = Path(shutil.copytree(made[checkpoint] / "s", tmp_path / "s"))
    damage(store, kind)
    before = {path.name: path.read_bytes() for path in (store / "shards").glob("0001.0/data.mdb")}

    result = run_json("recover", store, "--input", made[checkpoint] / "stdin", "--yes")
    assert (result["rebuilt"], result["version"], result["resumable"]) == ([1], 11, False)
    assert ("checkpoint" in result["steps"][0]["what"]) == checkpoint
    assert contents(store) == right
    assert is_sound(store)
    kept = {path.name: path.read_bytes() for path in (store / "damaged").glob("0001.0/data.mdb")}
    assert kept == before


def test_all_shards_at_once(folder, right):
    """A store that has lost every shard is made again from its text."""
    shutil.rmtree(folder / "s" / "shards")

    assert run_json("recover", folder / "s", "--input", folder / "stdin", "--yes")["rebuilt"] == [0, 1, 2]
    assert contents(folder / "s") == right


def test_a_store_that_was_made_again_goes_on(folder, right):
    """After a recovery text can be forgotten, added and damaged again, and labels removed."""
    store = folder / "s"
    for number in range(2):
        damage(store, "deleted")
        run("recover", store, "--input", folder / "stdin", "--yes")
        run("update", store, folder / "c.txt")
        run("forget", store, folder / "c.txt")
        assert contents(store) == right, number
    run("forget", store, "--label", "z")
    run("forget", store, folder / "g.txt.gz")
    run("compact", store, "--vacuum")
    expected = contents(store)
    damage(store, "cut")
    run("recover", store, "--input", folder / "stdin", "--yes")

    assert contents(store) == expected
    assert is_sound(store)


def test_text_that_is_not_where_it_was(made, tmp_path, right):
    """Text that is gone is asked for by name and digest, nothing is changed before all of it is there, names do not matter."""
    folder = Path(shutil.copytree(made[False], tmp_path / "f"))
    store = folder / "s"
    hidden = made[False] / "a.txt"
    hidden.rename(hidden.with_name("hidden"))
    try:
        damage(store, "deleted")
        before = tree(store)
        message = refused("recover", store, "--yes", code=4)
        dry = run("recover", store, "--dry-run", check=3).stdout

        assert tree(store) == before
        assert str(hidden) in message and "--input" in message and "- (BLAKE2b" in message
        assert "f.txt" not in message
        assert dry.count("needs: ") == 2
        assert str(hidden) in refused("recover", store, "--yes", "--input", folder / "stdin", code=4)
        (folder / "a.txt").rename(folder / "b")
        run("recover", store, "--yes", "--input", folder / "stdin", "--input", folder / "b")
    finally:
        hidden.with_name("hidden").rename(hidden)
    assert contents(store) == right


def test_text_that_has_changed(made, tmp_path):
    """A file that has another content now is not taken for the text that was counted."""
    store = tmp_path / "s"
    (tmp_path / "a.txt").write_text("the cat sat\n")
    run("train", store, tmp_path / "a.txt", "-o", 2, "--shards", 1)
    (tmp_path / "a.txt").write_text("the dog sat\n")
    damage(store, "cut", 0)

    assert "has changed" in refused("recover", store, "--yes", code=4)


def test_text_that_was_forgotten_is_not_needed(tmp_path):
    """What was added and taken away again is not asked for."""
    store = tmp_path / "s"
    for name in "ab":
        (tmp_path / name).write_bytes(zipf_text(name, 100))
    run("train", store, tmp_path / "a", "-o", 3, "--shards", 2)
    run("update", store, tmp_path / "b")
    run("forget", store, tmp_path / "b", "--purge")
    expected = contents(store)
    (tmp_path / "b").unlink()
    damage(store, "deleted")
    run("recover", store, "--yes")

    assert contents(store) == expected


def test_words_that_were_purged(tmp_path):
    """A checkpoint that holds text whose words were purged since is left out: the text that is counted is enough."""
    store = tmp_path / "s"
    for name in "ab":
        (tmp_path / name).write_bytes(zipf_text(name, 100) + f"only {name} has this\n".encode())
    run("train", store, tmp_path / "a", "-o", 3, "--shards", 2)
    run("update", store, tmp_path / "b")
    run("checkpoint", "create", store, "--to", tmp_path / "kept")
    run("forget", store, tmp_path / "b", "--purge")
    expected = contents(store)
    damage(store, "deleted")
    run("recover", store, "--yes", "--from", tmp_path / "kept")

    assert contents(store) == expected
    assert is_sound(store)


def test_a_damaged_checkpoint(made, tmp_path, right):
    """Where an object of the checkpoint is damaged too, the text does."""
    store = Path(shutil.copytree(made[True] / "s", tmp_path / "s"))
    for path in (store / "checkpoints" / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    damage(store, "deleted")
    run("recover", store, "--yes", "--input", made[True] / "stdin")

    assert contents(store) == right


def test_tokenizers_and_options(tmp_path):
    """Text is counted again as it was counted: tokenizer, lower case, field of JSON lines, reserved words, lists of words."""
    store = tmp_path / "s"
    (tmp_path / "a.jsonl").write_text('{"body": "The cat, <s> the Dog."}\n{"body": "A cat\\nand more"}\n')
    (tmp_path / "b.txt").write_bytes(b"caf\xc3 </s> again\n")
    (tmp_path / "words").write_bytes(b"two words\n")
    run("train", store, tmp_path / "a.jsonl", "-o", 3, "--shards", 2, "--tokenizer", "wordpunct", "--lowercase", "--field", "body",
        "--newline", "space", "--reserved", "skip")
    run("update", store, tmp_path / "b.txt", "--reserved", "skip", "--encoding-errors", "replace")
    with kvps.open(store) as opened:
        opened.update([["two", "words"]])
    expected = contents(store)
    damage(store, "deleted")
    run("recover", store, "--yes", "--input", tmp_path / "words")

    assert contents(store) == expected
    assert is_sound(store)


# Jobs


def test_an_interrupted_job_is_kept(folder, made, right):
    """A job that was interrupted when a shard was lost is resumed after the recovery, and each n-gram is counted once."""
    store = folder / "s"
    more = made[False] / "c.txt"
    run("update", store, more, stop_at="SIGKILL before kvps.store.shard:Shard.apply 3", check=-signal.SIGKILL)
    damage(store, "deleted", 0)
    result = run_json("recover", store, "--input", folder / "stdin", "--yes")

    assert result["resumable"]
    assert result["steps"][-1]["kind"] == "resume"
    assert contents(store) == right
    run("resume", store)
    run("forget", store, more)
    assert contents(store) == right
    assert is_sound(store)


def test_a_job_whose_text_is_gone(folder, right):
    """A job that cannot be resumed is rolled back, as the plan says; without --yes nothing is done."""
    store = folder / "s"
    (folder / "h.txt").write_bytes(zipf_text(77, 300))
    run("update", store, folder / "h.txt", stop_at="SIGKILL before kvps.store.shard:Shard.apply 3", check=-signal.SIGKILL)
    assert "nothing to recover" in run("recover", store).stdout
    (folder / "h.txt").unlink()

    assert "roll back the update" in run("recover", store, "--dry-run").stdout
    assert "--yes" in run("recover", store, check=2).stderr
    run("recover", store, "--yes")
    assert run_json("status", store)["state"] == "idle"
    assert contents(store) == right


def test_somebody_writes(folder):
    """A store that is being written is not recovered."""
    process = stopped("update", folder / "s", folder / "c.txt", stop_at="SIGSTOP before kvps.store.shard:Shard.apply 1")
    try:
        assert str(process.pid) in refused("recover", folder / "s", "--yes", code=5)
    finally:
        process.kill()
        process.communicate()


# Seal, root, models, what lies about


@pytest.mark.parametrize("missing", [False, True])
def test_the_seal(folder, right, missing):
    """A seal that is damaged or missing is made again from the root."""
    store = folder / "s"
    if missing:
        (store / "seal").unlink()
    else:
        (store / "seal").write_bytes(b"nonsense")
    assert run("recover", store, "--dry-run", check=3).stdout.startswith("1. make the seal again")
    run("recover", store, "--yes")

    assert contents(store) == right
    assert is_sound(store)


def test_a_damaged_root(made, tmp_path):
    """A damaged root is not recovered; the message has the command that restores the newest checkpoint, and it works."""
    store = Path(shutil.copytree(made[True] / "s", tmp_path / "s"))
    os.truncate(store / "root.0" / "data.mdb", 5000)
    message = refused("recover", store, "--yes", code=3)
    command = message.partition("kvps checkpoint restore ")[2].split()
    run("checkpoint", "restore", *command)

    assert run_json("status", command[-1])["version"] == 4


def older_root(folder, *commands):
    """Let a store's root be as it was before some commands; return what the store held then."""
    store = folder / "s"
    before, data = contents(store), store / "root.0" / "data.mdb"
    old = data.read_bytes()
    for command in commands:
        run(command[0], store, *command[1:])
    data.write_bytes(old.ljust(data.stat().st_size, b"\0"))
    return before


@pytest.mark.parametrize("removal", [False, True])
def test_a_root_that_went_back_in_time(folder, removal):
    """It is refused, or accepted with --accept-older: the store is at the older version, shards that have gone on made again."""
    store = folder / "s"
    before = older_root(folder, ("forget", "--label", "z") if removal else ("update", folder / "c.txt"))

    message = refused("recover", store, "--yes", "--input", folder / "stdin", code=3)
    assert "version 11" in message and "version 12" in message and "--accept-older" in message
    result = run_json("recover", store, "--accept-older", "--yes", "--input", folder / "stdin")
    assert result["rebuilt"] == ([0, 1, 2] if removal else [])
    assert contents(store) == before
    assert is_sound(store)


def test_models_and_leftovers(folder, right):
    """Damaged compiled models are removed, folders that are not in force and unfinished files are cleared."""
    store = folder / "s"
    run("compile", store)
    model = next((store / "models").glob("*.kvm"))
    model.write_bytes(model.read_bytes()[:9000])
    (store / "shards" / "0000.5").mkdir()
    (store / "seal.tmp-1").touch()
    (store / "spool").mkdir()
    (store / "spool" / "text").touch()
    run("recover", store, "--full", "--yes")

    assert not model.exists()
    assert not [path for path in (store / "shards" / "0000.5", store / "seal.tmp-1", store / "spool") if path.exists()]
    assert contents(store) == right


@pytest.mark.parametrize("name", ["spool", "models", "checkpoints", "damaged"])
def test_a_link_in_the_place_of_a_folder(folder, name):
    """A link in the place of what a recovery clears or fills is refused, and nothing behind it is touched."""
    store = folder / "s"
    (folder / "precious").mkdir()
    (folder / "precious" / "text").touch()
    (store / name).symlink_to(folder / "precious")
    (store / "seal.tmp-1").touch()
    damage(store, "cut")

    assert "symbolic link" in refused("recover", store, "--yes", "--input", folder / "stdin", code=3)
    assert [path.name for path in (folder / "precious").iterdir()] == ["text"]


def test_a_link_in_the_store(folder):
    """A link in the place of a shard is not followed."""
    shard = next((folder / "s" / "shards").glob("0001.*"))
    shard.rename(folder / "elsewhere")
    shard.symlink_to(folder / "elsewhere")
    before = tree(folder / "elsewhere")

    assert "symbolic link" in refused("recover", folder / "s", "--yes", code=3)
    assert tree(folder / "elsewhere") == before


def test_a_sound_store_is_left_alone(folder):
    """Nothing is done where nothing is wrong."""
    before = tree(folder / "s")

    assert "nothing to recover" in run("recover", folder / "s").stdout
    assert "nothing to recover" in run("recover", folder / "s", "--dry-run").stdout
    assert tree(folder / "s") == before


# Killed, and run again

STEPS = ["before kvps.store.seal:renew 1", "after kvps.store.seal:renew 1",
         "after kvps.store.root:Root.claim 1", "after kvps.store.rebuild:begin 1", "after kvps.store.rebuild:begin 2",
         "before kvps.store.shard:Shard.apply 2", "after kvps.store.shard:Shard.sweep 1", "before kvps.store.rebuild:finish 1",
         "after kvps.store.rebuild:keep 1", "after kvps.store.rebuild:keep 2", "before kvps.store.root:Root.move_shard 1",
         "after kvps.store.root:Root.move_shard 1", "after kvps.store.rebuild:keep 4", "before kvps.store.root:Root.move_shard 2",
         "after kvps.store.rebuild:finish 2", "before kvps.store.directory:StoreDirectory.sweep_directories 1",
         "after kvps.store.directory:StoreDirectory.sweep_directories 1", "before kvps.store.directory:StoreDirectory.reseal 1",
         "after kvps.store.directory:StoreDirectory.reseal 1"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(folder, right, step):
    """A recovery that is killed at any step can be run again, and the damaged shards are still kept."""
    store = folder / "s"
    (store / "seal").unlink()
    for number in (0, 2):
        damage(store, "a bit", number)
    arguments = ("recover", store, "--input", folder / "stdin", "--yes")
    run(*arguments, stop_at=f"SIGKILL {step}", check=-signal.SIGKILL)
    run(*arguments)

    assert contents(store) == right
    assert is_sound(store)
    assert {path.name[:4] for path in (store / "damaged").iterdir()} == {"0000", "0002"}


@pytest.mark.parametrize("n_trials", [4, pytest.param(150, marks=pytest.mark.slow)])
def test_killed_at_random(made, tmp_path, right, rng, n_trials):
    """Damaged anyhow, killed at any time, several times: at last the store is whole again."""
    for _ in range(n_trials):
        checkpoint = rng.random() < 0.5
        store = Path(shutil.copytree(made[checkpoint] / "s", tmp_path / "s"))
        for number in rng.sample(range(SHARDS), rng.randint(1, SHARDS)):
            damage(store, rng.choice(DAMAGES), number)
        arguments = ("recover", store, "--input", made[checkpoint] / "stdin", "--yes")
        for _ in range(3):
            process = start(*arguments)
            try:
                process.communicate(timeout=rng.uniform(0.2, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        run(*arguments)
        assert contents(store) == right
        assert is_sound(store)
        shutil.rmtree(store)
