"""``streamseg eval`` as a script, for launchers that need a file.

    python tools/eval.py CONFIG.yaml …
    torchrun tools/eval.py CONFIG.yaml …

The evaluation is not distributed: only the process with rank 0 runs it.
"""

import os
import sys

from streamseg.__main__ import main

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
    main(["eval", *sys.argv[1:]])
