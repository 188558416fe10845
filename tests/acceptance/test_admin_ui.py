"""Case 34: the Socket.IO Admin UI, as its operator sees it in a browser, and the data that it receives."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest
from playwright.async_api import async_playwright

from support.browser import CHROMIUM_OPTIONS
from support.node_program import ADMIN_AUTH
from support.raw_client import RawClient

TIMEOUT_MS = 60_000  # for what takes seconds on an idle machine


async def operator(js, url):
    return await js.connect(url, namespace="/admin", auth=ADMIN_AUTH)


@pytest.mark.parametrize("mode", ["development", "production"])
async def test_an_operator_sees_both_modes_in_a_browser(make_cluster, js, js_modules, chromium, mode, tmp_path):
    ui = js_modules / "node_modules" / "@socket.io" / "admin-ui" / "ui" / "dist"
    node = make_cluster(1, namespaces=["/"], admin=mode, static=str(ui)).a
    client = await js.connect(node.url, auth={"rooms": ["the room"]})
    sid = (await client.state())["sid"]
    await node.emit("greeting", "to all")
    await client.event("greeting")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        page = await browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(TIMEOUT_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{node.url}/ui/index.html")
        dialog = page.locator(".v-dialog--active")
        await dialog.get_by_label("Server URL").fill(node.url)
        await dialog.get_by_label("Username").fill(ADMIN_AUTH["username"])
        await dialog.get_by_label("Password").fill(ADMIN_AUTH["password"])
        await dialog.get_by_role("button", name="Connect").click()
        await page.get_by_text("connected", exact=True).first.wait_for()
        await page.screenshot(path=tmp_path / "dashboard.png")
        if mode == "development":
            await page.get_by_role("link", name="Sockets").click()
            await page.get_by_text(sid).wait_for()
            assert (await client.rejoin())["recovered"]
            await node.emit("after", "the recovery", room="the room")
            await client.event("after")
            await page.get_by_role("link", name="Rooms").click()
            await page.get_by_text("the room").first.wait_for()
            await page.screenshot(path=tmp_path / "rooms.png")
            await page.get_by_role("link", name="Events").click()
            for shown in ("Disconnection", "Connection", "Event sent", "Room joined", "Event name: after"):
                await page.get_by_role("row").filter(has_text=shown).first.wait_for()
        else:
            assert (await client.rejoin())["recovered"]
        await page.get_by_role("link", name="Servers").click()
        await page.get_by_text("healthy", exact=False).first.wait_for()
        await page.screenshot(path=tmp_path / "servers.png")
        assert errors == []
        await browser.close()


@pytest.mark.parametrize("mode", ["development", "production"])
async def test_case_34_what_an_operator_sees_of_recoveries(make_cluster, js, mode):
    cluster = make_cluster(1, namespaces=["/"], admin=mode)
    watching = await operator(js, cluster.a.url)
    await watching.event("config")
    client = await js.connect(cluster.a.url, auth={"rooms": ["r"], "user": "u"})
    state = await client.state()
    await cluster.a.emit("e", b"binary", room="r")
    await client.event("e")
    assert await client.call("echo", "x") == "x"
    for how in ("drop", "abort", "silence"):  # the last one is a takeover: the former connection is still open
        assert (await client.rejoin(how))["recovered"]
        await cluster.a.logged({"drop": 1, "abort": 2, "silence": 3}[how], hook="disconnect", user="u")
    await client.disconnect()
    await cluster.a.logged(4, hook="disconnect")
    stats = await watching.event("server_stats")
    if mode == "development":
        for _ in range(4):
            assert (await watching.event("socket_connected"))["args"][0]["id"] == state["sid"]
            assert (await watching.event("socket_disconnected"))["args"][1] == state["sid"]
        assert (await watching.event("event_received"))["args"][:3] == ["/", state["sid"], ["echo", "x"]]
        assert (await watching.event("event_sent"))["args"][:2] == ["/", state["sid"]]
    assert stats["args"][0]["serverId"]
    received = json.dumps(list(watching.inbox)) + json.dumps(stats)
    assert (await watching.state())["pid"] is None
    assert state["pid"] not in received
    assert not await cluster.a.errors()  # no KeyError, among others
    with psycopg.connect(cluster.dsn) as connection:
        for table in ("sio_packets", "sio_sessions"):
            found = connection.execute(f"SELECT count(*) FROM {table} WHERE namespace = '/admin'").fetchone()
            assert found == (0,)
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() > (0,) or table == "sio_sessions"


async def test_a_connection_that_is_gone_before_its_handler_runs(make_cluster):
    """Upstream's instrumentation looks its socket up, and would raise KeyError there and at its end."""
    cluster = make_cluster(1, namespaces=["/"], admin="development", middleware=True)
    node = cluster.a
    await node.control("script", hook="middleware", user="u", steps=[{"op": "sleep", "seconds": 1.0}])
    async with RawClient(node.url, transport="polling") as c:
        sending = asyncio.create_task(c.send('0{"user":"u"}'))
        await node.logged(hook="middleware")
        await c._write("1")  # Engine.IO's CLOSE
        await asyncio.gather(sending, return_exceptions=True)
    [connect] = await node.logged(hook="connect", user="u")
    [disconnect] = await node.logged(hook="disconnect", user="u")
    assert connect["sid"] == disconnect["sid"]


async def test_an_operator_moves_and_disconnects_clients_of_other_nodes(make_cluster, js):
    cluster = make_cluster(2, namespaces=["/"], admin="development")
    watching = await operator(js, cluster.a.url)
    there = await js.connect(cluster.b.url)
    sid = (await there.state())["sid"]
    await watching.emit("join", "/", "by the operator", sid)
    await cluster.b.emit("end")
    await there.event("end")
    await watching.emit("emit", "/", "by the operator", "hello", "there")
    assert (await there.event("hello"))["args"][0] == "there"
    assert await cluster.b.control("fetch_rooms", sid=sid) == sorted([sid, "by the operator"])
    await watching.emit("_disconnect", "/", False, sid)
    assert (await there.wait_for("disconnect"))["reason"] == "io server disconnect"


async def test_an_operator_who_comes_second_is_told_what_is_there(make_cluster, js):
    node = make_cluster(1, namespaces=["/"], admin="development").a
    first = await operator(js, node.url)
    client = await js.connect(node.url)
    sid = (await client.state())["sid"]
    second = await operator(js, node.url)
    [sockets] = (await second.event("all_sockets"))["args"]
    assert sid in [socket["id"] for socket in sockets]
    assert len((await first.event("all_sockets"))["args"]) == 1


async def test_who_is_no_operator_is_refused(make_cluster, js):
    node = make_cluster(1, namespaces=["/"], admin="production").a
    stranger = await js.create(node.url, namespace="/admin", auth={"username": "operator", "password": "guess"})
    await stranger.do("connect")
    assert (await stranger.refused())["message"] == "authentication failed"


async def test_handlers_run_while_nothing_can_be_shown(make_cluster, js, pg_admin):
    cluster = make_cluster(1, namespaces=["/"], admin="development")
    client = await js.connect(cluster.a.url)
    name = cluster.dsn.split("@/")[1].split("?")[0]
    cluster.errors_expected = True
    pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        pg_admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        assert await client.call("echo", "x") == "x"
    finally:
        pg_admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
