"""`attn new-domain`: the two files that a domain of one's own begins with."""

import keyword
import sys
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from attention_core.errors import UsageError
from attention_core.escape import on_one_line, shell_word
from attention_core.files import replace_file

OURS = ("attention_core", "vision", "graph", "nlp")


def new_domain(name: str, into: Path) -> None:
    """Write `<into>/<name>.py` and `<into>/experiment/<name>.yaml`, which train as they are.

    Raises:
        UsageError: `name` cannot be a module of the user's own, or one of the files is there.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise UsageError(
            f"NAME must be the name of a Python module, such as audio or time_series; got {name!r}."
        )
    if name in OURS or name in sys.stdlib_module_names:
        owner = "attention-core" if name in OURS else "Python"
        raise UsageError(f"NAME {name!r} is a package of {owner} already. Choose another.")
    templates = files("attention_core.training") / "templates" / "new_domain"
    written = {
        into / f"{name}.py": "domain.py.j2",
        into / "experiment" / f"{name}.yaml": "experiment.yaml.j2",
    }
    for path in written:
        if path.exists():
            raise UsageError(f"{str(path)!r} exists already. It is never overwritten.")
    title = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    for path, template in written.items():
        source = (templates / template).read_text(encoding="utf-8")
        with replace_file(path, "w") as file:
            file.write(environment.from_string(source).render(name=name, title=title))
        print(f"wrote {on_one_line(path)}")
    print(f"train it with: attn train experiment={name} --config-dir {shell_word(into)}")
