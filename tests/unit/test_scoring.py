"""Scores of sentences, words and documents: kvps score, and the calls of a Model behind it."""
import gzip
import io
import json
import math
from types import SimpleNamespace

import kenlm
import pytest
import zstandard
from click.testing import CliRunner

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, DataError
from kvps.lm import arpa, evaluate
from kvps.text import piped
from kvps.text.piped import passing

TEXT = ["the cat sat on the mat", "the dog sat", "a cat saw the dog on the mat", "", "the mat"]
DOCUMENTS = ["the cat sat\nthe dog\n", "zebra on the mat", "", "the dog sat\n\non the mat\n\n"]


@pytest.fixture
def store(tmp_path):
    """Return an order-3 store with TEXT."""
    with kvps.create(tmp_path / "store", order=3, shards=2) as store:
        store.train(TEXT, threads=1)
        yield store


@pytest.fixture
def model(store):
    """Return its model."""
    with store.model() as model:
        yield model


def score(store, *arguments, text="", code=0):
    """Return the lines that kvps score prints."""
    result = CliRunner().invoke(main, ["score", str(store.path), *map(str, arguments)], input=text)
    assert result.exit_code == code, result.output
    return result.stdout.splitlines() if code == 0 else result.stderr


def records(documents):
    """Return documents as JSON lines."""
    return "".join(json.dumps({"id": i, "text": document}) + "\n" for i, document in enumerate(documents))


def test_sentences(store, model, tmp_path):
    """A line has the log10 probability of each sentence and the sentence, from files as from stdin, on any number of threads."""
    path = tmp_path / "t.txt"
    path.write_text("\n".join(TEXT))

    lines = score(store, path)

    assert lines == [f"{p:.6f}\t{sentence}" for p, sentence in zip(model.score(TEXT), TEXT, strict=True)]
    assert lines == score(store, text="\n".join(TEXT) + "\n") == score(store, "-", "--threads", "3", text="\n".join(TEXT))


def test_order_is_kept(store, model, monkeypatch):
    """Results come in the order of the text, whichever thread is first, and are the same for any number of them."""
    monkeypatch.setattr(evaluate, "SPLIT_BYTES", 40)
    text = [f"{sentence} {'the ' * (i % 7)}".strip() for i in range(60) for sentence in TEXT]

    one = score(store, "--threads", "1", text="\n".join(text))

    assert one == score(store, "--threads", "4", text="\n".join(text))
    assert [line.split("\t")[1] for line in one] == text


def test_many_sentences(store, model, monkeypatch):
    """Many sentences are scored in batches on all threads, and come in their order with the scores they have alone."""
    text = [f"{sentence} {'the ' * (i % 5)}" for i in range(20) for sentence in TEXT]
    alone = [model.score(sentence) for sentence in text]
    monkeypatch.setattr("kvps.lm.model.BATCH_BYTES", 50)

    with store.model(threads=3) as many:
        assert many.score(text).tolist() == many.score(iter(text)).tolist() == alone
        assert many.score([]).shape == (0,) and many.score([["the", "cat"], "the cat"]).tolist() == [many.score("the cat")] * 2


@pytest.mark.parametrize("threads", [1, 3])
def test_lists(store, threads):
    """A list has the scores that its sentences have alone, to the last bit, whatever is among them; what is none is told."""
    text = ["the cat", "", " ", "a\0cat\tsat\r", "der Käse the", "zebra " * 3, "the cat sat " * 40] * 3000
    with store.model(threads=threads) as model, store.model(smoothing="mle") as mle:
        alone = [model.score(sentence) for sentence in text[:7]] * 3000
        long = ["the " * 30_000, "cat"]

        assert model.score(text).tolist() == alone
        assert model.score(long).tolist() == [model.score(sentence) for sentence in long]
        assert model.score([*text, ["the", "cat"]]).tolist() == [*alone, alone[0]]
        assert mle.score(["the cat", "zebra", "zebra cat"]).tolist() == [mle.score("the cat"), -math.inf, -math.inf]
        for bad in ("the\ncat", "\ud800", 7):
            with pytest.raises(ArgumentError, match="21001"):
                model.score([*text, bad, "cat"])


