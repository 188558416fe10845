"""The demo's page in a real browser: its count, its use by keyboard, by screen reader and on a phone, and its
requests, which go to the demo only."""

from __future__ import annotations

import contextlib
import html
import json
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, async_playwright

from sio_pg_adapter import AsyncServer, demo
from support.browser import CHROMIUM_OPTIONS
from support.demo_process import TIMEOUT, Demo, alive, children
from support.tallies import TALLIES

TOTALS = ("lost", "doubled", "recovered", "breaks", "replayed")
SETTLED = "#clients:has(article + article + article):not(:has(article:not([data-state=live])))"
DIRECTORY = Path(demo.__file__).parent / "page"
SERVING = ".servers:has(#node-A.up):has(#node-B.up):has(#database.up)"


@pytest.fixture(scope="module")
def url(chromium: str, js_modules: Any) -> Iterator[str]:
    """The address of the page of one demo for all tests. At the end it leaves no process behind."""
    with contextlib.closing(Demo("--port", "0")) as running:
        yield running.wait_for(r"by hand: (\S+)")
        left = children(running.process.pid)
        interrupt(running)
        assert not any(alive(pid) for pid in left)


def interrupt(running: Demo) -> None:
    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 130, "".join(running.lines)
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        await browser.close()


class Shown:
    """A page in the browser, its errors and its requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(TIMEOUT * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda websocket: self.requests.append(websocket.url))

    async def until(self, condition: str) -> None:
        await self.page.wait_for_function(condition, timeout=TIMEOUT * 1000)

    async def number(self, selector: str) -> int:
        return int(await self.page.inner_text(selector))

    async def totals(self) -> dict[str, int]:
        return {name: await self.number(f"#{name}") for name in TOTALS}

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    async def press(self, name: str) -> None:
        """Press a button as soon as it is enabled. Its node may be down at first."""
        await self.button(name).and_(self.page.locator("[aria-disabled=false]")).click()


@pytest.fixture
async def show(url: str, browser: Browser) -> AsyncIterator[Callable[..., Any]]:
    """Open the page, and wait until its clients are live. None of its scripts may fail.

    The page's content security policy is off by default. It would prevent `until` from evaluating a condition.
    """
    opened: list[Shown] = []

    async def show(
        route: Callable[[WebSocketRoute], None] | None = None, address: str = url, **context: Any
    ) -> Shown:
        page = await (await browser.new_context(**{"bypass_csp": True, **context})).new_page()
        if route is not None:
            await page.route_web_socket(re.compile("/socket.io/"), route)
        shown = Shown(page)
        opened.append(shown)
        await page.goto(address)
        await shown.page.wait_for_selector(SETTLED)
        await shown.page.wait_for_selector(SERVING)
        return shown

    yield show
    for shown in opened:
        assert shown.errors == []


# -- the count ---------------------------------------------------------------------------------------


async def test_what_is_broken_by_hand_recovers(show):
    shown = await show()
    page = shown.page
    sid, breaks = await page.inner_text("#Ada .sid code"), 0
    for button, pattern in (
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
        assert re.match(pattern, story), story
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
    back = "PostgreSQL is back, and all clients get its events: 0 lost, 0 doubled"
    await shown.until(f"document.getElementById('story').textContent.startsWith('{back}.')")
    assert back in await page.inner_text("#past li:first-child")
    received = await shown.number("#Ada [data-count=received]")
    await shown.until(f"+document.querySelector('#Ada [data-count=received]').textContent > {received + 5}")
    totals = await shown.totals()
    assert totals["lost"] == totals["doubled"] == 0
    assert totals["recovered"] == totals["breaks"] >= breaks
    assert totals["replayed"] > 0


async def test_a_reloaded_page_goes_on_from_its_position(show):
    """Its clients have new sessions, and get exactly the events after the state that the page was loaded with."""
    shown = await show()
    page = shown.page
    sids = await page.locator(".sid code").all_inner_texts()
    words = r"back on node [AB] with a new sid after .* s; loaded up to event \d+, then (\d+) missed, (\d+) replayed$"
    for button in (None, "Move to node B (Ada)", "Kill node A", "Restart PostgreSQL"):
        if button is not None:
            await shown.press(button)  # its clients are away when the page is reloaded
        await shown.press("Reload the page")
        await shown.until("document.getElementById('reload').getAttribute('aria-disabled') === 'true'")
        await page.wait_for_selector(SETTLED)
        await page.wait_for_selector(SERVING)
        later = await page.locator(".sid code").all_inner_texts()
        assert not set(sids) & set(later)
        sids = later
        lines = await page.locator("#past li").all_inner_texts()
        returned = [match for line in lines[:4] if "page reloaded" in line and (match := re.search(words, line))]
        assert len(returned) == 3, lines
        assert all(int(match[1]) == int(match[2]) > 0 for match in returned), lines
    received = await shown.number("#Ada [data-count=received]")
    await shown.until(f"+document.querySelector('#Ada [data-count=received]').textContent > {received + 5}")
    totals = await shown.totals()
    assert totals["lost"] == totals["doubled"] == 0 and totals["replayed"] > 0
    assert totals["recovered"] == totals["breaks"]
    assert await page.locator(".timeline .cell.loaded").count() > 0
    await shown.press("Cut (Ada)")  # the new session recovers like any other
    await shown.until("document.getElementById('story').textContent.startsWith('Ada: cut; back on node ')")
    assert "with the same sid" in await page.inner_text("#story")


async def test_chaos_loses_and_doubles_nothing(show):
    shown = await show()
    page = shown.page
    await page.evaluate("""() => {
        window.announced = [];
        new MutationObserver(() => announced.push(document.getElementById("story").textContent))
            .observe(document.getElementById("story"), {childList: true});
    }""")
    await page.get_by_role("switch", name="Chaos").click()
    for words in ("cut; back", "moved; back", " killed; back", "PostgreSQL is restarted"):
        await shown.until(f"document.getElementById('past').textContent.includes('{words}')")
    await shown.until("document.getElementById('story').textContent.includes(' recovered, ')")  # the summary
    await page.get_by_role("switch", name="Chaos").click()
    await shown.until("document.getElementById('story').textContent.startsWith('Chaos is off')")
    await shown.page.wait_for_selector(SETTLED)
    totals = await shown.totals()
    assert totals["lost"] == totals["doubled"] == 0
    assert totals["recovered"] == totals["breaks"] > 0
    summary = await page.inner_text("#story")
    assert f"{totals['breaks']} breaks, {totals['recovered']} recovered, {totals['replayed']} events" in summary
    for name in ("Ada", "Ben", "Cleo"):
        missed = await shown.number(f"#{name} [data-count=missed]")
        assert missed == await shown.number(f"#{name} [data-count=replayed]")
    assert await page.locator(".timeline .cell.replayed").count() > 0
    assert await page.locator(".timeline .cell.lost, .timeline .cell.doubled").count() == 0
    # A screen reader hears summaries, and not each break.
    announced = await page.evaluate("announced")
    [end] = [i for i, each in enumerate(announced) if each.startswith("Chaos is off")]
    assert announced[0] == "Chaos is on."
    assert all(re.match(r"Chaos (is on|ends when all clients are back)\.", each) for each in announced[:end]), (
        announced
    )


async def test_a_loss_on_the_wire_shows_and_so_does_a_double(show):
    spoil: list[str] = []

    def route(websocket: WebSocketRoute) -> None:
        server = websocket.connect_to_server()

        def to_page(message: str | bytes) -> None:
            action = spoil.pop() if spoil and isinstance(message, str) and '["tick"' in message else "pass"
            for _ in range({"swallow": 0, "pass": 1, "repeat": 2}[action]):
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


async def test_the_page_spoils_an_event_of_its_own_to_show_that_it_counts(show):
    shown = await show()
    await shown.page.get_by_text("How are the events counted").click()
    for button, lost, doubled in (
        ("Drop an event", 1, 0),
        ("Repeat an event", 1, 1),
        ("Set the counters to 0", 0, 0),
    ):
        await shown.button(button).click()
        for name, count in (("lost", lost), ("doubled", doubled)):
            await shown.until(f"document.getElementById('{name}').textContent === '{count}'")


@pytest.mark.parametrize("how", ["swallowed", "cut off"])
async def test_what_is_due_shows_before_it_comes(show, how):
    """The head comes from the database. So the page shows the missing events of a client that looks connected."""
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


# -- accessibility ---------------------------------------------------------------------------------------


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
    wanted = ["Chaos", "Reload the page", "Pause the timelines", "Kill node A", "Kill node B", "Restart PostgreSQL"]
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
    # It does nothing now, announces that, and keeps the focus
    await page.wait_for_selector("#Ben [data-do=cut][aria-disabled=true]")
    await page.keyboard.press("Enter")
    await shown.page.wait_for_selector(SETTLED)
    assert await page.evaluate("document.activeElement.dataset.do") == "cut"
    assert await shown.number("#breaks") == breaks + 1


async def test_every_control_has_a_name_of_its_own(show):
    page = (await show()).page
    await page.get_by_text("How are the events counted").click()
    tree = (await (await page.context.new_cdp_session(page)).send("Accessibility.getFullAXTree"))["nodes"]
    names: dict[str, list[str]] = {}
    for node in tree:
        if not node["ignored"]:
            names.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    controls = [*names["button"], *names["switch"], *names["DisclosureTriangle"]]
    assert len(controls) == 16
    assert names["switch"] == ["Chaos"]  # whether it is on is not part of its name
    assert all(controls)
    assert len(set(controls)) == len(controls)
    assert "Move to node B (Ada)" in controls
    assert len(names["image"]) == 3
    assert all(re.match(r"The latest \d+ events of (Ada|Ben|Cleo): ", name) for name in names["image"])
    assert names["article"] == ["Ada", "Ben", "Cleo"]
    # One place is announced by itself, and politely
    assert await page.locator("[aria-live], [role=alert], [role=log], [role=status], output").count() == 1
    assert await page.evaluate("document.getElementById('story').role") == "status"


WEAK_TEXT = """() => {
    const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = rgb(color).map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
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
    await page.get_by_text("How are the events counted").click()
    await page.get_by_text("Drop an event").click()
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


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (768, 1024), (360, 740)])
async def test_the_buttons_that_break_something_need_no_scrolling(show, width, height):
    shown = await show(viewport={"width": width, "height": height})
    for control in ("#chaos", "#kill-A", "#kill-B", "#restart"):
        box = await shown.page.locator(control).bounding_box()
        assert box["y"] + box["height"] <= height, control


