"""Tokenizers from files of the Hugging Face ecosystem."""

import json
from pathlib import Path

import pytest
import tokenizers
from transformers import BertTokenizerFast, GPT2TokenizerFast, RobertaTokenizerFast

from nlp import Tokenizer

TEXTS = [
    "The plane is late again, isn't it?",
    "Žluťoučký kůň\u00a0漢字, 😡 and\ttabs",
    "",
    "  two  spaces  ",
]
CORPUS = [*TEXTS, "the late planes were late", "Café and cafe"] * 4


def word_pieces(folder: Path, *, lowercase: bool) -> Path:
    learner = tokenizers.BertWordPieceTokenizer(lowercase=lowercase)
    learner.train_from_iterator(CORPUS, vocab_size=160, min_frequency=1, show_progress=False)
    learner.save_model(str(folder))
    return folder / "vocab.txt"


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_s_vocab_txt(tmp_path: Path, lowercase: bool) -> None:
    path = word_pieces(tmp_path, lowercase=lowercase)
    theirs = BertTokenizerFast.from_pretrained(tmp_path, do_lower_case=lowercase)
    for ours in (Tokenizer.load(path), Tokenizer.load(tmp_path, lowercase=lowercase)):
        assert ours.encode(TEXTS) == theirs(TEXTS)["input_ids"]
        assert ours.encode([""]) == [[ours.start, ours.end]]
        assert ours.roles == {
            "pad": theirs.pad_token_id,
            "start": theirs.cls_token_id,
            "end": theirs.sep_token_id,
            "mask": theirs.mask_token_id,
        }
        assert ours.special == set(theirs.all_special_ids)
        assert len(ours) == len(theirs)
    assert ours.decode(ours.encode(["the late planes"])[0]) == "the late planes"
    assert ours.pieces(ours.encode(["late"])[0]) == ["[CLS]", "late", "[SEP]"]


def test_the_configuration_beside_a_vocabulary_says_whether_it_is_lower_case(
    tmp_path: Path,
) -> None:
    path = word_pieces(tmp_path, lowercase=False)
    cased = Tokenizer.load(path).encode(["Café"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert Tokenizer.load(path).encode(["Café"]) == Tokenizer.load(path).encode(["cafe"]) != cased
    assert Tokenizer.load(path, lowercase=False).encode(["Café"]) == cased


@pytest.mark.parametrize("theirs_type", [GPT2TokenizerFast, RobertaTokenizerFast])
def test_vocab_json_with_merges(tmp_path: Path, theirs_type: type) -> None:
    special = ["<|endoftext|>"] if theirs_type is GPT2TokenizerFast else None
    learner = tokenizers.ByteLevelBPETokenizer()
    learner.train_from_iterator(
        CORPUS,
        vocab_size=330,
        show_progress=False,
        special_tokens=special or ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    learner.save_model(str(tmp_path))
    theirs = theirs_type.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    assert ours.encode(TEXTS) == theirs(TEXTS)["input_ids"]
    assert [ours.decode(ids) for ids in ours.encode(TEXTS)] == TEXTS
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="needs merges.txt beside it"):
        Tokenizer.load(tmp_path / "vocab.json")


def test_a_tokenizer_json_of_others_cuts_and_pads_nothing(tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], 0))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    theirs.enable_truncation(3)
    theirs.enable_padding(length=8)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode(["a a a a a"]) == [[1, 1, 1, 1, 1]]
    assert ours.pieces([1]) == ["·a"]
    assert ours.roles == {}
    with pytest.raises(ValueError, match=r"has no mask token, named <mask> or \[MASK\]"):
        ours.mask  # noqa: B018


def test_bytes_of_pieces_with_spaces_and_fallback(tmp_path: Path) -> None:
    """As Llama 2 and Mistral have them."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    names = ["<unk>", "<s>", "</s>", *fallback, "▁", *sorted({*"".join(CORPUS)} - {" ", "漢"})]
    vocabulary = {name: id for id, name in enumerate([*dict.fromkeys(names), "▁l", "▁la"])}
    model = tokenizers.models.BPE(
        vocabulary, [("▁", "l"), ("▁l", "a")], unk_token="<unk>", byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    replace = tokenizers.normalizers.Replace(" ", "▁")
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), replace]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    counts = tokenizer.byte_counts()
    for text in TEXTS:
        (ids,) = tokenizer.encode([text])
        assert sum(counts[id] for id in ids) == len(f" {text}".encode()) * bool(text)
        assert b"".join(tokenizer.spell(ids)) == f" {text}".encode() * bool(text)
    assert counts[:4] == [0, 0, 0, 1]


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json, vocab.txt, vocab.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ValueError, match="tokenizer.json' is no tokenizer file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "none"}}))
    with pytest.raises(ValueError, match="tokenizer.json' is no tokenizer file"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="lowercase is for a vocab.txt, got tokenizer.json"):
        Tokenizer.load(tmp_path, lowercase=True)
    for wrong, words in (([1], "no JSON object, but .1."), ({"a": "b"}, "has no model, nor are")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(wrong))
        with pytest.raises(
            ValueError, match=f"tokenizer.json' is no tokenizer file: it (holds )?{words}"
        ):
            Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n[CLS]\n[SEP]\n\xff\n")
    with pytest.raises(ValueError, match="vocab.txt' is no WordPiece vocabulary: .*UTF-8"):
        Tokenizer.load(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    for wrong in ("{broken", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(wrong)
        with pytest.raises(ValueError, match="tokenizer_config.json' is no configuration"):
            Tokenizer.load(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"vocab.txt' is no WordPiece vocabulary: .* \[UNK\]"):
        Tokenizer.load(tmp_path / "vocab.txt")
