"""One contract: what every model of three domains has, and one of a user's own."""

import inspect
import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Unpack, get_args

import pytest
import torch
from torch import Tensor, nn

from attention_core import ALiBi, Encoder, EncoderOptions, Model, Pool, RelativeTable, Sequence
from attention_core.errors import UsageError
from attention_core.layers import Pooling
from attention_core.pretrained.own import arguments
from attention_core.pretrained.serialization import save_safetensors
from graph import GraphTransformer
from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder
from vision import MaskedAutoencoder, SwinTransformer, VisionTransformer

IMAGE = torch.rand(2, 3, 16, 16)
GRAPHS = {
    "x": torch.tensor([5, 0, 3, 1, 1]),
    "edge_index": torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]),
    "batch": torch.tensor([0, 0, 0, 1, 1]),
}
TEXTS = {"ids": torch.randint(30, (2, 9)), "lengths": torch.tensor([9, 4])}


class Own(Model):
    def __init__(
        self, dim: int, depth: int, heads: int, num_classes: int, **encoder: Unpack[EncoderOptions]
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, dim)
        self.encoder = Encoder(dim, depth, heads, **encoder)
        self.pool = Pool("mean")
        self.reset_head(num_classes)

    def embed(self, series: Tensor) -> tuple[Tensor, Sequence]:
        return self.embedding(series), Sequence(series.shape[1])


class Case(NamedTuple):
    make: Callable[..., Model]
    inputs: dict[str, Any]
    features: tuple[int, ...]
    outputs: tuple[int, ...]


def vit(**options: Any) -> VisionTransformer:
    return VisionTransformer(
        16, 2, 2, **{"patch_size": 4, "image_size": 16, "num_classes": 3, "registers": 2, **options}
    )


def swin(**options: Any) -> SwinTransformer:
    return SwinTransformer(8, (1, 1), (2, 2), window=2, **{"num_classes": 3, **options})


def graph(**options: Any) -> GraphTransformer:
    return GraphTransformer(
        16, 2, 2, **{"node_types": 7, "num_classes": 3, "virtual_nodes": 1, **options}
    )


def text(**options: Any) -> TextEncoder:
    return TextEncoder(30, 16, 2, 2, **{"num_classes": 3, **options})


def own(**options: Any) -> Own:
    return Own(16, 2, 2, **{"num_classes": 3, **options})


