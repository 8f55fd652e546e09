"""Web viewer: a subscriber that shows the results of a service on a web page.

Requires ``streamseg[view]`` (starlette, uvicorn, websockets); torch and a video decoder are not
needed. ``docs/viewer.md`` describes the page and the messages of its WebSocket.
"""

from streamseg.viewer.server import Viewer

__all__ = ["Viewer"]
