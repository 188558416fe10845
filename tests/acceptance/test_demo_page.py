"""The demo's page in a real browser: what it counts, that it can be worked by keyboard and by screen reader, on a
phone, and that it asks nobody else for anything."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, async_playwright

from sio_pg_adapter.demo.processes import Cluster
from sio_pg_adapter.demo.web import Page as PageApplication
from support.browser import CHROMIUM_OPTIONS
from support.demo_process import TIMEOUT, Demo, alive, children
from support.tallies import TALLIES

TOTALS = ("lost", "doubled", "recovered", "breaks", "replayed")
SETTLED = "#clients:has(article + article + article):not(:has(article:not([data-state=live])))"
SERVING = ".servers:has(#node-A.up):has(#node-B.up):has(#database.up)"


@pytest.fixture(scope="module")
def url(chromium: str, js_modules: Any) -> Iterator[str]:
    """The address of the page of one demo, for all tests here; at the end it leaves nothing behind."""
    demo = Demo("--port", "0")
    with contextlib.closing(demo):
        yield demo.wait_for(r"by hand: (\S+)")
        left = children(demo.process.pid)
        demo.process.send_signal(signal.SIGINT)
        # 0 where this run was started with SIGINT ignored, as a shell's background job is
        assert demo.wait() in {130, 0}, "".join(demo.lines)
        assert "Traceback" not in "".join(demo.lines)
        assert not any(alive(pid) for pid in left)


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        await browser.close()


class Shown:
    """The page as one looks at it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(TIMEOUT * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda websocket: self.asked.append(websocket.url))

    async def until(self, condition: str) -> None:
        await self.page.wait_for_function(condition, timeout=TIMEOUT * 1000)

    async def number(self, selector: str) -> int:
        return int(await self.page.inner_text(selector))

    async def totals(self) -> dict[str, int]:
        return {what: await self.number(f"#{what}") for what in TOTALS}

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    async def press(self, name: str) -> None:
        """Press a button as soon as it does something: the node that it asks for may be down just now."""
        await self.button(name).and_(self.page.locator("[aria-disabled=false]")).click()


@pytest.fixture
async def show(url: str, browser: Browser) -> AsyncIterator[Callable[..., Any]]:
    """Open the page, and wait until its clients are served. No script of it may fail.

    Its content security policy, off by default, would keep `until` from evaluating a condition.
    """
    opened: list[Shown] = []

    async def show(route: Callable[[WebSocketRoute], None] | None = None, **context: Any) -> Shown:
        page = await (await browser.new_context(**{"bypass_csp": True, **context})).new_page()
        if route is not None:
            await page.route_web_socket(re.compile("/socket.io/"), route)
        shown = Shown(page)
        opened.append(shown)
        await page.goto(url)
        await shown.page.wait_for_selector(SETTLED)
        await shown.page.wait_for_selector(SERVING)
        return shown

    yield show
    for shown in opened:
        assert shown.errors == []


# -- what it counts ---------------------------------------------------------------------------------------


async def test_what_is_broken_by_hand_recovers(show):
    shown = await show()
    page = shown.page
    sid, breaks = await page.inner_text("#Ada .sid code"), 0
    for button, told in (
        ("Cut (Ada)", r"Ada: cut; back on node A "),
        ("Move to node B (Ada)", r"Ada: moved; back on node B "),
        ("Kill node B", r"(Ada|Ben): node B killed; back on node A "),
        ("Move to node B (Ada)", r"Ada: moved; back on node B "),
    ):
        await shown.press(button)
        breaks += 2 if button.startswith("Kill") else 1  # Ada and Ben were there
        await shown.until(f"document.getElementById('breaks').textContent === '{breaks}'")
        await shown.page.wait_for_selector(SETTLED)
        story = await page.inner_text("#story")
        assert re.match(told, story), story
        missed, replayed = re.search(r"with the same sid after .* s; (\d+) missed, (\d+) replayed", story).groups()
        assert int(missed) == int(replayed) > 0, story
        assert await page.inner_text("#Ada .sid code") == sid
    await page.evaluate("""() => {
        const database = document.getElementById("database");
        window.states = [];
        new MutationObserver(() => states.push(database.className)).observe(database, {attributes: true});
    }""")
    await shown.press("Restart PostgreSQL")
    await shown.until("states.includes('down') && states.at(-1) === 'up'")
    received = await shown.number("#Ada [data-count=received]")
    await shown.until(f"+document.querySelector('#Ada [data-count=received]').textContent > {received + 5}")
    totals = await shown.totals()
    assert totals["lost"] == totals["doubled"] == 0
    assert totals["recovered"] == totals["breaks"] >= breaks
    assert totals["replayed"] > 0