OVERLAPS = """() => [...document.querySelectorAll(".timeline")].flatMap((timeline) => {
    const marks = [...timeline.querySelectorAll(".mark")], boxes = marks.map((mark) => mark.getBoundingClientRect());
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    return marks.flatMap((mark, i) => marks.slice(0, i)
        .filter((_, j) => !apart(boxes[i], boxes[j])).map((other) => `${other.textContent} / ${mark.textContent}`));
})"""


async def test_the_labels_of_a_timeline_do_not_overlap(show):
    page = (await show()).page
    await page.evaluate("""async () => {
        const {Timeline} = await import("/timeline.js");
        const timeline = new Timeline(document.querySelector("#Ada .timeline"), "Ada");
        for (let n = 1; n <= 60; n++) timeline.note(n, {kind: "live", node: "A", mark: n % 4 ? "" : `label ${n}`});
        for (let n = 1; n <= 60; n++) timeline.draw(n);
    }""")
    assert await page.locator("#Ada .timeline .mark").count() >= 15
    assert await page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_forced_colors_keep_what_the_timelines_and_the_switch_show(show, scheme):
    page = (await show(forced_colors="active", color_scheme=scheme)).page
    painted = await page.evaluate("""() => {
        const probe = document.createElement("p");
        probe.style.color = "CanvasText";
        document.body.append(probe);
        const style = (selector, part) => getComputedStyle(document.querySelector(selector), part);
        return {
            text: getComputedStyle(probe).color,
            live: style(".legend .cell.live", "::before").backgroundColor,
            images: [".band.a", ".band.b"].map((band) => style(band).backgroundImage)
                .concat(style("#chaos", "::before").backgroundImage),
        };
    }""")
    assert painted["live"] == painted["text"]
    assert "none" not in painted["images"]


