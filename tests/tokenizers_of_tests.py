"""Tokenizers for tests: small models of libraries, if they are installed, and functions of a user's module."""
import functools
import io
import re

import pytest

# Several scripts, so that models know some of each.
TEXT = ["the white whale swims", "call me ishmael", "the cat sat on the mat", "人人生而自由，在尊严和权利上一律平等。",
        "他说：“好。”", "2024年 GPT4 模型"] * 20


def words_and_marks(line):
    """Return words and punctuation, as a user's function might."""
    return re.findall(r"\w+|[^\w\s]", line)


@functools.cache
def sentencepiece_model():
    """Return the bytes of a small model of sentencepiece; skips where that is not installed."""
    library = pytest.importorskip("sentencepiece", reason='needs sentencepiece: pip install "kvps[sentencepiece]"')
    out = io.BytesIO()
    library.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=out, vocab_size=90, minloglevel=2,
                                       character_coverage=1.0, hard_vocab_limit=False)
    return out.getvalue()


@functools.cache
def hugging_face_model():
    """Return the bytes of a small tokenizer.json; skips where tokenizers is not installed."""
    library = pytest.importorskip("tokenizers", reason='needs tokenizers: pip install "kvps[hf]"')
    made = library.Tokenizer(library.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXT, library.trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<s>"], show_progress=False))
    made.enable_truncation(3)
    made.enable_padding(length=20)
    return made.to_str().encode()


def spec_of(kind, folder):
    """Return a tokenizer of a kind as users name it, its file being in `folder`; skips where its library is not installed."""
    if kind == "jieba":
        pytest.importorskip("jieba", reason='needs jieba: pip install "kvps[jieba]"')
    if kind == "function":
        return f"{__name__}:words_and_marks"
    if kind == "sentencepiece":
        (folder / "unigram.model").write_bytes(sentencepiece_model())
        return f"sentencepiece:{folder / 'unigram.model'}"
    if kind == "hf":
        (folder / "tokenizer.json").write_bytes(hugging_face_model())
        return f"hf:{folder}"
    return kind


KINDS = ["whitespace", "char", "wordpunct", "sentencepiece", "hf", "jieba", "function"]
