"""What pyproject.toml cannot say: the folder `conf` is installed as `attention_core.conf`.

Under its own name it would collide with the `conf` package of any user's project.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["attention_core*", "vision*", "graph*", "nlp*"]),
        "attention_core.conf",
    ],
    package_dir={"attention_core.conf": "conf"},
)