COUNT_DRAWINGS = """() => {
    window.drawings = 0;
    new MutationObserver(() => drawings++).observe(document.querySelector("#Ada .timeline"), {childList: true});
}"""


async def test_the_timelines_move_seldom_with_reduced_motion_and_not_at_all_when_paused(show):
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


async def test_the_clients_recover_after_the_browser_was_offline(show):
    shown = await show()
    await shown.page.context.set_offline(True)
    await shown.page.wait_for_selector("#clients:not(:has(article[data-state=live]))")
    await shown.page.wait_for_timeout(2_000)  # two polls of the demo fail
    await shown.page.context.set_offline(False)
    await shown.page.wait_for_selector(SETTLED)
    assert not await shown.page.is_visible("#ended")
    totals = await shown.totals()
    assert totals["recovered"] == totals["breaks"] == 3 and totals["replayed"] > 0
    assert totals["lost"] == totals["doubled"] == 0


# -- the end of the demo ----------------------------------------------------------------------------------


async def test_the_page_shows_that_the_demo_has_ended_and_reloads_when_it_is_back(show, chromium):
    with contextlib.closing(Demo("--port", "0")) as running:
        address = running.wait_for(r"by hand: (\S+)")
        shown = await show(address=address)
        page = shown.page
        await page.evaluate("scrollTo(0, document.body.scrollHeight)")
        interrupt(running)
    await page.wait_for_selector("#ended:not([hidden])")
    assert await page.evaluate("document.getElementById('ended').getBoundingClientRect().top >= 0")
    assert "The demo has ended. Start it again" in await page.inner_text("#story")
    assert (await page.title()).startswith("Ended: ")
    assert await page.locator("button:not([aria-disabled=true])").count() == 0
    assert await page.locator(".servers b.up, article:not([data-state=ended])").count() == 0
    with contextlib.closing(Demo("--port", address.rpartition(":")[2])) as running:
        running.wait_for(r"by hand: (\S+)")
        await page.wait_for_selector(SETTLED)
        assert not await page.is_visible("#ended")
        interrupt(running)


