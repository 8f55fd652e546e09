"""The viewer: a subscriber like any other that shows what it receives as a web page.

Needs ``streamseg[view]`` (starlette, uvicorn, websockets) and nothing of the service's: no torch,
no decoder. ``docs/viewer.md`` describes the page and what goes over its WebSocket.
"""

from streamseg.viewer.server import Viewer

__all__ = ["Viewer"]
