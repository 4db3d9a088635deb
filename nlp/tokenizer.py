"""Texts to token ids and back, by a byte-level BPE that is trained on the texts at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import tokenizers

PAD, START = "<pad>", "<s>"
#: The 256 bytes and the two tokens that are no text.
SMALLEST = 258


class Tokenizer:
    """Byte-level byte-pair encoding (Sennrich et al., 2016; bytes as in GPT-2, 2019).

    Every byte is a token of its own before any merge, so no text is out of vocabulary and
    `decode(encode(text)) == text` for every `str`. Every text begins with the token `<s>`, so an
    empty text is one token long and "first" pooling has a token to read, as BERT's [CLS].
    "<s>" or "<pad>" written *in* a text is text.

    Args:
        backend: a tokenizer of the `tokenizers` package with the tokens `<pad>` and `<s>`; made by
            `train` or `load`.

    Raises:
        UsageError: the package `tokenizers` is not installed; names the extra that installs it.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        # A text must not be able to write a special token
        backend.encode_special_tokens = True
        self.pad, self.start = (self._id(token) for token in (PAD, START))

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return int(found)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # which a copy of the backend forgets

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, *, min_count: int = 2) -> Self:
        """Learns merges from `texts`; the same texts give the same tokenizer.

        Args:
            texts: what to learn from: training texts alone.
            vocabulary: number of tokens, at most; at least 258, the bytes and special tokens.
            min_count: how often a pair must occur to be merged.

        Raises:
            ValueError: `vocabulary` is below 258.
        """
        if vocabulary < SMALLEST:
            raise ValueError(
                f"vocabulary must be at least {SMALLEST} (256 bytes, {PAD}, {START}), "
                f"got {vocabulary}"
            )
        package = _package()
        backend = package.Tokenizer(package.models.BPE())
        backend.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = package.decoders.ByteLevel()
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=min_count,
            special_tokens=[PAD, START],
            initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """From a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no tokenizer file {str(path)!r}")
        return cls(_package().Tokenizer.from_file(str(path)))

    def save(self, path: Path | str) -> None:
        """Writes `tokenizer.json`, in the format that all of Hugging Face reads."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What `save` writes."""
        return str(self._backend.to_str())

    def __len__(self) -> int:
        """How many tokens there are: ids are below it."""
        return int(self._backend.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, `<s>` first.

        Raises:
            TypeError: a single string where a list of texts is expected, or a text that is none.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a list of str, got {texts!r:.80}")
        # Surrogates are no text and have no bytes; everything else passes unchanged
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encodings = self._backend.encode_batch(clean, add_special_tokens=False)
        return [[self.start, *encoding.ids] for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as a reader wants to see it: a leading space as "·", part of a character as
        its byte in hexadecimal."""
        return [self._piece(token) for token in ids]

    def _piece(self, token: int) -> str:
        if token in (self.pad, self.start):
            return PAD if token == self.pad else START
        # One character of a byte-level token stands for one byte
        characters = self._backend.id_to_token(token)
        if characters is None:
            raise ValueError(f"ids are below {len(self)}, got {token}")
        spelled = bytes(_BYTE[c] for c in characters)
        try:
            text = spelled.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"⟨{byte:02x}⟩" for byte in spelled)
        return text.replace(" ", "·").replace("\n", "↵").replace("\r", "↵").replace("\t", "→")


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for 256, 257, ..."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE = _bytes_of_characters()


def _package() -> Any:
    """The package `tokenizers`, wanted only once a tokenizer is made."""
    from attention_core.training import require

    require("tokenizers", extra="text")
    import tokenizers

    return tokenizers
