"""kvps.compat.kenlm answers as kenlm does, over ARPA files, imported models and stores, and in decoders."""
import copy
import gzip
import itertools
import os
import pathlib
import pickle
import random
import shutil
import time

import numpy as np
import pytest

import kvps
from kvps.cli.kenlm import query
from kvps.compat import kenlm as ours
from kvps.lm import arpa
from kvps.lm.arpa_read import import_arpa
from kvps.store.directory import open_store
from kvps.text.tokenize import Tokenizer

REFERENCES = ("small.o2.arpa.gz", "small.o3.arpa.gz", "small.o3.nointerpuni.arpa.gz", "small.o3.prune001.arpa.gz",
              "small.o3.vocabpad.arpa.gz", "small.o5.arpa.gz", "small.o5.prune00122.arpa.gz", "tiny.o3.fallback.arpa")
WORDS = ["the", "whale", "and", "sea", "captain", "ship", "white", "of", "é", "语言", "a\u00a0b", "deck"]
ODD = ["nobody", "<unk>", "<UNK>", "</s>", "<s>", "\u2028"]


@pytest.fixture(scope="module")
def kenlm():
    """Return KenLM's Python module."""
    return pytest.importorskip("kenlm", reason="needs kenlm")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what is cached in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
    """Return (store, its ARPA file), of order 4, of random text."""
    rng = random.Random(request.config.option.seed)
    folder = tmp_path_factory.mktemp("made")
    with kvps.create(folder / "store", order=4) as store:
        store.train([" ".join(rng.choices(WORDS, weights=range(1, len(WORDS) + 1), k=rng.randrange(12))) for _ in range(400)])
    with open_store(folder / "store", writable=False, wait=0) as directory:
        arpa.export(directory, folder / "made.arpa")
    return folder / "store", folder / "made.arpa"


def sentences(rng, words, n):
    """Return random sentences, some with words that are odd and blanks of several kinds."""
    def word():
        return rng.choice([*words, *ODD] if rng.random() < 0.2 else words) + rng.choice(["  ", " ", "\t", "\n", "\v", "\f", "\r"])

    return ["".join(word() for _ in range(rng.randrange(25))) for _ in range(n)]


def same(kenlm, theirs, mine, texts):
    """Compare every kind of question on the same texts, and states word by word."""
    for text in texts:
        for bos in (True, False):
            for eos in (True, False):
                assert mine.score(text, bos=bos, eos=eos) == pytest.approx(theirs.score(text, bos=bos, eos=eos), abs=1e-5)
                assert list(mine.full_scores(text, bos, eos)) == list(theirs.full_scores(text, bos, eos))
        assert mine.perplexity(text) == pytest.approx(theirs.perplexity(text), rel=1e-5)
        assert mine.score(text.encode()) == mine.score(text)
        for write in ("BeginSentenceWrite", "NullContextWrite"):
            a, b, c, d = kenlm.State(), kenlm.State(), ours.State(), ours.State()
            getattr(theirs, write)(a)
            getattr(mine, write)(c)
            for word in text.encode().split():
                word = word.decode()
                assert mine.BaseScore(c, word, d) == theirs.BaseScore(a, word, b)
                full, expected = mine.BaseFullScore(c, word, c), theirs.BaseFullScore(a, word, b)
                assert (full.log_prob, full.ngram_length, full.oov) == (expected.log_prob, expected.ngram_length, expected.oov)
                assert repr(full) == repr(expected) or full.log_prob == 0              # which may have either sign
                assert c == d and hash(c) == hash(d)
                assert (word in mine) == (word in theirs)
                a, b = b, a
    assert mine.score_many(texts) == [mine.score(text) for text in texts]
    assert mine.score_many(iter(texts), bos=False, eos=False) == [mine.score(text, False, False) for text in texts]


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_models(shared, kenlm, rng, name):
    """Models that lmplz made give the same numbers on held-out and on random text."""
    path = str(shared / "reference" / name)
    lines = (shared / "reference" / "small.heldout.txt").read_text(encoding="utf-8").splitlines()
    words = (shared / "reference" / "small.txt").read_text(encoding="utf-8").split()[:2000]

    same(kenlm, kenlm.Model(path), ours.Model(path), rng.sample(lines, 40) + sentences(rng, words, 40))


