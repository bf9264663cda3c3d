"""A language model of kvps for the decoders of flashlight-text, and so for torchaudio's ctc_decoder.

    from kvps.compat import flashlight, kenlm

    words = create_word_dict(load_words("lexicon.txt"))
    lm = flashlight.LanguageModel(kenlm.Model("news.kvps"), [words.get_entry(i) for i in range(words.index_size())])
    decoder = ctc_decoder("lexicon.txt", tokens, lm=lm, lm_dict="words.txt")

torchaudio's CTCDecoderLM is the class LM of flashlight-text, which is what this is too.
Needs flashlight-text: pip install flashlight-text.
"""
from __future__ import annotations

from collections.abc import Sequence

from flashlight.lib.text.decoder import LM, LMState

from kvps.compat.kenlm import Model, State


class LanguageModel(LM):
    """Scores words by their numbers in the decoder's dictionary. One decoder at a time uses it."""

    def __init__(self, model: Model, words: Sequence[str]) -> None:
        """Take a model, and the words of the decoder in the order of their numbers."""
        super().__init__()
        self._model, self._words = model, list(words)
        self._states: dict[LMState, State] = {}        # ours behind each of the decoder's; its nodes are made once

    def start(self, start_with_nothing: bool) -> LMState:
        """Begin a text, behind <s> or behind nothing; forgets the states of the last one."""
        self._states.clear()
        state, ours = LMState(), State()
        if not start_with_nothing:
            self._model.BeginSentenceWrite(ours)
        self._states[state] = ours
        return state

    def score(self, state: LMState, usr_token_idx: int) -> tuple[LMState, float]:
        """Return (state behind a word, its log10 probability)."""
        return self._step(state, usr_token_idx, self._words[usr_token_idx])

    def finish(self, state: LMState) -> tuple[LMState, float]:
        """Return (state behind </s>, its log10 probability)."""
        return self._step(state, -1, "</s>")

    def _step(self, state: LMState, number: int, word: str) -> tuple[LMState, float]:
        after, ours = state.child(number), State()
        score = self._model.BaseScore(self._states[state], word, ours)
        self._states[after] = ours
        return after, score
