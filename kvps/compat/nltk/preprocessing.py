"""nltk.lm.preprocessing, as it is."""
from nltk.lm.preprocessing import flatten, pad_both_ends, padded_everygram_pipeline, padded_everygrams

__all__ = ["flatten", "pad_both_ends", "padded_everygram_pipeline", "padded_everygrams"]
