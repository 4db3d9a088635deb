"""`attn new-domain`: the two files that a domain of one's own begins with."""

import keyword
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import on_one_line, shell_word
from attention_core.files import replace_file
from attention_core.training.own import is_foreign

#: What a new domain can be trained for, each a template of its name.
TASKS = ("classification", "regression", "forecasting", "segmentation")
OURS = ("attention_core", "vision", "graph", "nlp")


def new_domain(name: str, into: Path, task: str = "classification") -> None:
    """Write `<into>/<name>.py` and `<into>/experiment/<name>.yaml`, which train as they are.

    Args:
        task: one of `TASKS`.

    Raises:
        UsageError: `name` cannot be a module of the user's own, there is no such task, or one of
            the files is there.
    """
    if task not in TASKS:
        raise UsageError(
            f"--task must be one of {', '.join(TASKS)}; got {task!r}.{did_you_mean(task, TASKS)}"
        )
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise UsageError(
            f"NAME must be the name of a Python module, such as audio or time_series; got {name!r}."
        )
    if name in OURS or name in sys.stdlib_module_names:
        owner = "attention-core" if name in OURS else "Python"
        raise UsageError(f"NAME {name!r} is a package of {owner} already. Choose another.")
    if is_foreign(name):
        raise UsageError(
            f"NAME {name!r} is a package that attention-core needs: `allow` cannot name it. "
            "Choose another."
        )
    written = {
        into / f"{name}.py": "domain.py.j2",
        into / "experiment" / f"{name}.yaml": "experiment.yaml.j2",
    }
    for path in written:
        if path.exists():
            raise UsageError(f"{str(path)!r} exists already. It is never overwritten.")
    title = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    environment = Environment(
        loader=PackageLoader("attention_core.training", "templates/new_domain"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A task's template has the parts of both files that are its own
    template = environment.get_template(f"{task}.j2")
    for path, base in written.items():
        with replace_file(path, "w") as file:
            file.write(template.render(name=name, title=title, base=base))
        print(f"wrote {on_one_line(path)}")
    print(f"train it with: attn train experiment={name} --config-dir {shell_word(into)}")
