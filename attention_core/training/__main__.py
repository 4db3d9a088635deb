import os
import sys

if __name__ == "__main__":
    # `python -m` has put the current folder first, where a yaml.py would be imported for PyYAML
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    # Processes that multiprocessing starts run this file, too, only where it is no module's
    sys.modules["__main__"].__spec__ = None

from attention_core.training.cli import main

if __name__ == "__main__":
    main()
