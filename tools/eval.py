"""``streamseg eval`` as a file, for launchers that want one.

    python tools/eval.py CONFIG.yaml …
    torchrun tools/eval.py CONFIG.yaml …

Measuring isn't shared: of several processes the first does it.
"""

import os
import sys

from streamseg.__main__ import main

if __name__ == "__main__" and os.environ.get("RANK", "0") == "0":
    main(["eval", *sys.argv[1:]])
