import os
import sys

if __name__ == "__main__":
    # `python -m` has put the current folder first, where a yaml.py would be imported for PyYAML
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from attention_core.training.cli import main

    main()
