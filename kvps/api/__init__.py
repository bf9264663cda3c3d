"""kvps from Python: a Store takes text and gives it back as counts; a Model is a view of a store that answers.

    with kvps.create("news", order=3) as store:
        store.train(["the cat sat", "the dog sat"])
        with store.model() as model:
            model.score("the cat ran")

Stores and models may be used from several threads at once. After fork() a child opens its own.
A store opened for reading takes the owner lock for the time of each call that writes, so many processes can hold it
open and take turns; opened with writable=True it keeps the lock until it is closed.
What a call does is written in kvps/jobs/ (writing) and kvps/lm/ (reading); this module joins them.
"""
from kvps.api.exchange import export, import_arpa
from kvps.api.mixing import Classifier, mix
from kvps.api.model import Model, WordScore, load
from kvps.api.store import Change, Store, audit, check, connect, create, from_counts, merge, open, restore
from kvps.api.words import Vocabulary
from kvps.lm.classify import Classified, Confusion
from kvps.lm.completion import Completion
from kvps.lm.explain import ExplainedWord, Part
from kvps.lm.foresight import NextWords
from kvps.lm.prediction import Evaluation
from kvps.lm.scorer import Score
from kvps.lm.statistics import Statistics
from kvps.ps.table import CountTable
from kvps.store.findings import Finding

__all__ = ["Change", "Classified", "Classifier", "Completion", "Confusion", "CountTable", "Evaluation", "ExplainedWord", "Finding",
           "Model", "NextWords", "Part", "Score", "Statistics", "Store", "Vocabulary", "WordScore", "audit", "check", "connect",
           "create", "export", "from_counts", "import_arpa", "load", "merge", "mix", "open", "restore"]
