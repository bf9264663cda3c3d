"""nltk.lm.util, as it is."""
from nltk.lm.util import NEG_INF, POS_INF, log_base2

__all__ = ["NEG_INF", "POS_INF", "log_base2"]
