"""How many bits a language model needs for a byte of text that it has not seen, beside a 5-gram
over the same tokens, one over bytes, and the compressors gzip and xz.

    attn train experiment=nlp/bbc_gpt
    python examples/bits_per_byte.py outputs/.../nlp-bbc_gpt

All have the same test texts. The model and the n-grams learn from the same training texts; the
compressors, given all test texts in one piece, learn from what they have read of it so far.
"""

import argparse
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from attention_core.training.folder import RunFolder, read_config
from attention_core.training.instantiate import build
from nlp.data import TextData
from nlp.tokenizer import Tokenizer

Values = np.ndarray[Any, Any]


class KneserNey:
    """An n-gram model with interpolated Kneser-Ney smoothing (Kneser & Ney, 1995; Chen & Goodman,
    1999), one discount per order.

    Args:
        texts: symbols 0 to `symbols` - 1 of each text.
        symbols: how many there are.
        order: 5 for a 5-gram, which sees four symbols.
    """

    def __init__(self, texts: list[list[int]], symbols: int, order: int = 5) -> None:
        self.base, self.order = symbols + 1, order  # one more stands in front of a text
        if self.base**order >= 2**63:
            raise ValueError(f"{symbols} symbols are too many for order {order}")
        grams, counts = np.unique(self._grams(texts), return_counts=True)
        self.levels = []
        for length in range(order, 0, -1):
            contexts, place = np.unique(grams // self.base, return_inverse=True)
            total = np.bincount(place, counts)
            kinds = np.bincount(place)
            once, twice = (int((counts == n).sum()) for n in (1, 2))
            discount = once / (once + 2 * twice) if once and twice else 0.5
            self.levels.append((grams, counts, contexts, total, kinds, discount))
            if length > 1:  # lower orders count in how many contexts a gram was seen
                grams, counts = np.unique(grams % self.base ** (length - 1), return_counts=True)

    def bits(self, texts: list[list[int]]) -> float:
        """The bits that all symbols of `texts` take together."""
        asked = self._grams(texts)
        share = np.full(len(asked), 1 / self.base)
        for length, level in enumerate(reversed(self.levels), start=1):
            grams, counts, contexts, total, kinds, discount = level
            gram = asked % self.base**length
            seen = _looked_up(grams, counts, gram)
            of, ways = (_looked_up(contexts, v, gram // self.base) for v in (total, kinds))
            of_known = np.maximum(of, 1)
            mixed = (np.maximum(seen - discount, 0) + discount * ways * share) / of_known
            share = np.where(of > 0, mixed, share)
        return float(-np.log2(share).sum())

    def _grams(self, texts: list[list[int]]) -> Values:
        """Each symbol with the `order` - 1 before it, as one number."""
        found = []
        for text in texts:
            row = np.array([self.base - 1] * (self.order - 1) + text, dtype=np.int64)
            gram = np.zeros(len(text), dtype=np.int64)
            for start in range(self.order):
                gram = gram * self.base + row[start : start + len(text)]
            found.append(gram)
        return np.concatenate(found)


def _looked_up(keys: Values, values: Values, wanted: Values) -> Values:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def compare(run: Path) -> dict[str, float]:
    """Bits per byte of the test texts of a run, by what wrote them."""
    folder = RunFolder(run)
    data = build(read_config(folder)["data"])
    if not isinstance(data, TextData):
        raise SystemExit(f"{run} is no run on texts")
    train, test = ([row.text for row in data.parts()[part]] for part in ("train", "test"))
    total = sum(len(text.encode()) for text in test)
    tokenizer = Tokenizer.load(folder.path / "tokenizer.json")

    def tokens(texts: list[str]) -> list[list[int]]:
        return [[*row, tokenizer.end] for row in tokenizer.encode(texts, special=False)]

    def symbols(texts: list[str]) -> list[list[int]]:
        return [[*text.encode(), 256] for text in texts]

    joined = "\n".join(test).encode()
    results = json.loads(folder.results.read_text())
    return {
        "this model": results["test/bits_per_byte"],
        "5-gram over its tokens": KneserNey(tokens(train), len(tokenizer)).bits(tokens(test))
        / total,
        "5-gram over bytes": KneserNey(symbols(train), 257).bits(symbols(test)) / total,
        "xz -9": 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / total,
        "gzip -9": 8 * len(gzip.compress(joined, 9)) / total,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of nlp/bbc_gpt")
    for name, value in compare(parser.parse_args().run).items():
        print(f"{name:24}{value:6.3f} bits per byte")
