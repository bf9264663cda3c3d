"""n-gram language models that can be trained, updated, forgotten and queried, on an embedded, durable parameter server.

    create(path, order=5)     make a Store          Store.train / update / forget, count, vocabulary, model ...
    open(path)                open one              Model.score / perplexity / log10 / refresh ...
                                                    CountTable.push / pull / scan: of Store.table(name)
    load(path, smoothing)     open one as a Model   errors: KvpsError and what is below it, in kvps.errors
    restore(place, into, ...) make one of a checkpoint
    check(path, level)        look for damage
    audit(path, smoothing)    verify that a model is a distribution
    merge(out, stores)        make a store of the counts of others
    mix(out, models, dev)     weights by which models together foresee a text best
    import_arpa(out, source)  make a model of an ARPA file
    export(model, out)        write one, or counts
    connect(address)          the tables of a store that kvps serve serves

To read the source, begin with api/ (these names), then store/FORMAT.md with store/format.py (what is stored),
jobs/train.py (what happens to a store, step by step), lm/compile.py and lm/model.py (how counts become a model that
answers), and one kernel: ext/kvps/_statistics.pyx.

Importing kvps imports none of that: a name is loaded when it is first used.
"""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvps import errors as errors
    from kvps.api import Change as Change
    from kvps.api import Classified as Classified
    from kvps.api import Classifier as Classifier
    from kvps.api import Completion as Completion
    from kvps.api import Confusion as Confusion
    from kvps.api import CountTable as CountTable
    from kvps.api import Evaluation as Evaluation
    from kvps.api import ExplainedWord as ExplainedWord
    from kvps.api import Finding as Finding
    from kvps.api import Model as Model
    from kvps.api import NextWords as NextWords
    from kvps.api import Part as Part
    from kvps.api import Score as Score
    from kvps.api import Statistics as Statistics
    from kvps.api import Store as Store
    from kvps.api import Vocabulary as Vocabulary
    from kvps.api import WordScore as WordScore
    from kvps.api import audit as audit
    from kvps.api import check as check
    from kvps.api import connect as connect
    from kvps.api import create as create
    from kvps.api import export as export
    from kvps.api import from_counts as from_counts
    from kvps.api import import_arpa as import_arpa
    from kvps.api import load as load
    from kvps.api import merge as merge
    from kvps.api import mix as mix
    from kvps.api import open as open
    from kvps.api import restore as restore
    from kvps.errors import ArgumentError as ArgumentError
    from kvps.errors import CorruptionError as CorruptionError
    from kvps.errors import DataError as DataError
    from kvps.errors import DiscountError as DiscountError
    from kvps.errors import InputGone as InputGone
    from kvps.errors import KvpsError as KvpsError
    from kvps.errors import Stopped as Stopped
    from kvps.errors import StoreError as StoreError
    from kvps.errors import StoreFull as StoreFull
    from kvps.errors import StoreLocked as StoreLocked
    from kvps.errors import Unreachable as Unreachable
    from kvps.errors import VersionMismatch as VersionMismatch
    from kvps.errors import VocabularyFull as VocabularyFull

__version__ = "0.1.0"  # as in pyproject.toml

_API = ("Change", "Classified", "Classifier", "Completion", "Confusion", "CountTable", "Evaluation", "ExplainedWord", "Finding",
        "Model", "NextWords", "Part", "Score", "Statistics", "Store", "Vocabulary", "WordScore", "audit", "check", "connect",
        "create", "export", "from_counts", "import_arpa", "load", "merge", "mix", "open", "restore")
_ERRORS = ("ArgumentError", "CorruptionError", "DataError", "DiscountError", "InputGone", "KvpsError", "Stopped",
           "StoreError", "StoreFull", "StoreLocked", "Unreachable", "VersionMismatch", "VocabularyFull")
__all__ = ["__version__", "errors", *_API, *_ERRORS]


def __getattr__(name: str) -> object:
    """Load a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'kvps' has no attribute {name!r}")
    import importlib

    if name == "errors":
        return importlib.import_module("kvps.errors")
    value = getattr(importlib.import_module("kvps.api" if name in _API else "kvps.errors"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
