"""Print what a running service publishes.

streamseg serve --source street.mp4 --wait-subscribers 1
python examples/subscribe.py tcp://127.0.0.1:5555
"""

import sys
from collections import Counter

import streamseg

with streamseg.connect(sys.argv[1]) as results:
    for result in results:
        counts = Counter(result.instances.names)
        objects = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        print(f"{result.source} {result.pts:.2f} s: {objects or 'nothing'}")
    print(f"lost messages: {sum(results.gaps.values())}")