def test_words(store, model):
    """--words names matched order and OOVs; the words of a sentence add up to its probability."""
    lines = score(store, "--words", text="the cat zebra\n\n")
    rows = [json.loads(line) for line in score(store, "--words", "--json", text="the cat zebra\n\n")]

    assert [line.split("\t")[0] for line in lines] == ["the", "cat", "zebra", "</s>", "", "</s>", ""]
    assert [line.split("\t")[2:] for line in lines[:3]] == [["2", ""], ["3", ""], ["0", "oov"]]
    for row, sentence in zip(rows, ["the cat zebra", ""], strict=True):
        assert set(row["words"][0]) == {"word", "log10", "order", "oov"}
        assert row["log10_probability"] == pytest.approx(model.score(sentence)) == pytest.approx(
            sum(word["log10"] for word in row["words"]))


def test_zero_probability(store):
    """A sentence that cannot be has null with --json, and says so otherwise."""
    row = json.loads(score(store, "--smoothing", "mle", "--json", text="the zebra\n")[0])

    assert row == {"sentence": "the zebra", "log10_probability": None, "tokens": 3, "oov": 1}
    assert score(store, "--smoothing", "mle", text="the zebra\n") == ["-infinite\tthe zebra"]
    assert "-infinite" in score(store, "--smoothing", "mle", "--words", text="the zebra\n")[1]
    assert score(store, "--smoothing", "mle", "--add", "p", text=records(["zebra"])) == ['{"id": 0, "text": "zebra", "p": null}']


@pytest.mark.parametrize("name", ["-", "d.jsonl", "d.jsonl.gz", "d.jsonl.zst"])
def test_records(name, store, model, tmp_path):
    """Each record passes through with the pooled perplexity of its text, from any kind of file."""
    text = records(DOCUMENTS)
    packed = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)(text.encode())
    (tmp_path / name).write_bytes(packed)

    lines = score(store, name if name == "-" else tmp_path / name, "--add", "perplexity", text=text)

    found = model.perplexities(DOCUMENTS)
    assert [json.loads(line).get("perplexity", math.inf) for line in lines] == [math.inf if p != p else p for p in found.tolist()]
    assert [line.rpartition(', "perp')[0] + "}" if ', "perp' in line else line for line in lines] == text.splitlines()
    for document, perplexity in zip(DOCUMENTS, found, strict=True):
        if not document:
            assert math.isnan(perplexity)
            continue
        lines = document.split("\n")
        assert perplexity == pytest.approx(10 ** (-model.score(lines).sum() / sum(len(line.split()) + 1 for line in lines)))
    assert model.perplexities(DOCUMENTS[0]) == found[0]
    assert model.perplexities([]).shape == (0,)


def test_documents_as_cc_net(store, model, tmp_path):
    """The perplexity of a document is what cc_net computes with KenLM and the same model, but for KenLM's float32."""
    arpa.export(store._directory, tmp_path / "m.arpa")
    other = kenlm.Model(str(tmp_path / "m.arpa"))
    for document in filter(None, DOCUMENTS):
        lines = document.split("\n")
        log_score, length = sum(other.score(line) for line in lines), sum(len(line.split()) + 1 for line in lines)
        assert model.perplexities(document) == pytest.approx(10.0 ** (-log_score / length), rel=1e-5)


def test_filters(store, model):
    """--below and --above keep records between two perplexities, unchanged where nothing is added."""
    text, found = records(DOCUMENTS), model.perplexities(DOCUMENTS)
    low, high = min(found[[0, 1, 3]]), max(found[[0, 1, 3]])

    kept = score(store, "--above", low, "--below", high, text=text)

    assert kept == [line for line, p in zip(text.splitlines(), found, strict=True) if low < p < high or p != p]
    assert len(kept) == 2


def test_records_without_text_pass(store, caplog):
    """Records without text pass whatever is asked for, as in cc_net; a warning counts them, where one ended the stream."""
    odd = ['{"id": 1}', '{"text": null , "p": 1}', '{"text": ""} ']

    assert score(store, "--add", "p", "--below", "0", text="\n".join([*odd, '{"text": "a"}'])) == odd
    assert caplog.messages[-1] == '3 records passed unscored: no text in the field "text"'
    assert score(store, "--add", "p", "--newline", "space", text='{"text": "a\\n"}\n{"text": ""}')[0].startswith('{"text": "a')


