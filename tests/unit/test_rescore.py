"""N-best lists with the model's opinion: kvps rescore and Model.rescore."""
import gzip
import json
import math

import pytest
from click.testing import CliRunner

import kvps
from kvps.cli import main
from kvps.errors import ArgumentError, DataError, StoreError
from kvps.lm import rescore as rescoring

TEXT = ["the cat sat on the mat", "the dog sat", "a cat saw the dog on the mat", "the mat"]
MOSES = """0 ||| cat the sat ||| LM0= -3 TM= -1.5 -2 ||| -4.5 ||| 0-0 1-1
0 ||| the cat sat ||| LM0= -3 TM= -1.5 -2 ||| -5.25
1 ||| the dog ||| ||| 0
0 ||| the zebra
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return an order-3 store with TEXT."""
    with kvps.create(tmp_path_factory.mktemp("rescore") / "store", order=3, shards=2) as store:
        store.train(TEXT, threads=1)
        yield store


@pytest.fixture(scope="module")
def ln(store):
    """Return a function from a sentence to the natural logarithm of its probability."""
    with store.model() as model:
        yield lambda sentence: math.log(10) * model.score(sentence)


def rescore(store, *arguments, text="", code=0):
    """Return the lines that kvps rescore prints."""
    result = CliRunner().invoke(main, ["rescore", str(store.path), *map(str, arguments)], input=text)
    assert result.exit_code == code, result.output
    return result.stdout.splitlines() if code == 0 else result.stderr


def test_moses(store, ln):
    """A feature is added behind the others and the score grows by weight times it; lists are sorted, the rest stays."""
    good, bad = ln("the cat sat"), ln("cat the sat")

    assert rescore(store, "--weight", "2", text=MOSES) == [
        f"0 ||| the cat sat ||| LM0= -3 TM= -1.5 -2 kvps= {good:.6f} ||| {-5.25 + 2 * good:.6f}",
        f"0 ||| cat the sat ||| LM0= -3 TM= -1.5 -2 kvps= {bad:.6f} ||| {-4.5 + 2 * bad:.6f} ||| 0-0 1-1",
        f"1 ||| the dog ||| kvps= {ln('the dog'):.6f} ||| {2 * ln('the dog'):.6f}",
        f"0 ||| the zebra ||| kvps= {ln('the zebra'):.6f} ||| {2 * ln('the zebra'):.6f}"]


def test_replaced_feature(store, ln):
    """A feature that is there is replaced where it stands, and the score changes by what it changed by."""
    lines = rescore(store, "--feature", "LM0", "--weight", "0.5", text=MOSES)

    good = ln("the cat sat")
    assert lines[0] == f"0 ||| the cat sat ||| LM0= {good:.6f} TM= -1.5 -2 ||| {-5.25 + 0.5 * (good + 3):.6f}"
    once = rescore(store, text=MOSES)
    assert rescore(store, text="\n".join(once) + "\n") == once


@pytest.mark.parametrize("threads", [1, 3])
def test_lists_stay_apart(threads, store, monkeypatch):
    """However the text is cut and whoever works on it, lists come in their order and whole, ties as they were."""
    text = "".join(f"{i} ||| the mat ||| x= {j} ||| 0\n" for i in range(40) for j in range(i % 5 + 1))
    whole = rescore(store, text=text)
    monkeypatch.setattr(rescoring, "BATCH_BYTES", 64)

    assert rescore(store, "--threads", threads, text=text) == whole
    assert [line.split(" kvps=")[0] + " ||| 0" for line in whole] == text.splitlines()


def test_json_lines(store, ln, tmp_path):
    """JSON records get the feature as a field and a new score, and keep what else they have; compressed files too."""
    records = [{"id": 7, "text": "cat the sat", "score": -1, "n": 10**20}, {"id": 7, "text": "the\ncat sat"},
               {"id": "b", "text": "the dog", "score": None, "lm": -1.0}]
    path = tmp_path / "n.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))

    rows = [json.loads(line) for line in rescore(store, path, "--feature", "lm")]

    good, bad, dog = ln("the cat sat"), ln("cat the sat"), ln("the dog")
    assert rows == [{"id": 7, "text": "the\ncat sat", "lm": pytest.approx(good), "score": pytest.approx(good)},
                    {"id": 7, "text": "cat the sat", "score": pytest.approx(bad - 1), "n": 10**20, "lm": pytest.approx(bad)},
                    {"id": "b", "text": "the dog", "score": pytest.approx(dog + 1), "lm": pytest.approx(dog)}]


