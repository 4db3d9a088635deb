"""Published weights in runs: a folder of transformers' is all that a configuration names."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from attention_core.errors import UsageError
from attention_core.training import train
from attention_core.training.finetune import start_from
from attention_core.training.predict import load_trained, predict
from nlp import TextEncoder, Tokenizer
from tests.nlp.test_pretrained import bert, random
from tests.training.conftest import Compose, compose, figures_as_files, one_thread  # noqa: F401

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "it", "slowly", "home"]
#: Nothing is learned, so the run's weights are those of the folder.
STILL = [
    "~experiment",
    "optimizer.lr=0.0",
    "trainer.max_epochs=1",
    "data.tokens=null",
    "data.batch_size=8",
]


def sentences(count: int) -> list[str]:
    draw = torch.Generator().manual_seed(1)
    return [
        " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (6,), generator=draw))
        for _ in range(count)
    ]


def test_a_run_starts_from_the_folder_of_a_published_model(tmp_path: Path) -> None:
    theirs = random(hf.BertForMaskedLM, bert())
    theirs.save_pretrained(tmp_path)
    same = TextEncoder.from_pretrained(tmp_path)
    sizes = {"hidden": 40, "max_length": 32, "eps": 1e-12, "num_token_types": 2}
    published = {"positions": "learned", "norm_order": "post", "embedding_norm": True}
    ours = TextEncoder(60, 16, 3, 4, num_classes=3, **sizes, **published)  # type: ignore[arg-type]
    said = start_from(ours, weights=str(tmp_path), new=["head"])
    assert said.endswith("by the names of bert; new: head; not taken: cls")
    ids = torch.arange(3, 20)
    torch.testing.assert_close(ours.eval().encode(ids)[0], same.eval().encode(ids)[0])
    (tmp_path / "config.json").write_text('{"model_type": "nezha"}')
    with pytest.raises(UsageError, match="model_type 'nezha' is none of modernbert, albert"):
        start_from(ours, weights=str(tmp_path), new=["head"])


@pytest.mark.slow
def test_gpt2(compose: Compose, tmp_path: Path) -> None:  # noqa: F811
    texts = sentences(40)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    tokenizer = Tokenizer.train(texts, 280)
    config = hf.GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=tokenizer.start
    )
    theirs = random(hf.GPT2LMHeadModel, config)
    folder = tmp_path / "gpt2"
    theirs.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    given = ["task=causal_language_modelling", "data=nlp/text_files", *STILL, "data.lines=true"]
    given += [f"data.root={tmp_path / 'texts.txt'}", "data.vocab_size=300"]
    given += [f"data.tokenizer={folder}", f"model.weights={folder}"]
    train(compose(*given, "model=nlp/pretrained_text_decoder", config_dir=None), tmp_path / "run")
    _, task = load_trained(tmp_path / "run")
    ids = torch.tensor(tokenizer.encode(["the cat sat"])[0])
    torch.testing.assert_close(task.model.eval()(ids), theirs(ids[None]).logits[0])


def test_t5(compose: Compose, tmp_path: Path) -> None:  # noqa: F811
    folder, texts = tmp_path / "t5", sentences(80)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = hf.T5Config(vocab_size=20, decoder_start_token_id=0, **sizes)
    theirs = random(hf.T5ForConditionalGeneration, config, 0.05)
    with torch.no_grad():
        theirs.shared.weight[:4] = 0  # so that it writes words, which have scores above 0
    theirs.save_pretrained(folder)
    names = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS)]
    backend = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(name, -float(id)) for id, name in enumerate(names)], unk_id=2)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(names[:3])
    backend.save(str(folder / "tokenizer.json"))
    pairs = zip(texts[:40], texts[40:], strict=True)
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    given = [
        "task=translation",
        "data=nlp/pair_file",
        f"data.root={tmp_path / 'pairs.tsv'}",
        *STILL,
    ]
    given += ["data.vocab_size=20", f"data.tokenizer={folder}", f"model.weights={folder}"]
    given += ["model=nlp/pretrained_seq2seq", "task.generation.max_tokens=5"]
    train(compose(*given, config_dir=None), tmp_path / "run")

    (tmp_path / "new.txt").write_text("the dog ran home\n")
    assert predict(tmp_path / "run", tmp_path / "new.txt", tmp_path / "rows.jsonl") == 0
    said = json.loads((tmp_path / "rows.jsonl").read_text())["translation"]
    tokenizer = Tokenizer.load(folder)
    ids = torch.tensor(tokenizer.encode(["the dog ran home"]))
    written = theirs.generate(ids, max_new_tokens=5, do_sample=False)[0]
    assert said == tokenizer.decode(written.tolist()) != ""
