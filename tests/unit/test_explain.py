"""What a probability is made of: kvps explain and Model.explain."""
import html.parser
import importlib
import json
import math

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvps
from kvps.cli import main
from kvps.lm import listing
from kvps.lm.smoothing import NAMES
from kvps.store.directory import open_store

TEXT = ["the cat sat on the mat", "the dog sat", "a cat saw the dog on the mat", "", "the mat"]
SMOOTHINGS = ["lidstone:0.1" if name == "lidstone" else name for name in NAMES]
SENTENCES = st.lists(st.lists(st.sampled_from(["a", "b", "c", "the", "x\u0085"]), max_size=7), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return an order-3 store with TEXT."""
    with kvps.create(tmp_path_factory.mktemp("explain") / "store", order=3, shards=2) as store:
        store.train(TEXT, threads=1)
        yield store


def check_sums(model, text):
    """Check that what the orders give adds up to each probability, and those to that of the sentence."""
    explained = model.explain(text)
    for words, scored, log10 in zip(explained, model.score_words(text), model.score(text).tolist(), strict=True):
        assert [word[:2] for word in words] == [word[:2] for word in scored]
        assert [(word.order, word.oov) for word in words] == [(word.order, word.oov) for word in scored]
        assert sum(word.log10 for word in words) == pytest.approx(log10, rel=1e-12, abs=1e-12)
        for word in words:
            assert math.fsum(part.share for part in word.parts) == pytest.approx(word.probability, rel=1e-12, abs=1e-300)
            assert [part.order for part in word.parts] == list(range(len(word.parts) - 1, -1, -1))
            if word.order:
                (used,) = (part for part in word.parts if part.order == word.order)
                assert used.ngram == word.ngram and used.count > 0
            assert all(part.count == 0 for part in word.parts if part.order > word.order)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SENTENCES, SENTENCES, st.integers(1, 6), st.data())
def test_parts_add_up(tmp_path_factory, sentences, text, order, data):
    """For every smoothing and order the shares of the orders add up to the probability that scoring gives."""
    top = data.draw(st.integers(1, order))
    text = [*text, ["unheard-of", "a", "unheard-of"]]
    with kvps.create(tmp_path_factory.mktemp("parts") / "s", order=order, shards=2) as store:
        store.train(sentences, threads=1)
        for smoothing in SMOOTHINGS:
            with store.model(smoothing, order=top, threads=1) as model:
                check_sums(model, text)


def counts_of(store, ngram):
    """Return the raw and adjusted count of an n-gram, as kvps counts has them."""
    with open_store(store.path) as opened:
        return listing.counts(opened, [ngram])[0]


@pytest.mark.parametrize("smoothing", ["modified-kneser-ney", "absolute-discounting"])
def test_parts_are_the_formula(smoothing, store):
    """Each share is (count - discount) / total, times the back-offs of all longer contexts; counts are those of kvps counts."""
    kind = "adjusted" if "kneser" in smoothing else "raw"
    with store.model(smoothing) as model:
        for words in model.explain(["the cat sat on the cat", "a dog zebra"]):
            for word in words:
                weight = 1.0
                for part in word.parts[:-1]:
                    if part.count:
                        assert part.share == pytest.approx(weight * (part.count - part.discount) / part.total)
                        assert part.count == counts_of(store, part.ngram)[kind], part
                    else:
                        assert part.share == 0
                    weight *= part.backoff
                # 8 words, </s> and <unk> share alike
                assert word.parts[-1].share == pytest.approx(weight / 10 if kind == "adjusted" else 0)


def test_one_sentence_or_many(store):
    """Of one str there is its list of words alone; text goes through the store's tokenizer."""
    with store.model() as model:
        assert model.explain("the cat") == model.explain(["the cat"])[0] == model.explain([["the", "cat"]])[0]
        assert model.explain([]) == []


def explain(store, *arguments, code=0, text=""):
    """Run kvps explain."""
    result = CliRunner().invoke(main, ["explain", str(store.path), *map(str, arguments)], input=text)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table_fits(width, store, capsys):
    """In a terminal of 80 characters every column that is left can be read, and there are bars."""
    with store.model() as model:
        for words in model.explain(["the cat sat"]):
            importlib.import_module("kvps.cli.explain")._show(words, width)
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "log10 p" in line)
    assert max(map(len, lines)) <= width
    assert all(name in head for name in ("n-gram", "count", "discount", "back-off", "gives", "its part"))
    assert any("the cat" in line for line in lines) and any("█" in line for line in lines)
    assert not any("…" in line for line in lines)


