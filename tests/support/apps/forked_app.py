"""`gunicorn support.apps.forked_app:app --preload`: the module is imported before the workers are forked."""

from __future__ import annotations

from typing import Any

from . import fastapi_app

app = fastapi_app.app
sio = fastapi_app.sio
admin = sio.instrument(auth=False)


@sio.event
async def drawn(sid: str) -> dict[str, Any]:
    """Return what the nodes of a cluster must not have in common."""
    node = sio.manager.node
    assert node is not None
    return {
        "node": node.id,
        "channel": node.channel,
        "acknowledgement": next(node.delivery._ack_ids),
        "callback": next(node.callbacks._numbers),
        "request": next(node.requests._numbers),
        "sid": sio.eio.generate_id(),
        "server in the Admin UI": admin.server_id,
    }