async def test_chaos_loses_and_doubles_nothing(show):
    shown = await show()
    page = shown.page
    await page.evaluate("""() => {
        window.announced = [];
        new MutationObserver(() => announced.push(document.getElementById("story").textContent))
            .observe(document.getElementById("story"), {childList: true});
    }""")
    await page.get_by_role("switch", name="Chaos").click()
    for what in ("cut; back", "moved; back", " killed; back", "PostgreSQL is restarted"):
        await shown.until(f"document.getElementById('past').textContent.includes('{what}')")
    await shown.until("document.getElementById('story').textContent.includes(' recovered, ')")  # the summary
    await page.get_by_role("switch", name="Chaos").click()
    await shown.page.wait_for_selector(SETTLED)
    totals = await shown.totals()
    assert totals["lost"] == totals["doubled"] == 0
    assert totals["recovered"] == totals["breaks"] > 0
    for name in ("Ada", "Ben", "Cleo"):
        missed = await shown.number(f"#{name} [data-count=missed]")
        assert missed == await shown.number(f"#{name} [data-count=replayed]")
    assert await page.locator(".timeline .cell.replayed").count() > 0
    assert await page.locator(".timeline .cell.lost, .timeline .cell.doubled").count() == 0
    # A screen reader hears of it in summary, and not of each break; after its end again of who comes back
    announced = await page.evaluate("announced")
    [end] = [i for i, each in enumerate(announced) if each.startswith("Chaos is off")]
    assert announced[0] == "Chaos is on."
    assert all(re.match(r"Chaos is on[.:]", each) for each in announced[:end]), announced


async def test_a_loss_on_the_wire_shows_and_so_does_a_double(show):
    spoil: list[str] = []

    def route(websocket: WebSocketRoute) -> None:
        server = websocket.connect_to_server()

        def to_page(message: str | bytes) -> None:
            what = spoil.pop() if spoil and isinstance(message, str) and '["tick"' in message else "pass"
            for _ in range({"swallow": 0, "pass": 1, "repeat": 2}[what]):
                websocket.send(message)

        server.on_message(to_page)

    shown = await show(route)
    page = shown.page
    assert await shown.totals() == dict.fromkeys(TOTALS, 0)
    spoil.append("swallow")
    await shown.until("document.getElementById('lost').textContent === '1'")
    assert await shown.number("#doubled") == 0
    assert "Not exact: 1 lost" in await page.inner_text("#story")
    await page.wait_for_selector(".timeline .cell.lost[data-mark]", state="attached")
    spoil.append("repeat")
    await shown.until("document.getElementById('doubled').textContent === '1'")
    assert await shown.number("#lost") == 1


async def test_the_page_spoils_a_packet_of_its_own_to_show_that_it_counts(show):
    shown = await show()
    await shown.page.get_by_text("How is it counted").click()
    for button, lost, doubled in (
        ("Swallow a packet", 1, 0),
        ("Repeat a packet", 1, 1),
        ("Set the counters to 0", 0, 0),
    ):
        await shown.button(button).click()
        for what, count in (("lost", lost), ("doubled", doubled)):
            await shown.until(f"document.getElementById('{what}').textContent === '{count}'")


