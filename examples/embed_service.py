"""Run a service inside a program, subscribe to it, and change it at run time.

python examples/embed_service.py streamseg/assets/street.mp4
"""

import sys

import streamseg

config = {
    "sources": [{"url": sys.argv[1], "name": "street"}],
    "publish": {"bind": "tcp://127.0.0.1:*", "wait_subscribers": 1},
}
with (
    streamseg.serve(config) as service,
    streamseg.connect(service.endpoints["masks"], sources=["street"]) as results,
):
    for result in results:
        print(f"frame {result.index}: {len(result.instances)} objects")
        if result.index == 50:
            service.sources.remove("street")  # its remaining results arrive, then the loop ends
