"""KenLM's Python module over kvps: `from kvps.compat import kenlm` in the place of `import kenlm`.

    model = kenlm.Model("news.arpa")        # or the folder of a store, or a model that `kvps import` made
    model.score("this is a sentence .")     # log10, with <s> and </s>

Names, arguments and results are those of kenlm 0.3.0: log10 as float32, words parted at blanks of ASCII, `<s>` and `</s>`
words like others. What differs:

- Model takes stores too (they answer with modified Kneser-Ney), ARPA files of order 1 to 8, but no binary file of KenLM.
- It takes no address and no mixture: KenLM's calls need one model's tables in this process. `kvps export` makes an ARPA file.
- An ARPA file is made into a model once, in the user's cache folder, and mapped from there until it changes.
- Model.score_many(sentences) scores a list, faster than one by one.
- A fresh State is that of no words; in kenlm it is whatever lay in memory. `<` of states of one length has another order.
- A NUL parts no words and ends none; kenlm takes what stands before it for the word.
- Of a model that lists n-grams without their last words, ngram_length is the length of an n-gram that is listed.

A model can be used from several threads, and after fork().
"""
from __future__ import annotations

import os
from collections.abc import Iterator

from kvps._walker import State, Walker
from kvps.errors import ArgumentError, KvpsError
from kvps.lm import opening
from kvps.lm.mixture import MixtureFile
from kvps.lm.scorer import Scorer
from kvps.lm.smoothing import DEFAULT, parse
from kvps.ps.places import address

__all__ = ["ARPALoadComplain", "Config", "FullScoreReturn", "LanguageModel", "LoadMethod", "Model", "State"]


class LoadMethod:
    """How KenLM loads a binary file. Here they all mean the same: a model is mapped, and read where it is used."""

    LAZY = 0
    POPULATE_OR_LAZY = 1
    POPULATE_OR_READ = 2
    READ = 3
    PARALLEL_READ = 4


class ARPALoadComplain:
    """What KenLM says about ARPA files; here a warning is logged where <unk> is missing."""

    ALL = 0
    EXPENSIVE = 1
    NONE = 2


class Config:
    """What KenLM takes when it loads a model; taken so that code runs unchanged, and of no effect."""

    def __init__(self) -> None:
        """Have KenLM's defaults."""
        self.load_method = LoadMethod.POPULATE_OR_READ
        self.show_progress = True
        self.arpa_complain = ARPALoadComplain.ALL


class FullScoreReturn:
    """log10 probability of a word, order of the n-gram that gave it, and whether the word is unknown."""

    __slots__ = ("_log_prob", "_ngram_length", "_oov")

    def __init__(self, log_prob: float, ngram_length: int, oov: bool) -> None:
        """Take what it holds."""
        self._log_prob, self._ngram_length, self._oov = log_prob, ngram_length, oov

    @property
    def log_prob(self) -> float:
        """The log10 probability."""
        return self._log_prob

    @property
    def ngram_length(self) -> int:
        """The order of the n-gram that gave it."""
        return self._ngram_length

    @property
    def oov(self) -> bool:
        """Whether the word is unknown."""
        return self._oov

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._log_prob!r}, {self._ngram_length!r}, {self._oov!r})"


class Model(Walker):
    """A language model. What is not written here comes from the kernel: score, BaseScore, score_many ... ."""

    path: bytes

    def __new__(cls, *args: object, **options: object) -> Model:
        """Make it; the arguments are __init__'s."""
        return super().__new__(cls)

    def __init__(self, path: str | bytes, config: Config | None = None) -> None:
        """Open a model.

        Args:
            path: an ARPA file (plain, .gz, .bz2, .xz, .zst), a model of `kvps import`, or the folder of a store.
            config: KenLM's; of no effect.

        Raises:
            OSError: there is no model that can be read.
        """
        if not isinstance(path, (str, bytes)):
            raise TypeError(f"Cannot convert {type(path)} to string")
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"Argument 'config' has incorrect type (expected Config, got {type(config).__name__})")
        name = os.fsdecode(path)
        try:
            scorer = _opened(name)
        except KvpsError as exc:
            raise OSError(f"Cannot read model '{name}' ({exc})") from exc
        super().__init__(scorer.tables, scorer.words)
        self._scorer = scorer
        self.path = os.fsencode(os.path.abspath(name))

    def perplexity(self, sentence: str | bytes) -> float:
        """Return the perplexity of one sentence, </s> included: 10 ** (-score / (words + 1))."""
        score = self.score(sentence)
        n_words = len((sentence.encode() if isinstance(sentence, str) else sentence).split()) + 1
        return 10.0 ** (-score / n_words)

    def full_scores(self, sentence: str | bytes, bos: bool = True, eos: bool = True) -> Iterator[tuple[float, int, bool]]:
        """Yield (log10 probability, order of the n-gram that gave it, is unknown) of each word of a sentence, then of </s>."""
        yield from self.tokens(sentence, bos, eos)

    def BaseFullScore(self, in_state: State, word: str, out_state: State) -> FullScoreReturn:
        """Return what is known of p(word | in_state), and make out_state the state behind the word."""
        return FullScoreReturn(*self.full_step(in_state, word, out_state))

    def word_id(self, word: bytes) -> int:
        """Return the number of a word, that of an ARPA file by its lines; 0, that of <unk>, where there is none. Not KenLM's."""
        return self._scorer.number(super().word_id(word))

    def __repr__(self) -> str:
        return f"<Model from {os.path.basename(self.path)!r}>"

    def __reduce__(self) -> tuple:
        return Model, (self.path,)


class LanguageModel(Model):
    """The old name of Model."""


def _opened(name: str) -> Scorer:
    """Return the model that a name means."""
    if address(name) is not None:
        raise ArgumentError("an address: these calls need the model's tables in this process; name the folder of the store, or an "
                            "ARPA file that kvps export makes of it")
    with opening.open_model_place(os.path.realpath(name)) as opened:
        if isinstance(opened, MixtureFile):
            raise ArgumentError("a mixture: these calls need the tables of one model; name an ARPA file that kvps export makes "
                                "of it")
        return opening.load(opened, Scorer, parse(DEFAULT), None)
