"""End to end, beside nltk.lm: the counting of an order-3 model."""
import importlib.util
import os

from bench import measure, text
from bench.setting import benchmark, times

ORDER = 3
SMALL_DOCUMENTS = 100


@benchmark("nltk", "training on Reuters at order 3 (each document a sentence), seconds; beside nltk.lm's fit")
def nltk(setting):
    """Fit nltk.lm's MLE and train a store, interleaved.

    In process: the call alone, imports and the reading of the corpus apart; for nltk the padding, the making of n-grams
    and fit() of a list of lists of words, for kvps the same documents as a text file, through its Python interface.
    Command: `kvps train` as a whole, start of Python included, beside the same fit().
    Without the corpus (or without nltk to read it) the training text is used.
    """
    documents = setting.scratch("documents.txt")
    with_nltk = importlib.util.find_spec("nltk")
    corpus = bool(with_nltk) and _reuters(setting, documents)
    if not corpus:
        print("  (no Reuters corpus here: documents are sentences of the training text)")
        text.cut(setting.train, documents, 0, min(1, 50_000 / setting.sentences))
    setting.warm(documents)
    taken = {"in process": [], "command": []}

    def ours():
        store = setting.scratch("store")
        found, run = setting.child("kvps", documents, str(ORDER), store)
        taken["in process"].append(found["fit_s"])
        setting.drop(store)
        return run

    def command():
        store = setting.scratch("store")
        run = setting.train_kvps(store, documents, order=ORDER)
        taken["command"].append(run.wall_s)
        setting.drop(store)
        return run

    fits = []

    def theirs():
        found, run = setting.child("nltk", documents, str(ORDER))
        fits.append(found["fit_s"])
        return run

    if not with_nltk:
        print("  (nltk is not importable: measured without)")
    contenders = {"kvps": ours, "kvps train": command, "nltk.lm": theirs if with_nltk else None}
    runs = measure.interleave(setting.runs, contenders)
    peer = {"nltk.lm": fits} if fits else {}
    setting.figure("fit_s", {"kvps": taken["in process"]} | peer, better="less", goal="100 times faster")
    setting.figure("fit_by_command_s", {"kvps": taken["command"]} | peer, better="less")
    setting.figure("fit_peak_rss_bytes", times(runs, "peak_rss_bytes"))
    setting.figure("documents", {"kvps": text.count_lines(documents)})
    setting.figure("words", {"kvps": text.count_words(documents)})


def _reuters(setting, documents):
    """Write Reuters to `documents`, one a line, and tell whether it is there to be written."""
    nltk_data = text.data() / "nltk_data" if text.data() else None
    paths = [str(nltk_data)] if nltk_data and nltk_data.is_dir() else []
    paths += [os.environ["NLTK_DATA"]] if os.environ.get("NLTK_DATA") else []
    limit = "0" if setting.full else str(SMALL_DOCUMENTS)
    found, _ = setting.child("reuters", documents, limit, environment={"NLTK_DATA": os.pathsep.join(paths)})
    return found["documents"] > 0
