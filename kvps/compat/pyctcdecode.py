"""A language model of kvps for pyctcdecode, which decodes the output of speech recognisers.

    from kvps.compat import kenlm, pyctcdecode as lm

    decoder = BeamSearchDecoderCTC(Alphabet.build_alphabet(labels), lm.LanguageModel(kenlm.Model("news.kvps"), unigrams))

Needs pyctcdecode, which asks for an older NumPy than ours and yet runs with it: pip install --no-deps pyctcdecode pygtrie.
"""
from __future__ import annotations

import json
import os
import shutil

from pyctcdecode import language_model as theirs
from pyctcdecode.constants import LOG_BASE_CHANGE_FACTOR

from kvps.compat.kenlm import Model, State
from kvps.lm import container
from kvps.lm.arpa import export
from kvps.store.directory import open_store
from kvps.text.streams import SUFFIXES, failures_named, open_stream


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

    def save_to_dir(self, filepath: str, unigram_encoding: str | None = None) -> None:
        """Save to a folder that is there, of which load_from_dir() makes the same model again.

        Of a store, or a compressed ARPA file, an ARPA file is written, with which pyctcdecode loads the folder too. A model of
        `kvps import` is copied.
        """
        with open(os.path.join(filepath, self._ATTRS_SERIALIZED_FILENAME), "w", encoding="utf-8") as file:
            json.dump(self.serializable_attrs, file)
        with open(os.path.join(filepath, self._UNIGRAMS_SERIALIZED_FILENAME), "w", encoding=unigram_encoding) as file:
            file.writelines(f"{word}\n" for word in sorted(self._unigram_set))
        source, target = os.fsdecode(self._kenlm_model.path), os.path.join(filepath, "model.arpa")
        if os.path.isdir(source):
            with open_store(source) as store:
                export(store, target)
        elif container.is_model(source):
            shutil.copyfile(source, os.path.join(filepath, "model.bin"))
        else:
            packed = SUFFIXES.get(os.path.splitext(source)[1])
            with failures_named(source, packed), open_stream(source, packed, max_ratio=0) as text, open(target, "wb") as file:
                shutil.copyfileobj(text, file)

    @classmethod
    def load_from_dir(cls, filepath: str, unigram_encoding: str | None = None) -> LanguageModel:
        """Load what save_to_dir() wrote, or what pyctcdecode did with an ARPA file."""
        names = cls.parse_directory_contents(filepath)
        with open(names["json_attrs"], encoding="utf-8") as file:
            attributes = json.load(file)
        with open(names["unigrams"], encoding=unigram_encoding) as file:
            unigrams = file.read().splitlines()
        return cls(Model(names["kenlm"]), unigrams, **attributes)