def test_table(store):
    """The table has a line per word and order, and the sum; bars show what the orders give."""
    lines = explain(store, "the [b]zebra[/b]").splitlines()

    assert sum("█" in line for line in lines) >= 3
    assert any("[b]zebra[/b] (oov)" in line for line in lines)
    with store.model() as model:
        assert f"log10 p {model.score('the [b]zebra[/b]'):.6f}" in lines[-1]
    assert "-inf" in explain(store, "zebra", "--smoothing", "mle")


def test_json(store):
    """--json has the same as Model.explain, of arguments and of lines of stdin."""
    lines = explain(store, "the cat", "-", "--json", "--smoothing", "mle", text="zebra\n\n").splitlines()
    rows = [json.loads(line) for line in lines]

    assert [row["sentence"] for row in rows] == ["the cat", "zebra", ""]
    assert rows[1]["log10_probability"] is None and rows[1]["words"][0]["log10"] is None
    with store.model("mle") as model:
        words = model.explain("the cat")
    assert [word["parts"] for word in rows[0]["words"]] == [[part.as_dict() for part in word.parts] for word in words]


def test_imported_model(store, tmp_path):
    """An imported model knows no counts: they are null, or left empty, and not 0."""
    kvps.export(store.path, tmp_path / "a.arpa")
    kvps.import_arpa(tmp_path / "m", tmp_path / "a.arpa")
    with kvps.load(tmp_path / "m") as model:
        result = CliRunner().invoke(main, ["explain", str(tmp_path / "m"), "the cat", "--json"])
        parts = [part for word in json.loads(result.stdout)["words"] for part in word["parts"]]
        assert parts == [part.as_dict() for word in model.explain("the cat") for part in word.parts]
    assert all(part["order"] > 0 and part["count"] is part["discount"] is part["total"] is None for part in parts)
    table = CliRunner().invoke(main, ["explain", str(tmp_path / "m"), "the cat"]).stdout
    rows = [[cell.strip() for cell in line.split("│")] for line in table.splitlines() if line.startswith("│")]
    assert rows and all(row[5:8] == ["", "", ""] and row[8] for row in rows)
    page = CliRunner().invoke(main, ["explain", str(tmp_path / "m"), "the cat", "--html", str(tmp_path / "x.html")])
    assert page.exit_code == 0 and "<td></td><td></td><td></td>" in (tmp_path / "x.html").read_text()


def test_heat_map(store, tmp_path):
    """--html writes a page that is whole in itself, with every word and nothing of the text taken for markup."""
    found = []

    class Reader(html.parser.HTMLParser):
        """Notes the tags of a page."""

        def handle_starttag(self, tag, attrs):
            """Note the tags."""
            found.append((tag, dict(attrs)))

    assert explain(store, "the <script>x</script> & mat", "--html", tmp_path / "x.html").strip().endswith("written")
    page = (tmp_path / "x.html").read_text()
    Reader().feed(page)

    assert not any(tag in ("script", "link", "img") for tag, _ in found)
    assert sum(tag == "span" for tag, _ in found) == 5
    assert sum("oov" in attributes.get("class", "") for _, attributes in found) == 2
    assert "&lt;script&gt;x&lt;/script&gt;" in page and "&amp;" in page and page.endswith("</html>\n")
    assert json.loads(explain(store, "a", "--json", "--html", tmp_path / "y.html")) == {"path": str(tmp_path / "y.html")}


def test_refusals(store, tmp_path):
    """Text that is not UTF-8 and a place that cannot be written are one line."""
    for arguments, code in ((["a", "--html", tmp_path / "no" / "x.html"], 1), (["\udcff"], 1)):
        assert explain(store, *arguments, code=code).count("\n") == 1