CASES = {
    "vit": Case(vit, {"image": IMAGE}, (2, 16, 4, 4), (2, 3)),
    "swin": Case(swin, {"image": IMAGE}, (2, 16, 2, 2), (2, 3)),
    "graphs": Case(graph, GRAPHS, (5, 16), (2, 3)),
    "nodes": Case(lambda **o: graph(level="node", **o), GRAPHS, (5, 16), (5, 3)),
    "texts": Case(text, TEXTS, (2, 9, 16), (2, 3)),
    "texts in windows": Case(
        lambda **o: text(positions="learned", max_length=4, windowed=True, **o),
        TEXTS,
        (2, 9, 16),
        (2, 3),
    ),
    "own": Case(own, {"series": torch.rand(2, 5, 1)}, (2, 5, 16), (2, 3)),
}
SCORED = {
    "masked": MaskedLanguageModel(30, 16, 2, 2),
    "decoder": TextDecoder(30, 16, 2, 2),
    "seq2seq": Seq2SeqTransformer(30, 16, 2, 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_outputs_are_what_is_encoded_pooled_and_read(case: Case) -> None:
    model = case.make().eval()
    tokens, space = model.encode(**case.inputs)
    output = model(**case.inputs)
    assert output.shape == case.outputs
    torch.testing.assert_close(model.read(tokens, space), output)
    embedded, where = model.embed(**case.inputs)
    assert embedded.shape[-2] == where.length and tokens.shape[-2] == space.length


@every_case
def test_features_end_with_what_is_encoded_in_the_shape_of_the_inputs(case: Case) -> None:
    model = case.make().eval()
    last, first = model.features(**case.inputs, layers=[-1, 0], norm=True)
    assert last.shape == case.features
    assert last.shape != first.shape or not torch.allclose(last, first)
    encoded, space = model.encode(**case.inputs)
    tokens, _ = space.without_special(encoded)
    as_tokens = last.flatten(2).mT if last.ndim == 4 else last
    torch.testing.assert_close(as_tokens, tokens)
    with pytest.raises(ValueError, match="there are 2 .* 2"):
        model.features(**case.inputs, layers=[2])


@every_case
def test_a_backend_is_passed_on_by_every_call(case: Case) -> None:
    model = case.make().eval()
    for call in (model, model.encode, model.features):
        chosen, wanted = call(**case.inputs, backend="reference"), call(**case.inputs)
        pairs = zip(chosen, wanted, strict=True) if isinstance(chosen, tuple | list) else []
        for one, other in pairs or [(chosen, wanted)]:
            if isinstance(one, Tensor):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="refrence"):
            call(**case.inputs, backend="refrence")


@every_case
def test_a_new_head_has_other_classes_and_the_rest_stays(case: Case) -> None:
    model = case.make().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_head(num_classes=7)
    assert model.num_classes == 7 and model.head.weight.dtype == torch.float64
    after = model.state_dict()
    assert list(after) == list(before)
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert changed == ["head.weight", "head.bias"]
    model.reset_head(None)
    assert model.num_classes is None and not list(model.head.parameters())
    for wrong, error in ((0, ValueError), ("7", TypeError)):
        with pytest.raises(error, match="num_classes"):
            model.reset_head(wrong)


def test_heads_that_are_of_no_classes_are_refused_by_name() -> None:
    for model in SCORED.values():
        with pytest.raises(TypeError, match=f"{type(model).__name__} scores the ids"):
            model.reset_head(3)
    with pytest.raises(TypeError, match="outputs are of targets"):
        SCORED["seq2seq"].read(*SCORED["seq2seq"].encode(**TEXTS))
    link = graph(level="link", num_classes=None, virtual_nodes=0)
    with pytest.raises(ValueError, match="level='link' gives one score per pair"):
        link.reset_head(3)
    edge = graph(level="edge")
    edge.reset_head(5)
    assert edge(GRAPHS["x"], GRAPHS["edge_index"]).shape == (6, 5)
    mae = MaskedAutoencoder(vit(num_classes=None), dim=16, depth=1, heads=2)
    with pytest.raises(TypeError, match="no head: fine-tune its part `vit`"):
        mae.reset_head(3)
    with pytest.raises(TypeError, match="call the model, or read those of its part `vit`"):
        mae.read(*mae.encode(IMAGE))
    assert mae.stack is mae.vit.encoder


@pytest.mark.parametrize("name", SCORED)
def test_models_that_score_ids_keep_the_contract(name: str) -> None:
    model = SCORED[name].eval()
    tokens, space = model.encode(**TEXTS)
    assert tokens.shape == (2, 9, 16) and space.length == 9
    (last,) = model.features(**TEXTS)
    torch.testing.assert_close(last, tokens)
    if name != "seq2seq":
        torch.testing.assert_close(model(**TEXTS, backend="reference"), model.read(tokens, space))


@pytest.mark.parametrize("make", [vit, graph, text], ids=["vit", "graph", "text"])
def test_one_vocabulary_of_pooling(make: Callable[..., Model]) -> None:
    inputs = {vit: {"image": IMAGE}, graph: GRAPHS, text: TEXTS}[make]
    for pooling in get_args(Pooling):
        if make is text and pooling == "special":
            with pytest.raises(ValueError, match="texts have no special tokens"):
                text(pooling=pooling)
            continue
        assert make(pooling=pooling).eval()(**inputs).shape == (2, 3)
    with pytest.raises(ValueError, match="pooling must be .*'map'.* got 'avg'"):
        make(pooling="avg")


def test_special_tokens_have_no_part_in_learned_pooling() -> None:
    for make, inputs in ((vit, {"image": IMAGE}), (graph, GRAPHS)):
        model = make(pooling="attention").eval()
        tokens, space = model.encode(**inputs)
        odd = tokens.where(~space.special[..., None], 1e3)
        torch.testing.assert_close(model.read(odd, space), model.read(tokens, space))


@pytest.mark.parametrize(
    "model", [VisionTransformer, SwinTransformer, GraphTransformer, TextEncoder]
)
def test_a_misspelt_preset_is_answered_with_the_nearest(model: type[Model]) -> None:
    known = next(iter(model.presets))
    with pytest.raises(ValueError, match=f"name must be one of {known}.*Did you mean '?{known}"):
        model.preset(known + "x", num_classes=3)
    with pytest.raises(ValueError, match="Own has no presets; got name='tiny'"):
        Own.preset("tiny")


@pytest.mark.parametrize("name", GraphTransformer.presets)
def test_presets_of_graphs_see_edges(name: str) -> None:
    model = GraphTransformer.preset(name, depth=2, node_types=7, num_classes=3).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    fewer = {**GRAPHS, "edge_index": GRAPHS["edge_index"][:, :2]}
    assert not torch.allclose(model(**GRAPHS), model(**fewer))


class Careless(Model):
    """What its parts are is told one by one."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        self.project = nn.Linear(1, 16)
        made = {"encoder": Encoder(16, 1, 2), "pool": Pool("mean"), "head": nn.Linear(16, 3)}
        for part in parts:
            setattr(self, part, made[part])

    def embed(self, series: Tensor) -> Any:
        return self.project(series)


def test_a_model_of_ones_own_is_told_what_it_lacks() -> None:
    series, tokens = torch.rand(2, 5, 1), torch.rand(2, 5, 16)
    with pytest.raises(TypeError, match=r"embed must return \(tokens, space\), .* got Tensor"):
        Careless().encode(series)
    with pytest.raises(TypeError, match=r"must set self.encoder: Encoder\(dim, depth, heads\)"):
        Careless().reset_head(3)
    with pytest.raises(TypeError, match=r"must set self.head: by self.reset_head"):
        Careless("encoder", "pool").read(tokens, Sequence(5))
    with pytest.raises(TypeError, match=r'must set self.pool: Pool\("mean"\)'):
        Careless("encoder", "head").read(tokens, Sequence(5))
    with pytest.raises(NotImplementedError, match="Nothing must define embed"):
        type("Nothing", (Model,), {})().encode(series)


@pytest.mark.parametrize(
    ("case", "wrong", "message"),
    [
        ("vit", {"backnd": "dense"}, r"VisionTransformer takes no argument 'backnd'.*backend\?"),
        ("vit", {"layer": [0]}, r"VisionTransformer takes no argument 'layer'"),
        ("own", {"serie": 1}, r"Own takes no argument 'serie'\. Did you mean series\?"),
        ("graphs", {"backnd": "dense"}, r"takes no argument 'backnd'.*got str.*backend\?"),
        ("texts", {"attention_mask": 1}, r"takes no argument 'attention_mask'\. It takes ids, len"),
    ],
)
def test_a_misspelt_input_is_answered(case: str, wrong: dict[str, Any], message: str) -> None:
    model = CASES[case].make()
    for call in (model.encode, model.features):
        with pytest.raises(TypeError, match=message):
            call(**CASES[case].inputs, **wrong)


@pytest.mark.parametrize("wrong", ["node_maks", "edge_atr", "batchh"])
def test_a_misspelt_tensor_of_a_graph_is_no_table_of_pairs(wrong: str) -> None:
    near = {"node_maks": "node_mask", "edge_atr": "edge_attr", "batchh": "batch"}[wrong]
    with pytest.raises(TypeError, match=f"no argument '{wrong}', .* of 13, .*{near}"):
        graph()(**GRAPHS, **{wrong: torch.ones(5)})


def test_features_of_edges_have_a_row_for_each() -> None:
    x, edge_index, batch = GRAPHS.values()
    with pytest.raises(ValueError, match=r"a row for each of 6 edges, got \(5,\); .* is batch="):
        graph()(x, edge_index, batch)


def test_every_model_says_in_its_signature_that_it_takes_a_backend() -> None:
    models = [case.make() for case in CASES.values()] + list(SCORED.values())
    for model in models:
        for call in (model.forward, model.encode, model.features):
            assert "backend" in inspect.signature(call).parameters, (type(model), call)


TARGETS = {
    "vit": (VisionTransformer, {"patch_size": 4, "registers": 2}),
    "graphs": (GraphTransformer, {"node_types": 7}),
    "texts": (TextEncoder, {"vocab_size": 30}),
}
SIZES = {"dim": 16, "depth": 2, "heads": 2}
NEAR = {"_target_": "attention_core.Neighborhood", "radius": 1}
MORE: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 16, "mask": [None, NEAR], "num_classes": 3},
    "graphs": {
        "virtual_nodes": 1,
        "mask": {"_target_": "attention_core.masks.Edges"},
        "biases": [{"_target_": "graph.encodings.RandomWalkBias", "heads": 2, "steps": 3}],
        "num_classes": 3,
    },
    "texts": {
        "positions": None,
        "bias": {"_target_": "attention_core.RelativeTable.t5", "heads": 2, "bidirectional": True},
        "num_classes": 3,
    },
}


@pytest.fixture(params=TARGETS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Model, Path]:
    """A model, and a file of it as `attn export` writes them."""
    kind, sizes = TARGETS[request.param]
    target = f"{kind.__module__}.{kind.__name__}"
    config = {"_target_": target, **SIZES, **sizes, **MORE[request.param]}
    made = arguments(kind, _written({}, config, tmp_path / "no_weights.safetensors"))
    model = kind(**made)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    file = _written(model.state_dict(), config, tmp_path / "model.safetensors")
    return request.param, model.eval(), file


def _written(weights: dict[str, Tensor], config: dict[str, Any], file: Path) -> Path:
    save_safetensors(weights, file, {"model": json.dumps(config), "attention_core": "0"})
    return file


def test_a_model_loads_what_was_exported_of_it(exported: tuple[str, Model, Path]) -> None:
    name, model, file = exported
    inputs = CASES[name].inputs
    again = type(model).from_pretrained(file).eval()
    torch.testing.assert_close(again(**inputs), model(**inputs), rtol=0, atol=0)
    other = type(model).from_pretrained(file, num_classes=7, dropout=0.1).eval()
    assert other(**inputs).shape[-1] == 7 and other.num_classes == 7
    torch.testing.assert_close(other.encode(**inputs)[0], model.encode(**inputs)[0])
    with pytest.raises(UsageError, match=f"of a {type(model).__name__}, not of a SwinTransformer"):
        SwinTransformer.from_pretrained(file)


def test_an_exported_model_changes_its_image_size_and_its_pooling(tmp_path: Path) -> None:
    model = vit(registers=0)
    sizes = {"patch_size": 4, "image_size": 16, "num_classes": 3, **SIZES}
    file = _written(model.state_dict(), sizes, tmp_path / "model.safetensors")
    larger = VisionTransformer.from_pretrained(file, image_size=32).eval()
    assert larger.positions is not None and larger.positions.size == (8, 8)
    wanted = model.positions.resampled((8, 8))
    torch.testing.assert_close(larger.positions.table[1:], wanted)
    assert larger(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    pooled = VisionTransformer.from_pretrained(file, pooling="map", class_token=True).eval()
    torch.testing.assert_close(pooled.encode(IMAGE)[0], model.eval().encode(IMAGE)[0])
    torch.testing.assert_close(pooled.head.weight, model.head.weight)


def test_a_model_loads_its_state_dict_beside_its_arguments(tmp_path: Path) -> None:
    model = graph().eval()
    checkpoint = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": checkpoint, "epoch": 3}, tmp_path / "last.ckpt")
    known = {"dim": 16, "depth": 2, "heads": 2, "node_types": 7, "virtual_nodes": 1}
    for weights in (model.state_dict(), tmp_path / "last.ckpt"):
        again = GraphTransformer.from_pretrained(weights, num_classes=3, **known).eval()
        torch.testing.assert_close(again(**GRAPHS), model(**GRAPHS), rtol=0, atol=0)
        with pytest.raises(UsageError, match=r"Give its arguments.*dim=.*dim, depth, heads, num"):
            GraphTransformer.from_pretrained(weights)
        with pytest.raises(UsageError, match="config: it is transformers'.*arguments by name"):
            GraphTransformer.from_pretrained(weights, config=known)
        with pytest.raises(UsageError, match="do not fit this GraphTransformer.*blocks.2"):
            GraphTransformer.from_pretrained(weights, num_classes=3, **{**known, "depth": 3})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "attention_core.training.cli.main",
        "attention_core.planning.plan",
        "attention_core.checks.torch.load",
        "attention_core.models.torch.nn.Identity",
        "vision.VisionTransformer.from_pretrained",
        "vision.VisionTransformer.__subclasses__",
        "nlp.TextEncoder",
        "attention_core.NoSuchMask",
    ],
)
def test_a_file_chooses_no_code(target: str, tmp_path: Path) -> None:
    config = {"_target_": "vision.VisionTransformer", "mask": {"_target_": target, "radius": 1}}
    file = _written(vit().state_dict(), config, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=f"mask is a {target}, which a file cannot name"):
        VisionTransformer.from_pretrained(file)


def test_a_file_runs_no_module(tmp_path: Path) -> None:
    """One of the model's own package, such as a script, which to import is to run."""
    config = {"_target_": "Own", "mask": {"_target_": f"{__package__}.example_script.Mask"}}
    file = _written(own().state_dict(), config, tmp_path / "model.safetensors")
    (tmp_path / "example_script.py").write_text("raise SystemExit")
    package = sys.modules[str(__package__)]
    package.__path__.append(str(tmp_path))
    try:
        with pytest.raises(UsageError, match="example_script.Mask, which a file cannot name"):
            Own.from_pretrained(file)
    finally:
        package.__path__.remove(str(tmp_path))


@pytest.mark.parametrize("said", ["{", "3", '["a", "b"]', "[" * 100_000])
def test_a_file_that_says_its_model_wrongly_is_refused(said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_safetensors(vit().state_dict(), file, {"model": said, "attention_core": "0"})
    with pytest.raises(UsageError, match="must name a model and its arguments"):
        VisionTransformer.from_pretrained(file)


@pytest.mark.parametrize("wrong", [{"radius": "x"}, {"_args_": 3}, {"reach": 1}])
def test_a_part_that_a_file_has_wrongly_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    mask = {"_target_": "attention_core.Neighborhood", **wrong}
    config = {"_target_": "vision.VisionTransformer", "mask": mask}
    file = _written(vit().state_dict(), config, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="mask is a attention_core.Neighborhood, but "):
        VisionTransformer.from_pretrained(file)


def test_the_folder_of_an_exported_file_will_do(exported: tuple[str, Model, Path]) -> None:
    name, model, file = exported
    again = type(model).from_pretrained(file.parent).eval()
    torch.testing.assert_close(again(**CASES[name].inputs), model(**CASES[name].inputs))
    with pytest.raises(UsageError, match="config: it is transformers.*give its arguments by name"):
        type(model).from_pretrained(file, config={"model_type": "bert"})


def test_weights_that_no_model_of_the_class_can_have_are_refused() -> None:
    with pytest.raises(UsageError, match="a Own loads those by its own names alone.* are a"):
        Own.from_pretrained({"a": torch.ones(1)})
    theirs = {"embeddings.word_embeddings.weight": torch.ones(3, 4)}
    with pytest.raises(UsageError, match="config: a dict is needed.*got a SimpleNamespace"):
        TextEncoder.from_pretrained(theirs, config=SimpleNamespace(model_type="bert"))  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_the_weights_of_a_compiled_or_parallel_model_load(prefix: str) -> None:
    model = vit()
    weights = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    sizes = {"patch_size": 4, "image_size": 16, "num_classes": 3, "registers": 2}
    again = VisionTransformer.from_pretrained(weights, dim=16, depth=2, heads=2, **sizes)
    torch.testing.assert_close(again.eval()(IMAGE), model.eval()(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize(
    "bias",
    [
        ALiBi(2) + RelativeTable.t5(2),
        RelativeTable.swin(2, 3, special=True),
        RelativeTable.hops(2, 3),
    ],
    ids=["sum", "swin", "hops"],
)
def test_a_bias_that_was_pickled_when_all_were_in_one_file_is_found(bias: nn.Module) -> None:
    names = re.compile(rb"cattention_core\.biases\.\w+$", re.MULTILINE)
    old, found = names.subn(b"cattention_core.biases", pickle.dumps(bias, protocol=0))
    again = pickle.loads(old)
    assert found >= 2 and again.state_dict().keys() == bias.state_dict().keys()


def test_the_table_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same eight calls on a ViT, a GraphTransformer and a TextEncoder, as they stand there."""
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    section = guide.split("## Models\n")[1].split("\n## ")[0]
    scope: dict[str, Any] = {"torch": torch}
    imports, own_model = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(imports, scope)
    rows = [re.findall(r"`([^`]+)`", line) for line in section.splitlines() if line[:3] == "| `"]
    assert len(rows) == 8 and all(len(row) == 3 for row in rows)
    monkeypatch.chdir(tmp_path)
    names = ("vit", "gt", "bert")
    for row in rows[:-1]:
        for call in row:
            exec(call, scope)
    sizes = {"dim": 32, "depth": 2, "heads": 4, "num_classes": 10}  # ten classes by now
    own = ({"patch_size": 4, "image_size": 16}, {"node_types": 7}, {"vocab_size": 300})
    for name, more, call in zip(names, own, rows[-1], strict=True):
        file = tmp_path / f"{name}.safetensors"
        _written(scope[name].state_dict(), {**sizes, **more}, file)
        assert eval(call, scope).num_classes == 10
    exec(
        "from torch import nn, Tensor\nfrom typing import Unpack\n"
        "from attention_core import *\n" + own_model,
        scope,
    )
    made = scope["SeriesEncoder"](16, 1, 2, num_classes=3, dropout=0.1)
    assert made(torch.rand(2, 5, 1), torch.tensor([5, 3])).shape == (2, 3)