def test_zero_probability(store, ln):
    """A text of probability 0 has no score and is refused with its line; with weight 0 scores stay, and it can be rescored.

    Such scores were infinite, lost in JSON, and not a number once the feature was replaced: then nothing was in order.
    """
    moses, lines = "0 ||| the mat ||| ||| -1\n0 ||| zebra ||| ||| -2\n", '{"id": 1, "text": "zebra", "score": -2}\n'
    for text, line in ((moses, 2), (lines, 1)):
        error = rescore(store, "--smoothing", "mle", text=text, code=1)
        assert f"line {line}: the text has probability 0" in error and error.count("\n") == 1

    assert "line 1: its score would be -inf" in rescore(store, "--weight", "1e308", text=moses, code=1)

    added = rescore(store, "--smoothing", "mle", "--weight", "0", text=moses)
    assert added[1] == "0 ||| zebra ||| kvps= -inf ||| -2.000000"
    assert rescore(store, "--weight", "2", text=added[1] + "\n") == [
        f"0 ||| zebra ||| kvps= {ln('zebra'):.6f} ||| {2 * ln('zebra') - 2:.6f}"]
    added = rescore(store, "--smoothing", "mle", "--weight", "0", text=lines)
    assert json.loads(added[0]) == {"id": 1, "text": "zebra", "score": -2, "kvps": None}
    assert json.loads(rescore(store, text=added[0] + "\n")[0])["score"] == pytest.approx(ln("zebra") - 2)


def test_records_pass_through(store):
    r"""What is no feature or score stays byte for byte; a lone surrogate or a number of 5,000 digits ended with a traceback."""
    long = "9" * 5000
    lines = rescore(store, text=f'{{"id": {long}, "kvps": -1, "e": "\\ud800\\/", "text": "a", "score" : 1e0,"x":1.50}}\n')

    assert lines[0].startswith(f'{{"id": {long}, "kvps": -') and lines[0].endswith(',"x":1.50}')
    assert ', "e": "\\ud800\\/", "text": "a", "score" : -' in lines[0]


@pytest.mark.parametrize(("line", "message"), [
    (b"0 ||| \xff".decode("utf-8", "surrogateescape"), "not UTF-8"),
    ("no list", "neither a JSON object nor"), ("{", "not JSON"), ('{"text": "a"}', 'no field "id"'),
    ('{"id": 1}', 'no field "text"'),
    ("0 ||| a ||| kvps= 1 2 ||| 0", "has 2 values"), ("0 ||| a ||| x= 1 ||| high", "the score is no number: high"),
    ("0 ||| a ||| x= 1 ||| nan", "the score is nan"), ("0 ||| a ||| kvps= nan ||| 0", "the feature kvps is nan"),
    ("0 ||| a ||| x= 1 ||| -inf", "the score is -inf"), ("0 ||| a ||| kvps= inf ||| 0", "the feature kvps is inf"),
    ('{"id": 1, "text": "a", "score": NaN}', "the score is nan"),
    ('{"id": 1, "text": "a", "score": -Infinity}', "the score is -inf"), ('{"id": 1, "text": "a", "score": false}', "are numbers"),
    ('{"id": 1, "text": "a", "kvps": NaN}', "the feature kvps is nan"),
    ('{"id": 1, "text": "a", "score": "x"}', "are numbers")])
def test_bad_line_is_one_line(line, message, store):
    """A line that cannot be read ends the command with one line that names it."""
    error = rescore(store, text=f"0 ||| a\n\n{line}\n".encode("utf-8", "surrogateescape"), code=1)

    assert message in error and "line 3" in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--feature", "a b"), ("--feature", ""), ("--weight", "nan"), ("--feature", "a="),
                                       ("--feature", "a\vb"), ("--feature", "\udcff")])
def test_usage(arguments, store):
    """A feature's name has no signs of the format in it, and a weight is a number."""
    assert "a feature has a name" in rescore(store, *arguments, code=2)


@pytest.mark.parametrize("name", ["id", "text", "score", "features", "line"])
def test_feature_is_no_field(name, store):
    """A feature named like a field of a hypothesis would take its place, and is refused before a model is made."""
    assert f'"{name}" would take the place' in rescore(store, "--feature", name, "--field", "line", "--order", "9", code=2)


RECORDS = [{"id": 7, "text": "cat the sat", "score": -1, "n": (1, 2)}, {"id": 7, "text": "the\ncat sat"},
           {"id": "b", "text": "the dog", "score": None, "lm": -1.0}, {"id": "b", "text": "zebra", "score": 2, "lm": None}]


