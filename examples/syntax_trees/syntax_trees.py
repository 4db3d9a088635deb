"""Types of hidden nodes in the syntax trees of Python's library: their nodes are a Tree space."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn, tensor

from attention_core import Encoder, EncoderOptions, Model, Space, record_attention
from attention_core.interpret.plots import HEAT, verdict_color
from attention_core.spaces import PairList, Pairs
from attention_core.training import ClassificationTask, DataModule, DataModuleOptions

DEPTH, SMALLEST, LARGEST = 24, 10, 200  # levels, and nodes, of the trees that are taken


def path_length(one: Tensor, two: Tensor) -> Tensor:
    """Edges between nodes whose paths from the root are (..., D): what only one of them has."""
    apart = one != two
    return ((apart & (one >= 0)).sum(-1)) + (apart & (two >= 0)).sum(-1)


class Tree(Space):
    """Nodes of trees in a row, root first. Distance is the number of edges on the way.

    Args:
        path: (L, D) the nodes from the root to each one, itself included, and -1 behind.
        segments: (L,) the tree of each node, where there are several.
    """

    def __init__(self, path: Tensor, *, segments: Tensor | None = None) -> None:
        depth, place = (path >= 0).sum(-1), path.amax(-1)  # which positions are made of
        where = torch.stack([depth, place], dim=-1)
        super().__init__(len(path), coordinates=where, segments=segments, tokenwise={"path": path})

    def distance(self, pairs: Pairs) -> Tensor:
        return path_length(pairs.take("path", "query"), pairs.take("path", "key"))

    def reach(self, radius: float) -> PairList | None:
        """List the pairs of each tree that are near, which are few among those of all trees."""
        if self.batch is not None or self.segments is None:
            return None
        query, key = (self.segments[:, None] == self.segments).nonzero().unbind(-1)
        path = self.tokenwise["path"]
        distance = path_length(path[query], path[key])
        near = distance <= radius
        return PairList(query[near], key[near], distance=distance[near])


def functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from functions(child)


def walk(node: ast.AST, above: tuple[int, ...], nodes: list[Any]) -> None:
    """Append (name of the type, path) of a node and of all below it, in the order of the text."""
    path = (*above, len(nodes))
    nodes.append((type(node).__name__, path))
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr_context):  # load or store, which their places tell
            walk(child, path, nodes)


class Trees(DataModule):
    """A sample is a function; modules of the standard library are for one of three purposes."""

    def __init__(
        self,
        *,
        train: list[str],
        val: list[str],
        test: list[str],
        hidden: float,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(**settings)
        self.files, self.hidden = (train, val, test), hidden

    def load(self) -> None:
        self.train_set, self.val_set, self.test_set = map(self.trees, self.files)
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same nodes whatever the seed; in training, drawn anew
            for tree in (*self.val_set, *self.test_set):
                tree["seen"] = self.hide(tree["types"])

    def trees(self, files: list[str]) -> list[dict[str, Tensor]]:
        found, number = [], {name: n for n, name in enumerate(self.classes)}
        for file in files:
            text = Path(sysconfig.get_path("stdlib"), file).read_text(encoding="utf-8")
            for function in functions(ast.parse(text)):
                walk(function, (), nodes := [])
                paths = [path + (-1,) * (DEPTH - len(path)) for _, path in nodes]
                types = [number.get(name, number["other"]) for name, _ in nodes]
                if SMALLEST <= len(nodes) <= LARGEST and {*map(len, paths)} == {DEPTH}:
                    found.append({"types": tensor(types), "path": tensor(paths)})
        return found

    def hide(self, types: Tensor) -> Tensor:
        hidden = torch.rand(len(types)) < self.hidden
        hidden[torch.randint(1, len(types), (1,))] = True
        hidden[0] = False
        return types.masked_fill(hidden, len(self.classes))

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        types, path = (torch.cat([tree[name] for tree in samples]) for name in ("types", "path"))
        seen = [tree["seen"] if "seen" in tree else self.hide(tree["types"]) for tree in samples]
        sizes = tensor([len(tree["types"]) for tree in samples])
        seen, segments = torch.cat(seen), torch.repeat_interleave(sizes)
        target = types[seen == len(self.classes)]
        return {"seen": seen, "path": path, "segments": segments, "target": target}


def beside(data: Trees) -> float:
    """Accuracy in the test of naming the most frequent child of the parent, which is never hidden
    from this count."""
    count, hits = torch.zeros(len(data.classes), len(data.classes)), []
    for trees, learns in ((data.train_set, True), (data.test_set, False)):
        for tree in trees:
            types, depth = tree["types"][1:], (tree["path"][1:] >= 0).sum(dim=1)
            parent = tree["types"][tree["path"][1:].gather(1, depth[:, None] - 2).squeeze(1)]
            if learns:
                count.index_put_((parent, types), torch.ones(len(types)), accumulate=True)
            else:
                hidden = tree["seen"][1:] == len(data.classes)
                hits.append((count.argmax(dim=1)[parent] == types)[hidden])
    return float(torch.cat(hits).float().mean())


class TreeEncoder(Model):
    def __init__(
        self, dim: int, depth: int, heads: int, num_classes: int, **encoder: Unpack[EncoderOptions]
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, dim)
        self.encoder = Encoder(dim, depth, heads, **encoder)
        self.reset_head(num_classes)

    def embed(self, seen: Tensor, path: Tensor, segments: Tensor) -> tuple[Tensor, Tree]:
        asked = {"asked": seen == self.embedding.num_embeddings - 1}
        return self.embedding(seen), Tree(path, segments=segments).with_tokenwise(asked)

    def read(self, tokens: Tensor, space: Tree) -> Tensor:
        return self.head(tokens[space.tokenwise["asked"]])


class TreeTask(ClassificationTask):
    def attention_figure(self, batch: dict[str, Any]) -> Figure:
        """Draw a tree, in the colours of what a hidden node attends to in the last layer."""
        sizes = batch["segments"].bincount()
        chosen = batch["segments"] == int((sizes - 40).abs().argmin())  # neither small nor large
        tree = {name: batch[name][chosen] for name in ("seen", "path", "segments")}
        tree["segments"] = tree["segments"] - tree["segments"][0]
        with record_attention(self.model, layers=[-1]) as maps:
            guess = self.model(**tree).argmax(dim=1).tolist()
        asked = (tree["seen"] == len(self.classes)).nonzero().flatten().tolist()
        share = maps[-1][0, :, asked[0]].mean(dim=0).numpy(force=True)
        figure = Figure(figsize=(16, 7), layout="constrained")
        axis = figure.subplots()
        for node, path in enumerate(tree["path"].tolist()):
            at = (node, -sum(step >= 0 for step in path))
            if -at[1] > 1:
                above = path[-at[1] - 2]
                axis.plot([above, node], [at[1] + 1, at[1]], color="lightgray", zorder=0)
            is_asked = node in asked
            name = self.classes[guess[asked.index(node)] if is_asked else tree["seen"][node]]
            target = batch["target"][
                (batch["seen"] == len(self.classes)).cumsum(0)[chosen][node] - 1
            ]
            color = verdict_color(name == self.classes[target]) if is_asked else "black"
            axis.text(*at, f"  {name}{'?' * is_asked}", rotation=45, color=color, fontsize=8)
        depth = -(tree["path"] >= 0).sum(dim=1).numpy(force=True)
        axis.scatter(range(len(depth)), depth, c=share, cmap=HEAT, s=60)
        axis.set(title=f"To what node {asked[0]} attends; with ?: what hidden nodes are taken for")
        axis.set_axis_off()
        return figure
