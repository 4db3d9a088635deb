"""The files that tokenizers come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILES = ("tokenizer.json", "vocab.txt", "vocab.json")


def read_tokenizer(package: Any, path: Path, lowercase: bool | None) -> Any:
    """Read a tokenizer of `package`, tokenizers, from a file or a folder; see `Tokenizer.load`."""
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"the folder {str(path)!r} has no {', '.join(FILES)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokenizer file {str(path)!r}")
    if path.suffix == ".txt":
        return _wordpiece(package, path, lowercase)
    if lowercase is not None:
        raise ValueError(f"lowercase is for a vocab.txt, got {path.name}, which says it itself")
    try:
        content = _object(path)
        if "model" in content:
            return package.Tokenizer.from_file(str(path))
        if not all(isinstance(id, int) for id in content.values()):
            raise ValueError("it has no model, nor are its entries pieces and their ids")
        return _byte_level_bpe(package, path)
    except FileNotFoundError:
        raise
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{str(path)!r} is no tokenizer file: {error}") from error


def _wordpiece(package: Any, path: Path, lowercase: bool | None) -> Any:
    """BERT's tokenizer from the list of its pieces."""
    try:
        vocabulary = package.models.WordPiece.read_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{str(path)!r} is no WordPiece vocabulary: {error}") from error
    lacking = [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in vocabulary]
    if lacking:
        raise ValueError(f"{str(path)!r} is no WordPiece vocabulary: it has no {lacking[0]}")
    special = [n for n in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if n in vocabulary]
    if lowercase is None:
        lowercase = _says_lowercase(path.with_name("tokenizer_config.json"))
    if lowercase is None:
        lowercase = all(piece == piece.lower() for piece in vocabulary if piece not in special)
    backend = package.Tokenizer(package.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.add_special_tokens(special)
    backend.normalizer = package.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    backend.decoder = package.decoders.WordPiece()
    _enclose(package, backend, "[CLS]", "[SEP]")
    return backend


def _says_lowercase(config: Path) -> bool | None:
    if not config.is_file():
        return None
    try:
        said = _object(config).get("do_lower_case")
    except ValueError as error:
        raise ValueError(f"{str(config)!r} is no configuration: {error}") from error
    return said if isinstance(said, bool) else None


def _object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds no JSON object, but {content!r:.60}")
    return content


def _byte_level_bpe(package: Any, path: Path) -> Any:
    """GPT-2's or RoBERTa's tokenizer from its pieces and merges."""
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise FileNotFoundError(f"{str(path)!r} needs merges.txt beside it")
    model = package.models.BPE.from_file(str(path), str(merges))
    backend = package.Tokenizer(model)
    backend.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = package.decoders.ByteLevel()
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>")
    backend.add_special_tokens([n for n in names if backend.token_to_id(n) is not None])
    if all(backend.token_to_id(name) is not None for name in ("<s>", "</s>")):
        _enclose(package, backend, "<s>", "</s>")
    return backend


def _enclose(package: Any, backend: Any, first: str, last: str) -> None:
    backend.post_processor = package.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in (first, last)],
    )
