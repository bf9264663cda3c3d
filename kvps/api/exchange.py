"""Models from and for other tools: ARPA files, and counts in the text format of Google's n-grams."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from kvps.errors import ArgumentError
from kvps.lm.smoothing import DEFAULT
from kvps.text.streams import DEFAULT_MAX_RATIO
from kvps.text.tokenize import Spec, Tokenizer
from kvps.units import check_labels, thread_count


def import_arpa(out: str | PathLike[str], source: str | PathLike[str], *, tokenizer: Spec = "whitespace", lowercase: bool = False,
                normalize: str | None = None, split_sentences: bool = False, max_ratio: int = DEFAULT_MAX_RATIO,
                list_ngrams: bool = True, threads: int | None = None,
                progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Make a model of an ARPA file, of any order up to 8; load(out) opens it. It cannot be updated.

    Args:
        out: a new file, or one to be replaced.
        source: the ARPA file, plain or compressed (.gz, .bz2, .xz, .zst); its n-grams may stand in any order.
        tokenizer, lowercase, normalize, split_sentences: what makes words of the text that the model is to score, as in create().
        max_ratio: how many times as long as a compressed file its text may be; 0 for no limit.
        list_ngrams: keep a list of the n-grams too, 4 bytes for each of their words and 4 more: next words and completions come
            fast, and export() needs it. Scoring does not.
        progress: of (done, total) [bytes of the file].

    Returns:
        {"path", "order", "ngrams": {order: n}, "bytes"}.

    Raises:
        DataError: the file is not as KenLM accepts it, or cannot be read; `line` tells where. ArgumentError: a tokenizer or
            max_ratio that is not possible, or something else than a model is at `out`. StoreError: `out` cannot be written.
    """
    from kvps.lm import container
    from kvps.lm.arpa_read import import_arpa

    container.refuse_others(Path(out))
    words = Tokenizer.from_spec(tokenizer, lowercase, normalize=normalize, split_sentences=split_sentences, trusted=True)
    return import_arpa(Path(source), Path(out), tokenizer=words, max_ratio=max_ratio, list_ngrams=list_ngrams,
                       threads=thread_count(threads), progress=progress)


def export(model: str | PathLike[str], out: str | PathLike[str], order: int | None = None, *, smoothing: str = DEFAULT,
           prune: Sequence[int] = (), prune_entropy: float = 0.0, prune_to: int | None = None,
           limit_vocab: Iterable[str] | None = None, interpolate_unigrams: bool = True, vocab_pad: int = 0, counts: bool = False,
           labels: Iterable[str] | None = None, threads: int | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Write the last version of a store as an ARPA file, or an imported model, or a mixture, or the counts of a store.

    Pruning and vocabulary are lmplz's: counts are those of the text, the mass of what is left out goes to the back-offs, and no
    discount changes. A mixture has the n-grams of its models together, each with the probability that the mixture gives to it.
    An imported model has its own probabilities; where n-grams go, back-offs let contexts add up to what they did.

    Args:
        model: a store's directory, the address of a server, an imported model or ARPA file, which takes order,
            prune_entropy, prune_to, limit_vocab, threads and progress only, or the file of a mixture, which takes order, threads
            and progress only.
        out: the ARPA file, compressed as its name says (.gz, .bz2, .xz, .zst); with `counts` a new folder, that
            from_counts() reads.
        order: highest order; the model's by default.
        smoothing: NAME or NAME:VALUE: modified-kneser-ney (mkn), kneser-ney (kn), absolute-discounting (ad), witten-bell (wb).
            The latter two give <s> a probability, which no ARPA file has: its contexts lack it then.
        prune: by order, the last one for all higher ones: leave out n-grams that occur so often or less.
        prune_entropy: leave out n-grams worth less than this, about the part by which perplexity rises without; bigrams count
            for three in a store.
        prune_to: leave out the n-grams worth least, until so many are left; words stay.
        limit_vocab: leave out n-grams with other words than these.
        interpolate_unigrams: mix unigrams with the uniform distribution; otherwise `<unk>` gets what they lose.
        vocab_pad: take the vocabulary for at least so large.
        counts: write raw counts instead, as Google's n-grams; takes order, threads and progress only.
        labels: only the text of these, "-" being text without one.
        progress: of (done, total) [n-grams; with `counts` orders].

    Returns:
        {"path", "version", "order", "smoothing" (not with `counts`), "ngrams": {order: n}, "bytes"}.

    Raises:
        ArgumentError: choices that are not possible, or not for this model; a folder of counts that is there.
        StoreError: `out` cannot be written, or a store of the mixture changed meanwhile.
    """
    from kvps.jobs.export import export
    from kvps.lm.arpa import Choices

    choices = Choices(smoothing, prune, None if limit_vocab is None else _vocabulary(limit_vocab), interpolate_unigrams,
                      vocab_pad, prune_entropy, prune_to)
    return export(model, out, order=order, choices=choices, counts=counts, labels=check_labels(labels),
                  threads=thread_count(threads), progress=progress)


def _vocabulary(words: Iterable[str]) -> str:
    """Return words as a text has them, with separators between."""
    from kvps.jobs.limit import word_bytes

    if isinstance(words, (str, bytes)):
        raise ArgumentError("expected an iterable of words, not one text; put it in a list")
    return "\n".join(word_bytes(word).decode() for word in words)