CONTEXTS = """\\data\\
ngram 1=6
ngram 2=5
ngram 3=3

\\1-grams:
-1\t<unk>
0\t<s>\t-0.3
-1\t</s>
-0.7\ta\t-0.2
-0.8\tb
-0.9\tc\t0

\\2-grams:
-0.3\t<s> a\t0
-0.4\ta b
-0.5\tb c\t-0.1
-0.6\tc a\t-0.0
-0.7\tc b\t0

\\3-grams:
-0.2\t<s> a b
-0.25\ta b c
-0.35\tc a b

\\end\\
"""


def test_contexts_without_backoffs(kenlm, tmp_path):
    """Contexts whose back-off is 0 or left away are contexts, what is no context is none: scores and states are KenLM's."""
    path = tmp_path / "contexts.arpa"
    path.write_text(CONTEXTS)
    theirs, mine = kenlm.Model(str(path)), ours.Model(str(path))
    texts = [" ".join(words) for k in range(6) for words in itertools.product(["a", "b", "c", "x"], repeat=k)]

    same(kenlm, theirs, mine, texts[:400])

    reached = []
    for text in texts[:100]:
        a, b = kenlm.State(), ours.State()
        theirs.NullContextWrite(a)
        mine.NullContextWrite(b)
        for word in text.split():
            out, ours_out = kenlm.State(), ours.State()
            theirs.BaseScore(a, word, out)
            mine.BaseScore(b, word, ours_out)
            a, b = out, ours_out
        reached.append((a, b))
    assert [a == other for a, _ in reached for other, _ in reached] == [b == other for _, b in reached for _, other in reached]


def test_our_arpa_file(made, kenlm, rng):
    """An ARPA file of ours gives the same numbers in both, and by bytes as well as by str."""
    path = str(made[1])
    theirs, mine = kenlm.Model(path), ours.LanguageModel(os.fsencode(path))

    same(kenlm, theirs, mine, sentences(rng, WORDS, 60))

    assert (mine.order, mine.path, repr(mine)) == (theirs.order, theirs.path, repr(theirs))
    assert not isinstance(ours.Model(path), ours.LanguageModel)


def test_store(made, kenlm, rng):
    """A store gives what KenLM gives from its ARPA file, within what an ARPA file rounds."""
    theirs, mine = kenlm.Model(str(made[1])), ours.Model(str(made[0]))
    for text in sentences(rng, WORDS, 60):
        expected = list(theirs.full_scores(text))
        found = list(mine.full_scores(text))

        assert [p for p, _, _ in found] == pytest.approx([p for p, _, _ in expected], abs=3e-6)
        assert [rest for _, *rest in found] == [rest for _, *rest in expected]
        assert mine.score(text) == pytest.approx(theirs.score(text), abs=1e-6 * 30)
        state = ours.State()
        mine.BeginSentenceWrite(state)
        words = [word.decode() for word in text.encode().split()]
        assert [mine.BaseScore(state, word, state) for word in [*words, "</s>"]] == [p for p, _, _ in found]


def test_unknown_words_in_ngrams(tmp_path, kenlm):
    """N-grams with <unk> are found word by word as in whole sentences, where the last words of all n-grams are listed."""
    unigrams = "-2.5\t<unk>\t-0.5\n-1\t<s>\t-0.3\n-1\t</s>\t0\n-0.7\ta\t-0.4\n"
    bigrams = "-0.1\ta <unk>\t-0.25\n-0.2\t<unk> a\t-0.125\n-0.3\t<s> <unk>\t-0.5\n"
    (tmp_path / "a.arpa").write_text(
        "\\data\\\nngram 1=4\nngram 2=3\nngram 3=1\n\n\\1-grams:\n" + unigrams + "\n\\2-grams:\n" + bigrams
        + "\n\\3-grams:\n-0.6\ta <unk> a\n\n\\end\\\n")
    import_arpa(tmp_path / "a.arpa", tmp_path / "a.kvm", tokenizer=Tokenizer.from_spec("whitespace"))

    same(kenlm, kenlm.Model(str(tmp_path / "a.arpa")), ours.Model(str(tmp_path / "a.kvm")),
         ["zzz a zzz", "a zzz a", "a a", "zzz zzz zzz a"])


