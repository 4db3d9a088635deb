"""What text models are trained for."""

from nlp.tasks.base import TextTask
from nlp.tasks.classification import TextClassification
from nlp.tasks.tokens import CausalLanguageModelling, MaskedLanguageModelling, TokenTask
from nlp.tasks.translation import Translation

__all__ = [
    "CausalLanguageModelling",
    "MaskedLanguageModelling",
    "TextClassification",
    "TextTask",
    "TokenTask",
    "Translation",
]