def test_record_bytes_pass_through(store):
    """What kvps does not know of a record stays byte for byte; a field that is there gets the new value; blank lines go."""
    odd = '{"x": 1.50e3, "n": 12345678901234567890123, "text": "a cat", "e": "\\u00e9\\/"}'

    lines = score(store, "--add", "p", text=f'{odd}  \r\n\n{{"p": 1, "text": "a"}}\n')

    assert lines[0].startswith(odd[:-1] + ', "p": ') and lines[0].endswith("}")
    assert list(json.loads(lines[1])) == ["p", "text"] and json.loads(lines[1])["p"] != 1
    assert len(lines) == 2


def test_record_with_the_field_passes_through(store):
    r"""Only the value of the field is another one: lone surrogates and numbers of 5,000 digits ended with a traceback."""
    begin, end = '{ "x" :\t"\\ud800", "n": [{"p": ' + "9" * 5000 + '}], "text": "a", "p": ', ' ,"y": 1.50e3,"\\u0070":'
    lines = score(store, "--add", "p", text=f"\ufeff{begin}{{}}{end}7}}\n")

    assert lines[0].startswith(begin) and end in lines[0]
    assert lines[0].removeprefix(begin).removesuffix("}").split(end) == [repr(json.loads(score(
        store, "--add", "p", text=records(["a"]))[0])["p"])] * 2


@pytest.mark.parametrize(("line", "message"), [
    ("[1]", "not a JSON object"), ("{", "not JSON"), ('{"text": 1}', "is not a string"),
    ('{"text": "\\ud800"}', "not UTF-8")])
def test_bad_record_is_one_line(line, message, store):
    """A record that cannot be read ends the command with one line that names its line."""
    error = score(store, "--add", "p", text=records(DOCUMENTS) + line + "\n", code=1)

    assert message in error and "line 5" in error and error.count("\n") == 1


def test_usage(store, tmp_path):
    """--words and records, stdin twice, records of NLTK, and a perplexity in the place of the text are refused."""
    assert "would take the place" in score(store, "--add", "line", "--field", "line", code=2)
    assert "not both" in score(store, "--words", "--add", "p", code=2)
    assert "only once" in score(store, "-", "-", code=2)
    with pytest.raises(ArgumentError, match="has no records"):
        piped._lines(SimpleNamespace(kind="nltk", name="nltk:x"))


def test_piped_text_knows_its_lines(monkeypatch):
    """A stream tells the line of what is not UTF-8, splits as a file does, and refuses a line without end."""
    data = b"one\ntwo words\nthree\n" * 50
    stream = io.BytesIO(data)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    splits = list(passing(["-"])[0].splits(30))

    assert b"".join(split.data for split in splits) == data
    assert [split.locate(0)[0] for split in splits] == [1 + data.count(b"\n", 0, split.start) for split in splits]
    stream.seek(0), stream.write(b"x" * 100), stream.seek(0)
    monkeypatch.setattr("kvps.text.inputs.MAX_LINE_BYTES", 50)
    with pytest.raises(DataError, match="the line at byte 0 is longer"):
        list(passing(["-"])[0].splits(30))


def test_tokenizer_makes_the_words_of_records(tmp_path):
    """Documents and records go through the store's tokenizer."""
    with kvps.create(tmp_path / "s", order=2, tokenizer="wordpunct", lowercase=True) as store:
        store.train(["The cat, sat."], threads=1)
        with store.model() as model:
            assert model.perplexities("the CAT,sat .") == model.perplexities("The cat, sat.")
            lines = score(store, "--add", "p", text=records(["The cat,sat."]))
            assert json.loads(lines[0])["p"] == model.perplexities("the cat, sat.")


def test_columns_and_sums_agree(store, model):
    """Score by sentence, in columns or as rows, adds up to that of the text; no text has no rows."""
    made = model._model()
    text = ("\n".join(TEXT) + "\nzebra\n").encode()
    rows, whole = made.score_sentences(text), made.score_text(text)

    assert [row.tokens for row in rows] == [len(line.split()) + 1 for line in text.decode().splitlines()]
    assert sum(row.oov for row in rows) == whole.oov == 1
    assert math.fsum(row.log10_probability for row in rows) == pytest.approx(whole.log10_probability)
    assert math.fsum(row.log10_oov for row in rows) == pytest.approx(whole.log10_oov)
    assert all(len(column) == 0 for column in made.score_columns(b"").values())
