"""Telling what is linked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from attention_core.training import DataModule, TaskOptions, UsageError
from attention_core.training.mean import Mean
from attention_core.training.task import Row
from graph.tasks.base import GraphTask

HITS = (1, 3, 10)


class LinkPrediction(GraphTask):
    """Ranking the nodes that a node may be linked to, by one relation or several.

    Of each link, both ends are asked for: which target its source has, and which source its target.
    Trained is the cross-entropy of the right node among others, drawn anew or all there are
    (Lacroix et al., 2018). Evaluated is its rank among all nodes by score, filtered: nodes that
    other known links name as right answers, too, are left out (Bordes et al., TransE, 2013); of
    equal scores it is the middle. `mrr` is the mean of 1 / rank, `hits_at_k` the share of ranks up
    to k. Training counts against what was drawn.

    A batch is the whole graph, `x`, `edge_index` and, where there are relations, their types
    `edge_attr` (E,), with the links in question: `edge_label_index` (2, B) and the relation
    `edge_label_type` (B,) of each. In training these links are no edges of the graph, nor are their
    inverses, from target to source and of the same type or R higher: so a batch should ask for a
    small part of all links.

    The data module has `known_links`, (2, T), or (3, T) with the relations as last row: all links
    to train, to validate and to test with.

    Args:
        model: a `GraphTransformer(level="link")`, or another that takes `edge_label_index`
            (2, ...) and `edge_label_type`, which broadcasts to (...), and returns scores (...).
        negatives: with how many random nodes a link is compared in training; None for all.
        settings: those of `Task`, without `metrics`.

    Raises:
        UsageError: `negatives` is less than 1; or before training: there are no `known_links`.
    """

    level = "link"
    monitor = "val/mrr"
    mode = "max"

    def __init__(
        self,
        model: nn.Module,
        *,
        negatives: int | None = None,
        **settings: Unpack[TaskOptions],
    ) -> None:
        if negatives is not None and negatives < 1:
            raise UsageError(f"task.negatives must be at least 1, or null, got {negatives}.")
        metrics: dict[str, Metric] = {"mrr": Mean()}
        metrics |= {f"hits_at_{most}": Mean() for most in HITS}
        super().__init__(model, metrics=metrics, **settings)
        self.negatives = negatives

    @property
    def known_links(self) -> Tensor:
        """(2, T) or (3, T), those of the data module."""
        known = getattr(self.trainer.datamodule, "known_links", None)  # type: ignore[attr-defined]
        if not isinstance(known, Tensor) or known.ndim != 2 or len(known) not in (2, 3):
            raise UsageError(
                "data: to rank links, all known ones must be in its known_links, (2, T) or with "
                f"relations (3, T); got {known!r:.80}."
            )
        return known.to(self.device)

    def on_fit_start(self) -> None:
        _ = self.known_links
        super().on_fit_start()

    def predict(self, batch: dict[str, Any], data: DataModule) -> Sequence[Row | list[Row]]:
        """Return a row for each link in question: its `score`; and where the graph is one, `rank`,
        the place of its target among all nodes by their scores, 1 for the likeliest."""
        if "node_ids" in batch:
            if "edge_label_index" not in batch:
                raise ValueError(
                    "it has no edge_label_index: which pairs of nodes are to be scored?"
                )
            return super().predict(batch, data)
        source, target = batch["edge_label_index"]
        nodes = torch.arange(len(batch["x"]), device=source.device).expand(len(source), -1)
        asked = torch.stack([source[:, None].expand_as(nodes), nodes])
        posed = {**batch, "edge_label_index": asked}
        if "edge_label_type" in batch:
            posed["edge_label_type"] = batch["edge_label_type"][:, None]
        scores = self(**self.model_inputs(posed))
        own = scores.gather(1, target[:, None])[:, 0].tolist()
        places = ranks(scores, target).tolist()
        return [{"score": score, "rank": rank} for score, rank in zip(own, places, strict=True)]

    def predictions(self, output: Tensor) -> list[Row]:
        """Return `score`, higher for likelier links."""
        return [{"score": score} for score in output.float().tolist()]

    def samples(self, batch: dict[str, Any]) -> int:
        """Links, or the choices that they pose."""
        return int(batch["edge_label_index"].shape[1])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        known = self.known_links
        relations = int(known[2].max()) + 1 if len(known) == 3 else 1
        posed = both_ends(without_links(batch, relations), self.negatives)
        return super().training_step(posed, batch_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validation_step(both_ends(batch), batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().test_step(both_ends(batch), batch_idx)

    def loss(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        shape = batch["edge_label_index"].shape[1:]
        if output.shape != shape:
            raise UsageError(
                f"model: scores of shape {tuple(shape)} expected, one per link, got "
                f"{tuple(output.shape)}."
            )
        return F.cross_entropy(output, batch["target"])

    def update_metrics(
        self, metrics: MetricCollection, output: Tensor, batch: dict[str, Any]
    ) -> None:
        if output.shape[1] == len(batch["x"]):
            output = self._filtered(output, batch)
        rank = ranks(output, batch["target"])
        metrics["mrr"].update(1 / rank)
        for most in HITS:
            metrics[f"hits_at_{most}"].update((rank <= most).float())

    def _filtered(self, scores: Tensor, batch: dict[str, Any]) -> Tensor:
        """Scores (2B, N), those of other known links -inf."""
        known, nodes = self.known_links, len(batch["x"])
        kind = batch.get("edge_label_type")
        asked = _keys(batch["edge_label_index"], kind, nodes)
        listed = _keys(known[:2], known[2] if len(known) == 3 else None, nodes)
        others = torch.isin(asked, listed).scatter(1, batch["target"][:, None], False)
        return scores.masked_fill(others, -torch.inf)


def both_ends(batch: dict[str, Any], negatives: int | None = None) -> dict[str, Any]:
    """Turn a batch with its B links into 2B choices: of each the target, then of each the source.

    `edge_label_index` is (2, 2B, C), `edge_label_type`, where there is one, (2B, 1), and `target`
    (2B,) the right one of C choices: all nodes, or the right one and `negatives` random nodes.
    """
    links, nodes = batch["edge_label_index"], len(batch["x"])
    if batch.get("num_graphs", 1) != 1:
        raise UsageError(
            f"data: links are ranked among the nodes of one graph, got {batch['num_graphs']}."
        )
    fixed, right = links.flatten(), links.flip(0).flatten()  # sources, targets; targets, sources
    if negatives is None:
        choices = torch.arange(nodes, device=links.device).expand(len(right), -1)
        target = right
    else:
        drawn = torch.randint(nodes, (len(right), negatives), device=links.device)
        choices, target = torch.cat([right[:, None], drawn], dim=1), torch.zeros_like(right)
    ends = torch.stack([fixed[:, None].expand_as(choices), choices])
    of_sources = ends[:, : links.shape[1]], ends[:, links.shape[1] :].flip(0)
    posed = {**batch, "edge_label_index": torch.cat(of_sources, dim=1), "target": target}
    if "edge_label_type" in batch:
        posed["edge_label_type"] = batch["edge_label_type"].repeat(2)[:, None]
    return posed


def without_links(batch: dict[str, Any], relations: int) -> dict[str, Any]:
    """Return the batch without the edges that are its links, or their inverses: those from target
    to source, of the same of R `relations`, or R higher."""
    links, nodes = batch["edge_label_index"], len(batch["x"])
    kind, of_edge = batch.get("edge_label_type"), batch.get("edge_attr")
    if kind is None or of_edge is None or of_edge.is_floating_point():
        kind = of_edge = None
        inverses = [None]
    else:
        inverses = [kind, kind + relations]
    asked = [_keys(links, kind, nodes)]
    asked += [_keys(links.flip(0), inverse, nodes) for inverse in inverses]
    kept = ~torch.isin(_keys(batch["edge_index"], of_edge, nodes), torch.cat(asked))
    changed = {**batch, "edge_index": batch["edge_index"][:, kept]}
    for name, value in batch.items():
        if name.startswith("edge_") and not name.startswith(("edge_label", "edge_index")):
            changed[name] = value[kept]
    return changed


def ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Rank choice `target` (Q,), from 1 on, by its score among (Q, C); of choices with equal
    scores, the middle one."""
    own = scores.gather(1, target[:, None])
    above, equal = (scores > own).sum(1), (scores == own).sum(1)
    return above + (equal + 1) / 2


def _keys(links: Tensor, kind: Tensor | None, nodes: int) -> Tensor:
    """One number for each of links (2, ...)."""
    pair = links[0] * nodes + links[1]
    return pair if kind is None else kind * nodes**2 + pair