@pytest.mark.parametrize("how", ["swallowed", "cut off"])
async def test_what_is_due_shows_before_it_comes(show, how):
    """The head is the database's: a client that gets nothing, though it looks connected, is seen to wait."""
    silent = False

    def route(websocket: WebSocketRoute) -> None:
        server = websocket.connect_to_server()
        server.on_message(lambda message: None if silent and "tick" in str(message) else websocket.send(message))

    shown = await show(route)
    if how == "swallowed":
        silent = True
    else:
        await shown.page.context.route(re.compile("/socket.io/"), lambda route: route.abort())
        await shown.press("Cut (Ada)")
    await shown.until("document.querySelectorAll('#Ada .timeline .cell.due').length > 20")
    assert " 0 not here yet" not in await shown.page.get_attribute("#Ada .timeline", "aria-label")


async def test_the_page_counts_as_the_walk_does(show):
    count = """async (events) => {
        const {Tally} = await import("/tally.js");
        const tally = new Tally(), absences = [];
        for (const event of events) {
            if (event === "hello") tally.welcomed();
            else if (event === "drop") tally.dropped();
            else {
                const {absence} = tally.tick(event);
                if (absence) absences.push([absence.missed, absence.replayed]);
            }
        }
        return [absences, tally.lost, tally.doubled, tally.missed, tally.replayed];
    }"""
    page = (await show()).page
    for events, absences, lost, doubled in TALLIES:
        first = [] if events[:2] == [5, "drop"] else [[0, 0]]
        assert await page.evaluate(count, events) == [
            [*first, *map(list, absences)],
            lost,
            doubled,
            sum(missed for missed, _ in absences),
            sum(replayed for _, replayed in absences),
        ], events


# -- who can use it ---------------------------------------------------------------------------------------


async def test_it_can_be_worked_by_keyboard(show):
    shown = await show()
    page = shown.page
    reached: dict[str, dict[str, Any]] = {}
    for _ in range(40):
        await page.keyboard.press("Tab")
        at = await page.evaluate("""() => {
            const at = document.activeElement, style = getComputedStyle(at);
            return {name: at.textContent.replace(/\\s+/g, " "), outline: style.outlineStyle + style.outlineWidth};
        }""")
        if at["name"] in reached:
            break
        reached[at["name"]] = at
    wanted = ["Chaos", "Pause the timelines", "Kill node A", "Kill node B", "Restart PostgreSQL"]
    wanted += [f"Cut ({name})" for name in ("Ada", "Ben", "Cleo")]
    assert set(wanted) <= set(reached)
    assert {reached[name]["outline"] for name in wanted} == {"solid3px"}
    switch = page.get_by_role("switch", name="Chaos")
    await switch.focus()
    await page.keyboard.press("Space")
    assert await switch.get_attribute("aria-checked") == "true"
    await page.keyboard.press("Space")
    assert await switch.get_attribute("aria-checked") == "false"
    await shown.page.wait_for_selector(SETTLED)
    breaks = await shown.number("#breaks")
    await shown.button("Cut (Ben)").focus()
    await page.keyboard.press("Enter")
    await page.wait_for_selector("#Ben[data-state=away]")
    # It does nothing now, and says so, and the focus stays where it was
    await page.wait_for_selector("#Ben [data-do=cut][aria-disabled=true]")
    await page.keyboard.press("Enter")
    await shown.page.wait_for_selector(SETTLED)
    assert await page.evaluate("document.activeElement.dataset.do") == "cut"
    assert await shown.number("#breaks") == breaks + 1


async def test_every_control_has_a_name_of_its_own(show):
    page = (await show()).page
    await page.get_by_text("How is it counted").click()
    tree = (await (await page.context.new_cdp_session(page)).send("Accessibility.getFullAXTree"))["nodes"]
    found: dict[str, list[str]] = {}
    for node in tree:
        if not node["ignored"]:
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    controls = [*found["button"], *found["switch"], *found["DisclosureTriangle"]]
    assert len(controls) == 15
    assert found["switch"] == ["Chaos"]  # whether it is on is not part of its name
    assert all(controls)
    assert len(set(controls)) == len(controls)
    assert "Move to node B (Ada)" in controls
    assert len(found["image"]) == 3
    assert all(re.match(r"The latest \d+ packets of (Ada|Ben|Cleo): ", name) for name in found["image"])
    assert found["article"] == ["Ada", "Ben", "Cleo"]
    # One place speaks by itself, and politely
    assert await page.locator("[aria-live], [role=alert], [role=log], [role=status], output").count() == 1
    assert await page.evaluate("document.getElementById('story').role") == "status"


