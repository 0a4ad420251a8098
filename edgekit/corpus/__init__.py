"""Text to fit weights to and to train on: named sources -> windows of tokens, and a card that says what they are."""

from edgekit.corpus.packaged import PACKAGED
from edgekit.corpus.reading import Corpus, read_corpus
from edgekit.corpus.sources import SELF, Sample

__all__ = ["PACKAGED", "SELF", "Corpus", "Sample", "read_corpus"]