def test_imported_model(made, tmp_path):
    """The file that `kvps import` makes answers as the ARPA file that it was made of."""
    import_arpa(made[1], tmp_path / "made.kvm", tokenizer=Tokenizer.from_spec("whitespace"))

    assert ours.Model(str(tmp_path / "made.kvm")).score("the whale") == ours.Model(str(made[1])).score("the whale")


def test_unigrams(tmp_path, rng):
    """A model of order 1, which KenLM refuses, has states without words."""
    with kvps.create(tmp_path / "one", order=1) as store:
        store.train([" ".join(rng.choices(WORDS, k=6)) for _ in range(50)])
    model, state = ours.Model(str(tmp_path / "one")), ours.State()
    model.BeginSentenceWrite(state)

    assert model.BaseScore(state, "whale", state) == model.score("whale", bos=False, eos=False)
    assert state == ours.State()


def test_arpa_file_is_read_once(made, tmp_path, monkeypatch):
    """The second load of an ARPA file uses what the first one made; a file that changed is read again, a link is followed."""
    path, link = tmp_path / "copy.arpa", tmp_path / "link.arpa"
    path.write_bytes(made[1].read_bytes())
    link.symlink_to(path)
    before = ours.Model(str(path)).score("the whale")
    with monkeypatch.context() as patch:
        patch.setattr("kvps.lm.arpa_read.import_arpa", None)
        assert ours.Model(str(link)).score("the whale") == before
    time.sleep(0.02)                   # more than a tick of the file system's clock
    path.write_bytes(b"# again\n" + made[1].read_bytes())
    assert ours.Model(str(path)).score("the whale") == before
    assert len(list((tmp_path / "cache" / "kvps" / "arpa").glob("*.kvm"))) == 1