@pytest.mark.parametrize("threads", [1, 3])
def test_lines_from_python(threads, store, monkeypatch):
    """Model.rescore makes of lines of both formats what the command prints, however they are cut."""
    lines = MOSES.splitlines() + [json.dumps(record) for record in RECORDS] + ["", "1 ||| caf\u00e9"]
    expected = rescore(store, "--feature", "lm", "--weight", "0.5", text="\n".join(lines) + "\n")
    for size in (1 << 19, 1):
        monkeypatch.setattr(rescoring, "BATCH_BYTES", size)
        with store.model(threads=threads) as model:
            assert list(model.rescore((line + "\n" for line in lines), "lm", 0.5)) == expected
            assert list(model.rescore([])) == []


def test_dicts_from_python(store, ln):
    """A dict is given back as one, with what else it has, best first; it is not changed, and -inf is a number there."""
    before = [dict(record) for record in RECORDS]
    with store.model() as model, store.model("mle") as frequencies:
        found = list(model.rescore(RECORDS, "lm", 2))
        impossible = list(frequencies.rescore([{"id": 1, "body": "zebra", "score": 5}], weight=0, field="body"))

    good, bad, dog, zebra = ln("the cat sat"), ln("cat the sat"), ln("the dog"), ln("zebra")
    assert before == RECORDS
    assert found[0] == {"id": 7, "text": "the\ncat sat", "lm": pytest.approx(good), "score": pytest.approx(2 * good)}
    assert found[1] == {**RECORDS[0], "lm": pytest.approx(bad), "score": pytest.approx(2 * bad - 1)}
    assert sorted(found[2:], key=lambda row: row["text"]) == [
        {**RECORDS[2], "lm": pytest.approx(dog), "score": pytest.approx(2 * (dog + 1))},
        {**RECORDS[3], "lm": pytest.approx(zebra), "score": pytest.approx(2 * zebra + 2)}]
    assert found[2]["score"] >= found[3]["score"]
    assert impossible == [{"id": 1, "body": "zebra", "score": 5, "kvps": -math.inf}]


def test_other_models_from_python(store, tmp_path):
    """An imported model and a mixture rescore as what they are made of."""
    kvps.export(store.path, tmp_path / "a.arpa")
    kvps.mix(tmp_path / "mix", [store.path, tmp_path / "a.arpa"], TEXT)
    with store.model() as model:
        expected = [(row["text"], pytest.approx(row["score"], abs=1e-5)) for row in model.rescore(RECORDS)]
    for place in ("a.arpa", "mix"):
        with kvps.load(tmp_path / place) as model:
            assert [(row["text"], row["score"]) for row in model.rescore(RECORDS)] == expected


@pytest.mark.parametrize(("given", "message"), [
    ("0 ||| a", "put it in a list"), ({"id": 1, "text": "a"}, "put it in a list"), (None, "iterable of hypotheses"),
    ([3], "hypothesis 1 is int"), (["0 ||| a\n0 ||| b"], "found a newline"), (["\ud800"], "hypothesis 1 is not valid Unicode")])
def test_hypotheses_that_are_none(given, message, store):
    """What is neither line nor dict is an ArgumentError."""
    with store.model() as model, pytest.raises(ArgumentError, match=message):
        list(model.rescore(given))


@pytest.mark.parametrize(("given", "message"), [
    ("no list", "neither a JSON object nor"), ({"text": "a"}, 'no field "id"'), ({"id": 1}, 'no field "text"'),
    ({"id": 1, "text": 3}, "not a string"), ({"id": 1, "text": "a", "score": "x"}, "are numbers"),
    ({"id": 1, "text": "a", "score": True}, "are numbers"), ({"id": 1, "text": "a", "score": math.nan}, "finite"),
    ({"id": 1, "text": "a", "score": 10**400}, "too large"), ({"id": 1, "text": "\ud800"}, "not UTF-8 .*; convert it first$")])
def test_bad_hypotheses_from_python(given, message, store):
    """What is no hypothesis is a DataError with its number."""
    with store.model() as model, pytest.raises(DataError, match=rf"\(iterable\): line 2: .*{message}"):
        list(model.rescore([{"id": 1, "text": "a"}, given]))


def test_arguments_from_python(store):
    """Names and weights that are not possible are refused at once, and so is a model that is closed."""
    with store.model() as model:
        for arguments in (("a b",), ("id",), ("lm", math.nan)):
            with pytest.raises(ArgumentError, match="a feature"):
                model.rescore([], *arguments)
    with pytest.raises(StoreError, match="closed"):
        model.rescore([])
