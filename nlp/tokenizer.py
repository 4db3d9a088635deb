"""Texts to token ids and back: byte-level BPE or WordPiece trained on the texts at hand, or any
tokenizer of the Hugging Face ecosystem from its file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.errors import UsageError

if TYPE_CHECKING:
    import tokenizers

PAD, START, END, MASK = "<pad>", "<s>", "</s>", "<mask>"
SPECIAL = [PAD, START, END, MASK]

#: The names that tokens with a role go by; the first that a tokenizer has is taken.
ROLES = {
    "pad": (PAD, "[PAD]", "<|padding|>"),
    "start": (START, "[CLS]", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "end": (END, "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": (MASK, "[MASK]"),
}

#: Bytes and special tokens; WordPiece has each byte twice, as a word's first and as a later one.
SMALLEST = {"bpe": 256 + len(SPECIAL), "wordpiece": 512 + len(SPECIAL)}

#: The longest word that WordPiece looks up, in bytes; longer ones are cut, so that none is unknown.
LONGEST_WORD = 100

#: The longest word that BPE learns from, in bytes; longer ones, such as base64 or DNA, are cut, as
#: learning takes the square of it. To read a text none is cut.
LONGEST_LEARNT = 1000


class Tokenizer:
    """Texts to token ids and back.

    One made by `train` has every byte as a token of its own, so no text is out of vocabulary and
    ``decode(encode([text])[0]) == text`` for every `str`. Its texts begin with the token ``<s>``,
    so an empty text is one token long and "class" pooling has a token to read, as BERT's [CLS].
    One made by `load` puts in front and at the end what its file says.

    A special token's name *written in* a text is text.

    Args:
        backend: a tokenizer of the package `tokenizers`; its truncation and padding are switched
            off, which would lose text.

    Attributes:
        roles: the ids of the tokens "pad", "start", "end" and "mask", as far as it has them.
        special: the ids of all tokens that are no text.

    Raises:
        UsageError: the package `tokenizers` is not installed; names the extra that installs it.
    """

    @checked
    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        if not isinstance(backend, _package().Tokenizer):
            raise TypeError(
                f"backend must be a tokenizers.Tokenizer, got {type(backend).__name__}: texts are "
                "for Tokenizer.train, files for Tokenizer.load"
            )
        self._backend = backend
        # A text must not be able to write a special token
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder().items()
        self.special = frozenset(id for id, token in added if token.special)
        found = {
            role: [id for name in names if (id := backend.token_to_id(name)) is not None]
            for role, names in ROLES.items()
        }
        self.roles = {role: ids[0] for role, ids in found.items() if ids}
        # A file may leave ids out: then there are fewer tokens than ids
        self._length = 1 + max(backend.get_vocab().values(), default=-1)
        self._is_wordpiece = isinstance(backend.model, _package().models.WordPiece)
        self._has_bytes = all(backend.token_to_id(c) is not None for c in _BYTE)
        # As of SentencePiece (Llama 2, T5)
        self._has_spaces = not self._has_bytes and backend.token_to_id("▁") is not None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # which a copy of the backend forgets

    def _role(self, role: str) -> int:
        if role not in self.roles:
            raise UsageError(f"the tokenizer has no {role} token, named {' or '.join(ROLES[role])}")
        return self.roles[role]

    @property
    def pad(self) -> int:
        """The id that fills padded batches; UsageError where there is none, as with the others."""
        return self._role("pad")

    @property
    def start(self) -> int:
        """The id that a text begins with; of a tokenizer without one the padding's, as in T5."""
        return self._role("start" if "start" in self.roles or "pad" not in self.roles else "pad")

    @property
    def end(self) -> int:
        """The id that a text ends with."""
        return self._role("end")

    @property
    def mask(self) -> int:
        """The id that stands for a token to be named."""
        return self._role("mask")

    @classmethod
    @checked
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        kind: Literal["bpe", "wordpiece"] = "bpe",
        min_count: int = 2,
    ) -> Self:
        """Learn pieces of words from `texts`; the same texts give the same tokenizer.

        Args:
            texts: what to learn from: training texts alone.
            vocab_size: number of tokens, at most; at least the bytes and special tokens, 260, or
                516 for WordPiece.
            kind: "bpe", byte-pair encoding (Sennrich et al., 2016; on bytes as GPT-2, 2019), or
                "wordpiece" (Schuster & Nakajima, 2012; as BERT, 2019, but on bytes).
            min_count: how often a pair must occur to become a piece.

        Raises:
            TypeError: a single string where texts are expected.
            ValueError: `vocab_size` is too small, or an unknown `kind`.
        """
        if isinstance(texts, str | Tensor):
            raise TypeError(f"texts must be several str, got {texts!r:.80}")
        if kind not in SMALLEST:
            raise ValueError(f"kind must be 'bpe' or 'wordpiece', got {kind!r}")
        check_whole(vocab_size=vocab_size)
        check_whole(0, min_count=min_count)
        if vocab_size < SMALLEST[kind]:
            raise ValueError(
                f"vocab_size must be at least {SMALLEST[kind]} for {kind!r}, the bytes and "
                f"{', '.join(SPECIAL)}; got {vocab_size}"
            )
        package = _package()
        model, trainer, later = package.models.BPE(), package.trainers.BpeTrainer, []
        if kind == "wordpiece":
            # A byte that no text has within a word must be known there, too; and ids that are
            # given out in the order of the texts would differ from one training to the next
            model, trainer = package.models.WordPiece(), package.trainers.WordPieceTrainer
            later = [f"##{c}" for c in sorted(_BYTE)]
        learner = package.Tokenizer(model)
        _read_bytes(package, learner, kind, LONGEST_WORD if later else LONGEST_LEARNT)
        settings = trainer(
            vocab_size=vocab_size,
            min_frequency=min_count,
            special_tokens=[*SPECIAL, *later],
            initial_alphabet=sorted(_BYTE),
            show_progress=False,
        )
        learner.train_from_iterator(map(_clean, map(_text, texts)), settings)
        backend = learner
        if kind == "wordpiece":
            # Another one, to which "##" and a byte is no special token
            model = package.models.WordPiece(
                learner.get_vocab(), unk_token=PAD, max_input_chars_per_word=LONGEST_WORD
            )
            backend = package.Tokenizer(model)
            backend.add_special_tokens(SPECIAL)
        _read_bytes(package, backend, kind, LONGEST_WORD if later else None)
        backend.post_processor = package.processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, backend.token_to_id(START))]
        )
        return cls(backend)

    @classmethod
    def load(cls, path: Path | str, *, lowercase: bool | None = None) -> Self:
        """Load a tokenizer from a file, or a folder with one.

        Args:
            path: a `tokenizer.json` (of `save`, or any of Hugging Face's), a WordPiece `vocab.txt`,
                a byte-level `vocab.json` with `merges.txt` beside it; or the folder with one of
                them, taken in this order.
            lowercase: of a `vocab.txt`, whether it is for texts in lower case without accents; by
                default what `tokenizer_config.json` beside it says, or else whether no piece has
                a capital letter.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file.
        """
        from nlp.tokenizer_files import read_tokenizer

        return cls(read_tokenizer(_package(), Path(path), lowercase))

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json`, in the format that all of Hugging Face reads."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Return the JSON that `save` writes."""
        return str(self._backend.to_str())

    def __len__(self) -> int:
        """The number of ids, 0 to this: how many a model needs."""
        return self._length

    @checked
    def encode(self, texts: Iterable[str], *, special: bool = True) -> list[list[int]]:
        """Encode each text as ids.

        Args:
            texts: several of them.
            special: with the special tokens that belong in front and at the end: ``<s>`` first
                where `train` made the tokenizer.

        Raises:
            TypeError: a single string where a list of texts is expected, or a text that is none.
        """
        given = [] if isinstance(texts, Tensor) else list(texts)
        if isinstance(texts, str | Tensor) or not all(isinstance(text, str) for text in given):
            raise TypeError(f"texts must be a list of str, got {texts!r:.80}")
        encodings = self._backend.encode_batch(
            [_clean(text) for text in given], add_special_tokens=special
        )
        return [encoding.ids for encoding in encodings]

    @checked
    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Decode `ids` to text, special tokens left out. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode(_whole(ids), skip_special_tokens=True))

    def byte_counts(self) -> list[int]:
        """Count the bytes of text that each id stands for, as `spell` writes it; special tokens
        stand for none. Where pieces have "▁" for a space, the one in front of a text counts, too.

        Raises:
            UsageError: its pieces do not say where spaces are, as BERT's.
        """
        if not (self._has_bytes or self._has_spaces):
            raise UsageError(
                "the tokenizer's pieces leave out spaces, so the bytes of a text cannot be counted"
            )
        return [len(spelled) for spelled in self.spell(range(len(self)))]

    @checked
    def pieces(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Spell each token as a reader wants to see it: a leading space as "·", part of a character
        as its byte in hexadecimal, and an id that stands for no token, of which a model may have
        some to spare, as its number."""
        return [self._piece(token) for token in _whole(ids)]

    @checked
    def spell(self, ids: Sequence[int] | Tensor) -> list[bytes]:
        """Return the text of each token in UTF-8, with the space in front of a word; special tokens
        and ids of no token stand for none. A token may hold a part of a character."""
        return [b"" if token in self.special else self._spelled(token) for token in _whole(ids)]

    def _spelled(self, token: int) -> bytes:
        name = str(self._backend.id_to_token(token) or "")
        if not name:
            return b""
        if self._is_wordpiece and not self._has_bytes:
            return (name[2:] if name.startswith("##") else f" {name}").encode()
        if self._is_wordpiece and name.startswith("##"):
            name = name[2:] or name
        if self._has_bytes and all(c in _BYTE for c in name):
            # One character of a byte-level token stands for one byte
            return bytes(_BYTE[c] for c in name)
        if self._has_spaces and (byte := re.fullmatch("<0x([0-9A-F]{2})>", name)):
            return bytes.fromhex(byte[1])
        return name.replace("▁", " ").encode()

    def _piece(self, token: int) -> str:
        name = self._backend.id_to_token(token)
        if name is None:
            return f"#{token}"
        if token in self.special or not self._has_bytes:
            return str(name).replace("▁", "·")
        spelled = self._spelled(token)
        try:
            text = spelled.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"⟨{byte:02x}⟩" for byte in spelled)
        return text.replace(" ", "·").replace("\n", "↵").replace("\r", "↵").replace("\t", "→")


def _whole(ids: Sequence[int] | Tensor) -> list[int]:
    if isinstance(ids, Tensor):
        check_dense(ids=ids)
    given = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if isinstance(given, list):
        for one in given:
            check_whole(0, ids=one)
        return given
    raise TypeError(f"ids must be several ids of tokens, got {given!r:.80}")


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts must be several str, got {text!r:.80} among them")
    return text


def _clean(text: str) -> str:
    """Surrogates are no text and have no bytes; everything else passes unchanged."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_bytes(
    package: Any, backend: tokenizers.Tokenizer, kind: str, longest: int | None
) -> None:
    """Lets it see texts as words of bytes, of so many at most, and write them."""
    to_bytes = [package.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    from_bytes = package.decoders.ByteLevel()
    if longest is not None:
        piece = package.Regex(rf"[\s\S]{{1,{longest}}}")
        to_bytes.append(package.pre_tokenizers.Split(piece, behavior="isolated"))
    if kind == "wordpiece":
        # "#" becomes a word of its own, so that "##" in front of a piece is no text
        to_bytes.insert(0, package.pre_tokenizers.Punctuation("isolated"))
        bare = package.decoders.Replace(package.Regex("^##(?=.)"), "")
        from_bytes = package.decoders.Sequence([bare, package.decoders.Fuse(), from_bytes])
    one = to_bytes[0] if len(to_bytes) == 1 else package.pre_tokenizers.Sequence(to_bytes)
    backend.pre_tokenizer, backend.decoder = one, from_bytes


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