def test_what_cannot_be_read(tmp_path):
    """A file that is missing, no ARPA file or KenLM's binary is an OSError of one line; what is no path a TypeError."""
    (tmp_path / "bad.arpa").write_text("no ARPA file\n")
    (tmp_path / "model.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(100))
    for name, why in (("absent.arpa", "Cannot read model"), ("bad.arpa", "line 1"), ("model.bin", "name the ARPA file")):
        with pytest.raises(OSError, match=why) as caught:
            ours.Model(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    for wrong in (None, tmp_path / "bad.arpa"):
        with pytest.raises(TypeError):
            ours.Model(wrong)


def test_what_has_no_tables_here(made, tmp_path):
    """An address and a mixture are an OSError of one line that says what to name instead, for query too."""
    kvps.mix(tmp_path / "mixed", [made[0], made[0]], ["the white whale"])
    for name, why in (("kvps://127.0.0.1:1", "the folder of the store"), (str(tmp_path / "mixed"), "a mixture: .* kvps export")):
        with pytest.raises(OSError, match=why) as caught:
            ours.Model(name)
        assert "\n" not in str(caught.value)
        with pytest.raises(kvps.DataError, match=why):
            query.main([name])


def test_arguments_by_name(made):
    """Model takes its path and its configuration by name, as KenLM's does."""
    path = str(made[1])

    assert ours.Model(path=path).score("the sea") == ours.Model(path, config=ours.Config()).score("the sea")


def test_states_as_values(made):
    """States compare, sort, hash and copy; they are neither pickled nor copied deeply; a model is pickled by its path."""
    model = ours.Model(str(made[1]))
    empty, begun, after = ours.State(), ours.State(), ours.State()
    model.BeginSentenceWrite(begun)
    model.BaseScore(begun, "the", after)
    twin = copy.copy(after)

    assert empty < begun < after and after == twin and hash(after) == hash(twin) and after >= twin and begun != after
    model.NullContextWrite(twin)
    assert twin == empty and twin != after and twin != "state" and len({empty, begun, after, twin}) == 3
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            refused(after)
    assert pickle.loads(pickle.dumps(model)).score("the sea") == model.score("the sea")


def test_wrong_arguments(made):
    """What kenlm refuses with a TypeError is refused so; a lone surrogate cannot be encoded."""
    model, state = ours.Model(str(made[1]), ours.Config()), ours.State()
    for call in (lambda: model.score(None), lambda: model.score(["the"]), lambda: model.BaseScore(state, b"the", state),
                 lambda: model.BaseScore(None, "the", state), lambda: model.score_many("the"), lambda: 1 in model,
                 lambda: ours.Model(str(made[1]), {}), lambda: state < 1):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(UnicodeEncodeError):
        model.score("\ud800")


def test_configuration(kenlm):
    """Config, LoadMethod and ARPALoadComplain have the names and values of kenlm's."""
    for name in ("LoadMethod", "ARPALoadComplain"):
        values = [{key: value for key, value in vars(getattr(module, name)).items() if key.isupper()} for module in (kenlm, ours)]
        assert values[0] == values[1]
    theirs, mine = kenlm.Config(), ours.Config()
    for key in ("load_method", "show_progress", "arpa_complain"):
        assert getattr(mine, key) == getattr(theirs, key)
        setattr(mine, key, 1)


def test_state_of_another_model(made, tmp_path, rng):
    """A state that came from another model, even of a higher order, gives wrong numbers but harms nothing."""
    with kvps.create(tmp_path / "two", order=2) as store:
        store.train(["b a", "c"])
    high, low = ours.Model(str(made[0])), ours.Model(str(tmp_path / "two"))
    for text in sentences(rng, WORDS, 50):
        state = ours.State()
        for word in text.split():
            rng.choice([high, low]).BaseScore(state, word, state)


def test_after_fork(made):
    """A child of fork() uses the model of its parent."""
    model = ours.Model(str(made[0]))
    expected = model.score("the white whale")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if model.score("the white whale") == expected and model.score_many(["the"] * 9) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_damaged_model(made, tmp_path):
    """A damaged page of a mapped model is told as such when it is met."""
    path = tmp_path / "made.kvm"
    import_arpa(made[1], path, tokenizer=Tokenizer.from_spec("whitespace"))
    data = bytearray(path.read_bytes())
    data[4096 * 2:len(data) - 8192] = bytes(len(data) - 4096 * 4)
    path.write_bytes(data)
    with pytest.raises((OSError, kvps.CorruptionError)):
        ours.Model(str(path)).score("the white whale and the sea")


LABELS = [" ", "a", "b", "c", "d", "e", ""]
VOCABULARY = ["a", "ab", "bad", "bed", "cab", "dab", "dead", "be", "add", "ace"]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, request):
    """Return the ARPA file of a model of words that are spelt with LABELS."""
    rng = random.Random(request.config.option.seed)
    folder = tmp_path_factory.mktemp("spoken")
    with kvps.create(folder / "store", order=3) as store:
        store.train([" ".join(rng.choices(VOCABULARY, weights=range(1, 11), k=rng.randrange(1, 9))) for _ in range(200)])
    with open_store(folder / "store", writable=False, wait=0) as directory:
        arpa.export(directory, folder / "spoken.arpa")
    return str(folder / "spoken.arpa")


def test_pyctcdecode(kenlm, spoken, rng, tmp_path):
    """pyctcdecode decodes the same text, with the same scores, as with kenlm; also when the model is saved and loaded."""
    pytest.importorskip("pyctcdecode", reason="needs pyctcdecode", exc_type=ImportError)
    from pyctcdecode import language_model as theirs
    from pyctcdecode.alphabet import Alphabet
    from pyctcdecode.decoder import BeamSearchDecoderCTC

    from kvps.compat import pyctcdecode as adapter

    alphabet = Alphabet.build_alphabet(LABELS)
    mine = adapter.LanguageModel(ours.Model(spoken), VOCABULARY)
    (tmp_path / "saved").mkdir()
    mine.save_to_dir(str(tmp_path / "saved"))
    models = [theirs.LanguageModel(kenlm.Model(spoken), VOCABULARY), mine,
              adapter.LanguageModel.load_from_dir(str(tmp_path / "saved"))]
    decoders = [BeamSearchDecoderCTC(alphabet, model) for model in models]
    source = np.random.default_rng(rng.randrange(2**32))
    for _ in range(15):
        logits = np.log(source.dirichlet(np.full(len(LABELS), 0.3), size=40) + 1e-9)
        expected, *found = ([(beam[0], beam[-2], beam[-1]) for beam in decoder.decode_beams(logits)] for decoder in decoders)
        assert found == [expected] * 2


@pytest.mark.parametrize("kind", ["store", "arpa", "arpa.gz", "kvm", "lm"])
def test_pyctcdecode_saves_any_model(kenlm, spoken, tmp_path, kind):
    """What save_to_dir() writes of a store, an imported model, a compressed ARPA file or one of any name is loaded again."""
    pytest.importorskip("pyctcdecode", reason="needs pyctcdecode", exc_type=ImportError)
    from pyctcdecode import language_model as theirs

    from kvps.compat import pyctcdecode as adapter

    model, saved = tmp_path / f"spoken.{kind}", tmp_path / "saved"
    saved.mkdir()
    if kind == "store":
        model = os.path.join(os.path.dirname(spoken), "store")
    elif kind == "kvm":
        import_arpa(spoken, model, tokenizer=Tokenizer.from_spec("whitespace"))
    elif kind == "arpa.gz":
        model.write_bytes(gzip.compress(pathlib.Path(spoken).read_bytes()))
    else:
        shutil.copy(spoken, model)
    mine = adapter.LanguageModel(ours.Model(os.fspath(model)), VOCABULARY, alpha=0.7, beta=2.0)
    mine.save_to_dir(str(saved))
    loaded = [adapter.LanguageModel.load_from_dir(str(saved))]
    if kind != "kvm":
        loaded.append(theirs.LanguageModel.load_from_dir(str(saved)))
    for other in loaded:
        states = [mine.get_start_state(), other.get_start_state()]
        for word in ["bad", "bed", "zzz", "ace"]:
            (expected, states[0]), (found, states[1]) = mine.score(states[0], word), other.score(states[1], word)
            assert found == pytest.approx(expected, abs=1e-5)
        assert (other.alpha, other.beta, other._unigram_set) == (0.7, 2.0, set(VOCABULARY))


def test_flashlight(kenlm, spoken, rng, tmp_path):
    """The lexicon decoder of flashlight-text, which torchaudio uses, finds the same words with the same scores as with kenlm."""
    decoder = pytest.importorskip("flashlight.lib.text.decoder", reason="needs flashlight-text")
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="needs the KenLM part of flashlight-text", exc_type=ImportError)
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    from kvps.compat import flashlight as adapter

    words = Dictionary()
    for word in VOCABULARY:
        words.add_entry(word)
    mine = adapter.LanguageModel(ours.Model(spoken), VOCABULARY)
    trie = decoder.Trie(len(LABELS), 0)
    for number, word in enumerate(VOCABULARY):
        trie.insert([LABELS.index(letter) for letter in word] + [0], number, 0.0)
    trie.smear(decoder.SmearingMode.MAX)
    options = decoder.LexiconDecoderOptions(beam_size=30, beam_size_token=7, beam_threshold=50.0, lm_weight=1.5, word_score=0.3,
                                            unk_score=-float("inf"), sil_score=0.0, log_add=False,
                                            criterion_type=decoder.CriterionType.CTC)
    source = np.random.default_rng(rng.randrange(2**32))
    for _ in range(10):
        emissions = np.ascontiguousarray(np.log(source.dirichlet(np.full(len(LABELS), 0.3), size=30) + 1e-9), np.float32)
        expected, found = ([(list(result.words), result.score) for result in
                            decoder.LexiconDecoder(options, trie, lm, 0, len(LABELS) - 1, -1, [], False).decode(
                                emissions.ctypes.data, *emissions.shape)] for lm in (KenLM(spoken, words), mine))
        assert found == expected


def test_public_names():
    """The public names are those of the kenlm module."""
    assert set(ours.__all__) == {"Model", "LanguageModel", "State", "Config", "FullScoreReturn", "LoadMethod", "ARPALoadComplain"}
    assert issubclass(ours.LanguageModel, ours.Model)