WEAK_TEXT = """() => {
    const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = rgb(colour).map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const weak = [];
    for (const element of document.querySelectorAll("main *")) {
        if (![...element.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
        let below = element;
        while (below && (rgb(getComputedStyle(below).backgroundColor)[3] ?? 1) === 0) below = below.parentElement;
        const a = light(getComputedStyle(element).color), b = light(getComputedStyle(below).backgroundColor);
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (contrast < 4.5) weak.push(`${element.tagName} ${element.className} ${element.textContent}: ${contrast}`);
    }
    return weak;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1280])
async def test_it_fits_and_can_be_read(show, width, scheme):
    shown = await show(viewport={"width": width, "height": 740}, color_scheme=scheme, has_touch=width < 500)
    page = shown.page
    await shown.press("Cut (Cleo)")
    await page.wait_for_selector("#past li.good")
    await page.get_by_text("How is it counted").click()
    await page.get_by_text("Swallow a packet").click()
    await page.wait_for_selector("#lost.bad")
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    for button in await page.get_by_role("button").all():
        box = await button.bounding_box()
        assert box["height"] >= 44, await button.inner_text()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert await page.evaluate(WEAK_TEXT) == []
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 64) is (scheme == "dark")


COUNT_DRAWINGS = """() => {
    window.drawings = 0;
    new MutationObserver(() => drawings++).observe(document.querySelector("#Ada .timeline"), {childList: true});
}"""


async def test_the_timelines_move_seldom_for_who_wants_that_and_not_at_all_when_paused(show):
    shown = await show(reduced_motion="reduce")
    page = shown.page
    received = await shown.number("#Ada [data-count=received]")
    await page.evaluate(COUNT_DRAWINGS)
    await shown.until(f"+document.querySelector('#Ada [data-count=received]').textContent > {received + 60}")
    assert 0 < await page.evaluate("drawings") < 60 / 4
    await page.get_by_role("button", name="Pause the timelines").click()
    assert await shown.button("Pause the timelines").get_attribute("aria-pressed") == "true"
    drawn, received = await page.evaluate("drawings"), await shown.number("#Ada [data-count=received]")
    await shown.until(f"+document.querySelector('#Ada [data-count=received]').textContent > {received + 40}")
    assert await page.evaluate("drawings") == drawn
    await page.get_by_role("button", name="Pause the timelines").click()
    await shown.until(f"drawings > {drawn}")


# -- whom it asks -----------------------------------------------------------------------------------------


async def test_it_asks_nobody_but_the_demo(show):
    shown = await show(bypass_csp=False)
    assert {urlsplit(asked).hostname for asked in shown.asked if not asked.startswith("data:")} == {"127.0.0.1"}
    assert any(asked.startswith("ws:") for asked in shown.asked)
    assert any(asked.endswith("/socket.io.js") for asked in shown.asked)  # the checkout's: no network is needed
    # and could not
    refused = await shown.page.evaluate("fetch('https://example.org/').catch((error) => error.name)")
    assert refused == "TypeError"
    response = await shown.page.reload()
    assert response is not None
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_without_a_client_library_at_hand_it_asks_one_cdn_for_that_and_says_what_it_must_be():
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await PageApplication(Cluster("postgresql://"), None)({"method": "GET", "path": "/"}, None, send)
    policy = dict(sent[0]["headers"])[b"content-security-policy"].decode()
    assert "script-src 'self' https://cdn.socket.io;" in policy
    outside = re.findall(r'\w+="https?://[^>]*', sent[1]["body"].decode())
    assert len(outside) == 1
    assert re.match(r'src="https://cdn\.socket\.io/4\S+" integrity="sha384-\S+" crossorigin="anonymous"', outside[0])
