"""Words told apart by the order of their vowels: a spectrogram is a Grid(time, frequency)."""

from typing import Any, Unpack

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn, tensor
from torch.utils.data import random_split

from attention_core import AttentionPool, Encoder, EncoderOptions, Grid, Model, record_attention
from attention_core.interpret.plots import verdict_color
from attention_core.training import ClassificationTask, DataModule, DataModuleOptions

RATE, HOP, BANDS, PATCH = 8000, 80, 40, 5  # Hz, samples, mel bands, frames and bands of a patch
# The two resonances of the mouth, in Hz, that make a vowel (Peterson and Barney, 1952)
FORMANTS = {"a": (730, 1090), "e": (530, 1840), "i": (270, 2290), "o": (570, 840), "u": (300, 870)}


def speak(word: str) -> Tensor:
    """The vowels of `word`, said in noise by a voice of random pitch, mouth and tempo: (T,)."""
    length = torch.randint(600, 1600, (len(word),))
    time, center = torch.arange(int(length.sum())), length.cumsum(0) - length / 2
    share = torch.softmax(-(time[:, None] - center).abs() / 250, dim=1)  # vowels glide
    mouth = tensor([FORMANTS[vowel] for vowel in word]) * torch.empty(2).uniform_(0.8, 1.2)
    formants = (share @ mouth)[..., None]
    pitch = torch.empty(1).uniform_(90, 240) * torch.linspace(1.1, 0.9, len(time))
    harmonics = pitch[:, None] * torch.arange(1, 17)
    loudness = torch.exp(-(((harmonics[:, None] - formants) / 120) ** 2)).sum(dim=1)
    voice = (loudness * (2 * torch.pi / RATE * harmonics.cumsum(dim=0)).sin()).sum(dim=1)
    return voice + torch.empty(1).uniform_(0.3, 2.0) * torch.randn(len(time))


def spectrogram(sound: Tensor) -> Tensor:
    """Standardised log-mel energies (frames, BANDS)."""
    waves = torch.stft(sound, 256, HOP, window=torch.hann_window(256), return_complex=True)
    edge = 700 * (torch.linspace(0, 2146, BANDS + 2) / 1127).expm1()  # mel, up to RATE / 2
    slope = (torch.linspace(0, RATE / 2, 129)[:, None] - edge[:-1]) / edge.diff()
    triangles = torch.minimum(slope[:, :-1], 1 - slope[:, 1:]).clamp(min=0)
    energy = (waves.abs().T ** 2 @ triangles + 0.01).log()
    return (energy - energy.mean()) / energy.std()


class Words(DataModule):
    def __init__(self, *, samples: int, **settings: Unpack[DataModuleOptions]) -> None:
        super().__init__(**settings)
        self.samples = samples

    def load(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same words whatever the seed
            words = [self.say(number % len(self.classes)) for number in range(self.samples)]
            self.train_set, self.val_set, self.test_set = random_split(words, [0.75, 0.125, 0.125])

    def say(self, target: int) -> dict[str, Tensor]:
        frames = spectrogram(speak(self.classes[target])).unfold(0, PATCH, PATCH)
        return {"patches": frames.unfold(1, PATCH, PATCH).flatten(2), "target": tensor(target)}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {  # words of any length, end to end
            "patches": torch.cat([sample["patches"].flatten(0, 1) for sample in samples]),
            "grids": tensor([sample["patches"].shape[:2] for sample in samples]),
            "target": torch.stack([sample["target"] for sample in samples]),
        }


class SpectrogramEncoder(Model):
    def __init__(
        self, dim: int, depth: int, heads: int, num_classes: int, **encoder: Unpack[EncoderOptions]
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(PATCH**2, dim)
        self.encoder = Encoder(dim, depth, heads, **encoder)
        self.pool = AttentionPool(dim, heads)
        self.reset_head(num_classes)

    def embed(self, patches: Tensor, grids: Tensor) -> tuple[Tensor, Grid]:
        return self.embedding(patches), Grid.packed(grids.tolist(), device=patches.device)


class WordTask(ClassificationTask):
    def attention_figure(self, batch: dict[str, Any]) -> Figure:
        """Spectrograms of three words, and in red what each head of the pool listens to."""
        figure = Figure(figsize=(14, 7), layout="constrained")
        words = batch["patches"].split(batch["grids"].prod(dim=1).tolist())
        for word, axes in enumerate(figure.subplots(3, 1 + self.model.pool.attention.heads)):
            grid, said = batch["grids"][word], batch["target"][word]
            with record_attention(self.model, layers=[-1]) as maps:
                heard = self.model(words[word], grid[None]).argmax()
            frames = words[word].view(*grid, PATCH, PATCH).transpose(1, 2).reshape(-1, BANDS)
            look = {"origin": "lower", "extent": (0, len(frames) * HOP / RATE, 0, BANDS)}
            for head, axis in enumerate(axes):
                axis.imshow(frames.T.numpy(force=True), cmap="gray_r", **look)
                if head > 0:
                    share = maps[-1][0, head - 1, 0].view(*grid).T.numpy(force=True)
                    axis.imshow(share * 0 + 1, "autumn", alpha=0.8 * share / share.max(), **look)
                axis.set(title=f"head {head}", xlabel="seconds", yticks=[], aspect="auto")
            verdict = f"“{self.classes[said]}”, heard as “{self.classes[heard]}”"
            axes[0].set_title(verdict, color=verdict_color(bool(heard == said)))
        return figure