# -- its requests -----------------------------------------------------------------------------------------


async def test_it_needs_no_network_but_the_demo(show):
    shown = await show(bypass_csp=False)
    requests = [request for request in shown.requests if not request.startswith("data:")]
    assert {urlsplit(request).hostname for request in requests} == {"127.0.0.1"}
    assert any(request.startswith("ws:") for request in requests)
    assert any(request.endswith("/socket.io.min.js") for request in requests)
    # Its policy forbids others.
    refused = await shown.page.evaluate("fetch('https://example.org/').catch((error) => error.name)")
    assert refused == "TypeError"
    response = await shown.page.reload()
    assert response is not None
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_client_library_is_the_tested_one_with_its_notice(js_modules):
    script = (DIRECTORY / "socket.io.min.js").read_bytes()
    package = js_modules / "node_modules/sio-4-8"
    assert script == (package / "dist/socket.io.min.js").read_bytes()
    version = json.loads((package / "package.json").read_text())["version"]
    notice = (DIRECTORY / "socket.io.min.js.LICENSE.txt").read_text()
    assert f"socket.io-client {version}," in notice
    assert notice.endswith((package / "LICENSE").read_text().strip() + "\n")


def test_the_server_under_next_is_a_whole_server():
    [code] = re.findall(r'<code id="server">(.*?)</code>', (DIRECTORY / "index.html").read_text(), re.DOTALL)
    variables: dict[str, Any] = {}
    exec(html.unescape(code), variables)
    assert isinstance(variables["sio"], AsyncServer) and variables["sio"].handlers["/"]["connect"]
