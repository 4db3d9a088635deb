"""Text data sets: labelled texts, texts to model the language of, and pairs to translate.

    data = BBCTopics(vocab_size=8192, batch_size=16, tokens=16384)

Batches are packed by default, and hold about as many `tokens` as is said, or `batch_size` texts.
What a model is asked about a text is its label, or an objective: `NextToken`, `Masking`.
"""

from nlp.data.bbc import BBCTopics
from nlp.data.files import LabelledFile, TextFiles
from nlp.data.gettext_catalogs import MessageCatalogs
from nlp.data.hf_datasets import HubTexts
from nlp.data.module import TextData, TokenData
from nlp.data.objectives import Masking, NextToken, Objective
from nlp.data.packing import IGNORED, Texts, collate
from nlp.data.pairs import Pair, PairData, PairFile
from nlp.data.texts import Labelled
from nlp.data.tweets import TweetSentiment

__all__ = [
    "IGNORED",
    "BBCTopics",
    "HubTexts",
    "Labelled",
    "LabelledFile",
    "Masking",
    "MessageCatalogs",
    "NextToken",
    "Objective",
    "Pair",
    "PairData",
    "PairFile",
    "TextData",
    "TextFiles",
    "Texts",
    "TokenData",
    "TweetSentiment",
    "collate",
]
