"""Cases 60 and 61: a client that is cut again and again while two nodes emit in tight loops.

The seam is where a replay ends and live delivery begins. A second client that is never cut is the
witness: what the cut one has seen must be the same packets, once, in the same order.
"""

from __future__ import annotations

import pytest

from support.cluster import Cluster, in_room
from support.js_driver import JSDriver

KINDS = ("async", "mixed")
CLUSTER = {"max_missed_packets": 1_000_000}  # cut during replays, a client may fall far behind
soak = pytest.mark.soak
HOPS = pytest.mark.parametrize("hops", [False, True], ids=["stays", "hops"])
# the whole matrix is a soak test
DELAYS = pytest.mark.parametrize(
    ("delay_ms", "hops"), [(30, False), (30, True), (150, True)], ids=["30-stays", "30-hops", "150-hops"]
)


async def seam(
    js: JSDriver,
    cluster: Cluster,
    room: str,
    *,
    drops: int,
    delay_ms: int,
    handler: float = 0,
    hops: bool = True,
    padding: int = 0,
    client_options: dict | None = None,
    **churn,
) -> dict:
    """:param handler: seconds that the connect handlers await. Returns the report of the churn."""
    await cluster.control_all("configure", connect_delay=handler)
    witness = await in_room(js, cluster.b.url, room, count=True)
    client = await in_room(js, cluster.a.url, room, count=True, **client_options or {})
    emitters = {"A": cluster.a, "B": cluster.b}
    for name, node in emitters.items():
        await node.control("start_emitter", name=name, room=room, padding=padding)
    if hops:
        churn["hop"] = [cluster.b.url, cluster.a.url]
    churn.setdefault("witness", witness.name)
    report = await client.churn(drops, delay_ms=[delay_ms], **churn)
    sent = {name: await node.control("stop_emitter", name=name) for name, node in emitters.items()}
    await cluster.mark(room)
    for one in (witness, client):
        await one.event("end")
    assert report["recovered"] == drops, report["bad"]
    for one in (witness, client):
        stats = await one.stats(**sent)
        wrong = {
            key: stats[key] for key in ("missing", "duplicated", "inverted", "without_offset", "repeated_offsets")
        }
        assert not any(wrong.values()), stats
        assert stats["received"] == sum(sent.values())
    order = await client.same_order_as(witness)
    assert order["shared"] == sum(sent.values())
    assert not order["out_of_order"] and not order["offsets_differ"], order
    assert min(sent.values()) > drops  # there was something to lose
    if churn["witness"]:
        assert report["live"] == (drops + 1) // 2  # and the seam was crossed
    return report


@DELAYS
async def test_case_60_seam(cluster, js, room, delay_ms, hops):
    await seam(js, cluster, room, drops=40, delay_ms=delay_ms, hops=hops)


@DELAYS
async def test_case_61_seam_with_a_handler_of_20_ms(cluster, js, room, delay_ms, hops):
    await seam(js, cluster, room, drops=40, delay_ms=delay_ms, hops=hops, handler=0.02)


@HOPS
async def test_case_61_seam_with_a_handler_of_500_ms(cluster, js, room, hops):
    await seam(js, cluster, room, drops=8, delay_ms=30, hops=hops, handler=0.5)


@pytest.mark.parametrize("version", ["4-6", "4-7"])
async def test_case_60_seam_with_older_clients(cluster, js, room, version):
    await seam(js, cluster, room, drops=20, delay_ms=30, client_options={"version": version})


@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"]], ids=["polling", "upgrade"])
async def test_case_60_seam_over_polling(cluster, js, room, transports):
    options = {"options": {"transports": transports}}
    await seam(js, cluster, room, drops=20, delay_ms=30, client_options=options)


@pytest.mark.parametrize("how", ["abort", "silence"])
async def test_case_60_seam_without_a_close_frame(cluster, js, room, how):
    """The server has not noticed, or only now notices, that the old connection is dead."""
    await seam(js, cluster, room, drops=10, delay_ms=30, how=how)


async def test_case_60_seam_cut_during_the_replay(cluster, js, room):
    await seam(js, cluster, room, drops=40, delay_ms=30, stay_ms=[0, 3], witness=None)


async def test_case_61_seam_cut_again_while_the_handler_runs(cluster, js, room):
    """A try that breaks leaves a session that can be recovered again."""
    report = await seam(js, cluster, room, drops=20, delay_ms=30, handler=0.05, again_ms=[0, 60])
    assert report["interrupted"] > 5


async def test_case_60_seam_with_packets_beyond_a_notification(cluster, js, room):
    """One in seven is more than NOTIFY holds; order among large and small is kept."""
    await seam(js, cluster, room, drops=20, delay_ms=30, padding=9000)


@soak
@pytest.mark.timeout(900)
@HOPS
@pytest.mark.parametrize("delay_ms", [30, 150])
@pytest.mark.parametrize("handler", [0, 0.02, 0.5])
@pytest.mark.parametrize("drops", [40, 200])
async def test_case_61_soak_whole_matrix(cluster, js, room, drops, handler, delay_ms, hops):
    await seam(js, cluster, room, drops=drops, delay_ms=delay_ms, handler=handler, hops=hops, timeout=800)


@soak
@pytest.mark.parametrize("run", range(50))
async def test_case_61_soak_fifty_times(cluster, js, room, run):
    await seam(js, cluster, room, drops=40, delay_ms=(30, 150)[run % 2], handler=0.02, hops=run % 4 > 1, seed=run)
