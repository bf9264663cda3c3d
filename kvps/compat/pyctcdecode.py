"""A language model of kvps for pyctcdecode, which decodes the output of speech recognisers.

    from kvps.compat import kenlm, pyctcdecode as lm

    decoder = BeamSearchDecoderCTC(Alphabet.build_alphabet(labels), lm.LanguageModel(kenlm.Model("news.kvps"), unigrams))

Needs pyctcdecode, which asks for an older NumPy than ours and yet runs with it: pip install --no-deps pyctcdecode pygtrie.
"""
from __future__ import annotations

from pyctcdecode import language_model as theirs
from pyctcdecode.constants import LOG_BASE_CHANGE_FACTOR

from kvps.compat.kenlm import Model, State


class LanguageModel(theirs.LanguageModel):
    """pyctcdecode's LanguageModel, with its arguments, over a kvps.compat.kenlm.Model."""

    def get_start_state(self) -> State:
        """Return the state of a text's beginning."""
        state = State()
        if self.score_boundary:
            self._kenlm_model.BeginSentenceWrite(state)
        return state

    def score(self, prev_state: State, word: str, is_last_word: bool = False) -> tuple[float, State]:
        """Return (weighted log probability of a word behind prev_state, the state behind the word)."""
        model, after = self._kenlm_model, State()
        log10 = model.BaseScore(prev_state, word, after)
        if (self._unigram_set and word not in self._unigram_set) or word not in model:
            log10 += self.unk_score_offset
        if is_last_word and self.score_boundary:
            log10 += model.BaseScore(after, "</s>", State())
        return self.alpha * log10 * LOG_BASE_CHANGE_FACTOR + self.beta, after

    @classmethod
    def load_from_dir(cls, filepath: str, unigram_encoding: str | None = None) -> LanguageModel:
        """Load what save_to_dir() wrote, or what pyctcdecode did with an ARPA file."""
        import json

        names = cls.parse_directory_contents(filepath)
        with open(names["json_attrs"], encoding="utf-8") as file:
            attributes = json.load(file)
        with open(names["unigrams"], encoding=unigram_encoding) as file:
            unigrams = file.read().splitlines()
        return cls(Model(names["kenlm"]), unigrams, **attributes)
