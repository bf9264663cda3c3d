"""--count-field: what is a number of times, and what the choice makes another input of."""
import gzip

import pytest
from processes import contents, refused, run, run_json

import kvps
from kvps.errors import ArgumentError, DataError
from kvps.text.corpus import resolve


@pytest.mark.parametrize(("value", "reason"), [
    ("-1", 'field "n" is -1; a text counts a whole number of times, from 0 to 4294967295'),
    ("4294967296", 'field "n" is 4294967296;'), ("1.5", 'field "n" is 1.5;'), ("1e400", 'field "n" is inf;'), ("NaN", "is nan;"),
    ("1" * 5000, "is inf;"), ('"3"', 'field "n" is not a number'), ("true", "not a number"), ("null", "not a number"),
    ("[1]", "not a number"), (None, 'no field "n", which --count-field names')])
def test_bad_numbers(tmp_path, value, reason):
    """What is no whole number of times is one error with the line's number."""
    bad = '{"text": "x"}' if value is None else f'{{"text": "x", "n": {value}}}'
    (tmp_path / "q.jsonl").write_text(f'{{"text": "a", "n": 1}}\n\n{bad}\n')
    (source,) = resolve([tmp_path / "q.jsonl"], count_field="n")

    with pytest.raises(DataError, match="line 3: ") as caught:
        list(source.splits(1))
    assert reason in str(caught.value) and caught.value.line == 3


def test_splits(tmp_path):
    """Each line of a record's text counts as often as the record; one of 0 times and a blank one have no text."""
    (tmp_path / "q.jsonl").write_text('{"text": "a\\nb", "n": 3}\n\n{"text": "c", "n": 0}\n{"text": "d", "n": 4294967295}\n')
    (source,) = resolve([tmp_path / "q.jsonl"], count_field="n")
    (plain,) = resolve([tmp_path / "q.jsonl"])

    (split,) = source.splits(1000)
    assert (split.data, split.times.tolist()) == (b"a\nb\nd\n", [3, 3, 4294967295])
    assert split.locate(4) == (4, 48)
    assert next(plain.splits(1000)).times is None


def test_another_field_is_another_input(tmp_path):
    """The digest of an input holds all fields that were chosen, so the same file counted in another way is another input."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"text": "a", "n": 1, "m": 2}\n')
    choices = [{}, {"count_field": "n"}, {"count_field": "m"}, {"field": "m"}, {"count_field": "n", "newline": "space"},
               {"count_field": "text"}, {"field": "m", "count_field": "m"}]

    assert len({resolve([path], **chosen)[0].digest() for chosen in choices}) == len(choices)


def test_only_records_have_fields(tmp_path):
    """An input that is no file of JSON lines is refused: its text would count once without a word."""
    (tmp_path / "a.txt").write_text("a\n")

    with pytest.raises(ArgumentError, match=r"a\.txt: has no field n to count by; --count-field is for \.jsonl files"):
        resolve([tmp_path / "a.txt"], count_field="n")
    with kvps.create(tmp_path / "s") as store, pytest.raises(ArgumentError, match="sentences have no field n"):
        store.train(["a b"], count_field="n")


def test_commands(tmp_path):
    """Train, update and forget count by the field; what was interrupted is resumed with it; what is counted already stays out."""
    logs, store = tmp_path / "q.jsonl.gz", tmp_path / "s"
    logs.write_bytes(gzip.compress(b'{"query": "how to", "hits": 1000000}\n{"query": "how", "hits": 3}\n'))
    how = ["--field", "query", "--count-field", "hits"]

    done = run_json("train", store, logs, "-o", "2", *how)
    assert (done["tokens"], done["sentences"]) == (2_000_003, 1_000_003)
    expected = {("<s>", "how"): 1_000_003, ("how", "to"): 1_000_000, ("how", "</s>"): 3, ("to", "</s>"): 1_000_000}
    assert contents(store) == expected
    assert run_json("update", store, logs, *how)["already"]
    run("update", store, logs, "--field", "query", stop_at="SIGKILL before kvps.store.root:Root.commit_job 1", check=-9)
    run("abort", store)
    run("update", store, logs, *how, "--again", stop_at="SIGKILL before kvps.store.root:Root.commit_job 1", check=-9)
    run("resume", store)
    assert contents(store) == {ngram: 2 * n for ngram, n in expected.items()}
    run("forget", store, logs, *how)

    assert contents(store) == expected
    assert "no text to count" in refused("update", store, zero(tmp_path), *how)


def zero(folder):
    """Return a file of records that count 0 times."""
    (folder / "zero.jsonl").write_text('{"query": "x", "hits": 0}\n')
    return folder / "zero.jsonl"


def test_reserved_word_among_records(tmp_path):
    """A reserved word is named with the line of its record."""
    (tmp_path / "q.jsonl").write_text('{"text": "a b", "n": 7}\n{"text": "gone <s>", "n": 0}\n{"text": "a <s>", "n": 2}\n')

    assert "line 3" in refused("train", tmp_path / "s", tmp_path / "q.jsonl", "--count-field", "n")
    run("train", tmp_path / "s", tmp_path / "q.jsonl", "-o", "1", "--count-field", "n", "--reserved", "skip")
    assert contents(tmp_path / "s") == {("a",): 9, ("b",): 7, ("</s>",): 9}
