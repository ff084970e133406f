"""The dashboard in a real browser: what one reads, clicks and types there. Pictures are left in $SONA_PICTURES, where that is set."""

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser
from conftest import StartPython
from test_dashboard import HOSTILE, _with_version
from test_versions import DIM, factors, make_router, serve, served, version

from sona import Router
from sona.report.dashboard import Dashboard

pytestmark = pytest.mark.slow

REWARDS = 1600


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rewards, versions of every verdict, patterns, a memory that has dreamt, a drift alarm, and names that would be markup."""
    path = tmp_path_factory.mktemp("store") / "sona.db"
    rng = np.random.default_rng(0)
    arms = dict(zip((HOSTILE, "b", "c" * 90, "d"), np.eye(4, DIM), strict=True))
    with Router(arms, store=path, seed=1) as router:
        for n, x in enumerate(rng.normal(size=(REWARDS, DIM))):
            d = router.route(x)
            turned = 0 if x[4] > 0 else 1 if n < REWARDS / 2 else 2  # of these the frozen model knows nothing
            router.feedback(d.id, float(d.index == (int(x[:4].argmax()) + turned) % 4))
            if n in (400, 1500):
                router.background_learn()
                router.deep_learn()
        router.engine.memory.add(rng.normal(size=DIM), {"text": HOSTILE})
        router.deep_learn()
        for n, verdict in enumerate(("accept", "reject", "undecided", "expired", "served"), 1):
            reason = HOSTILE if verdict == "reject" else f"because {n}"
            router.engine._service.versions.add(version(n, verdict=verdict, reason=reason, created=time.time() - n))
        router.engine.publish(router.engine.versions()[0])
    return path


@pytest.fixture
def opened(page: Browser, path: Path) -> Iterator[Browser]:
    page.size(1280)
    with Dashboard(path) as dashboard:
        page.open(dashboard.url)
        yield page
        assert page.problems() == []


def picture(page: Browser, name: str) -> None:
    if directory := os.environ.get("SONA_PICTURES"):
        page.picture(Path(directory) / f"{name}.png")


# ---- what one reads ----


def test_the_token_leaves_the_address_bar_and_the_page_can_be_loaded_again(opened: Browser) -> None:
    assert "token" not in opened.driver.current_url
    assert opened.run("history.length") <= 3
    assert opened.run("document.cookie") == ""
    opened.driver.refresh()
    opened.until("document.documentElement.dataset.loaded")
    assert opened.text("#tiles").split("\n")[:2] == ["Decisions", f"{REWARDS:,}"]


def test_without_the_token_the_page_says_what_is_missing(page: Browser, path: Path) -> None:
    with Dashboard(path) as dashboard:
        page.driver.get("about:blank")
        page.driver.get(dashboard.url.partition("#")[0])
        page.until("!document.querySelector('#notice').hidden")
        assert "Open the address that sona dashboard printed" in page.text("#notice")
        assert page.text("#tiles") == ""
        page.driver.get("about:blank")
        page.driver.get(f"{dashboard.url}x")
        page.until("document.querySelector('#notice').innerText.includes('Open the address')")
    page.problems()


def test_every_part_is_there_and_nothing_of_it_is_markup(opened: Browser) -> None:
    for part in ("rewards", "regret", "arms", "patterns", "memory", "delay"):
        assert opened.run(f"document.querySelectorAll('#{part} svg, #{part} table').length") > 0, part
    assert HOSTILE in opened.text("#arms")
    assert HOSTILE in opened.text("#versions")
    assert opened.run("document.querySelectorAll('img, main script, iframe').length") == 0
    assert {"accept", "reject", "undecided", "expired", "served"} <= set(opened.text("#versions").split())
    assert "Drift alarms\n" in opened.text("#tiles")
    assert opened.run("performance.getEntriesByType('resource').every((each) => each.name.startsWith(location.origin))")
    opened.until("document.querySelector('#live-text').innerText === 'live'")


def test_charts_are_read_with_the_keyboard_and_have_their_numbers_in_a_table(opened: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    for part in ("rewards", "regret", "delay", "patterns", "memory"):
        opened.run(f"document.querySelector('#{part} svg[role=img]').focus()")
        keys = opened.driver.switch_to.active_element
        assert opened.run("document.activeElement.getAttribute('aria-label')")
        words = set()
        for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.END, Keys.HOME):
            keys.send_keys(key)
            words.add(opened.text(f"#{part} .readout"))
        assert len(words) == 3, part  # the second step and those at both ends; the first step is where Home leads
        assert all(words), part
    for part in ("rewards", "regret", "delay"):
        table = f"document.querySelector('#{part} details')"
        assert not opened.run(f"{table}.open")
        opened.run(f"{table}.querySelector('summary').click()")
        assert opened.run(f"{table}.querySelectorAll('tbody tr').length") > 2
        assert opened.run(f"{table}.querySelector('caption').innerText")
    named = "(each) => each.getAttribute('aria-label') || each.querySelector('h2')"
    assert opened.run(f"[...document.querySelectorAll('section')].every({named})")
    assert opened.run("[...document.querySelectorAll('select')].every((each) => each.closest('label'))")


def test_the_pointer_reads_a_chart(opened: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chart = opened.driver.find_element("css selector", "#rewards svg[role=img]")
    ActionChains(opened.driver).move_to_element_with_offset(chart, 100, 0).perform()
    assert "mean reward" in opened.text("#rewards .readout")


def test_the_range_and_the_axis_can_be_chosen(opened: Browser) -> None:
    def choose(id: str, value: str) -> None:
        place = f"document.getElementById('{id}')"
        opened.run(f"({place}.value = '{value}', {place}.dispatchEvent(new Event('change')))")

    choose("along", "count")
    assert opened.until("[...document.querySelectorAll('#rewards .tick')].some((each) => each.textContent === '500')")
    choose("newest", "1000")
    opened.until("document.querySelector('#tiles').innerText.includes('of the newest 1,000')")


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_at_any_width(page: Browser, path: Path, width: int, dark: bool) -> None:
    page.size(width, dark=dark)
    with Dashboard(path) as dashboard:
        page.open(dashboard.url)
        assert page.run("document.documentElement.scrollWidth") == width
        outside = page.run(
            "[...document.querySelectorAll('main *')].filter((each) => !each.closest('.scroll, svg, .evidence, thead') "
            "&& each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 80))"
        )
        assert outside == []
        assert page.run("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 23, 26)" if dark else "rgb(246, 247, 248)")
        if width < 500:
            least = page.run("Math.min(...[...document.querySelectorAll('button')].map((each) => each.getBoundingClientRect().height))")
            assert least >= 44  # a finger
            assert page.run(
                "[...document.querySelectorAll('#arms .scroll, #versions .scroll')].every((each) => each.scrollWidth <= each.clientWidth)"
            )
        picture(page, f"{width}{'-dark' if dark else ''}")
        assert page.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(page: Browser, path: Path, dark: bool) -> None:
    """At least 4.5 : 1, the least that WCAG AA has for small text."""
    page.size(1280, dark=dark)
    with Dashboard(path) as dashboard:
        page.open(dashboard.url)
        worst = page.run(CONTRAST)
    assert worst[0] >= 4.5, worst


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (each) => { for (; each; each = each.parentElement) { const c = parse(getComputedStyle(each).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  let worst = [99];
  for (const each of document.querySelectorAll('main *, header *')) {
    const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !each.getClientRects().length || each.disabled) continue;
    const style = getComputedStyle(each), ink = light(parse(each.closest('svg') ? style.fill : style.color)), paper = light(ground(each));
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    if (ratio < worst[0]) worst = [ratio, each.className.baseVal ?? each.className, each.textContent.slice(0, 40)];
  }
  return worst;
})()"""


def test_an_empty_store_says_so(page: Browser, tmp_path: Path) -> None:
    make_router(tmp_path / "s.db").close()
    page.size(390)
    with Dashboard(tmp_path / "s.db") as dashboard:
        page.open(dashboard.url)
        for part in ("rewards", "versions", "patterns", "memory"):
            assert f"No {part} yet" in page.text(f"#{part}")
        picture(page, "empty")
        assert page.problems() == []


# ---- live ----


def test_what_is_new_is_drawn_within_seconds_and_whoever_reads_is_left_alone(page: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    page.size(1280)
    with make_router(tmp_path / "s.db") as router, Dashboard(tmp_path / "s.db") as dashboard:
        serve(router, 50)
        router.flush()
        page.open(dashboard.url)
        page.until("document.querySelector('#live').className === 'on'")
        page.run("document.querySelector('#rewards details summary').click()")
        assert page.text("#tiles").split("\n")[:2] == ["Decisions", "50"]
        serve(router, 20)
        router.flush()
        began = time.monotonic()
        page.until("document.querySelector('#tiles').innerText.startsWith('Decisions\\n70')")
        took = time.monotonic() - began
        page.until("document.querySelector('#arms caption').innerText.includes('70 rewards')")
        assert page.run("document.querySelector('#rewards details').open")
        assert took < 5
        page.run("document.querySelector('#rewards svg[role=img]').focus()")
        page.driver.switch_to.active_element.send_keys(Keys.HOME)
        words = page.text("#rewards .readout")
        serve(router, 30)
        router.flush()
        page.until("document.querySelector('#arms caption').innerText.includes('100 rewards')")
        time.sleep(0.6)
        assert page.run("document.activeElement === document.querySelector('#rewards svg[role=img]')")  # whoever reads is left alone
        assert page.text("#rewards .readout") == words
        page.run("document.activeElement.blur()")
        page.until("document.querySelectorAll('#rewards tbody tr').length === 4")
    page.until("document.querySelector('#live').className === 'off'")
    assert "does not answer" in page.text("#live")


# ---- the button ----


def test_one_click_rolls_a_live_process_back(page: Browser, tmp_path: Path, start_python: StartPython) -> None:
    path = _with_version(tmp_path)
    child = start_python(
        """
        import sys, time
        from test_versions import make_router, serve, served, factors
        from sona import LoopCoordinator
        router = make_router(sys.argv[1])
        with LoopCoordinator(router, interval=0.05):
            print("ready", flush=True)
            give_up = time.monotonic() + 60
            while served(router) != factors(1).to_bytes() and time.monotonic() < give_up:
                time.sleep(0.01)
            print(served(router) == factors(1).to_bytes(), flush=True)
            sys.stdin.readline()
        router.close()
        """,
        path,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    page.size(390)
    with Dashboard(path) as dashboard:
        page.open(dashboard.url)
        page.run("document.querySelector('#versions button').click()")
        assert child.stdout.readline() == "True\n"
        page.until("document.querySelector('#rollback').innerText.endsWith('is served.')")
        page.until("document.querySelector('#tiles').innerText.includes('version 1')")
        page.until("document.querySelector('#versions tr.now')?.innerText.includes('default@1')")
        picture(page, "rolled-back")
        assert page.problems() == []
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.wait(30) == 0


def test_one_click_rolls_a_store_back_that_nobody_learns_for(page: Browser, tmp_path: Path) -> None:
    path = _with_version(tmp_path)
    page.size(1280)
    with Dashboard(path) as dashboard:
        page.open(dashboard.url)
        page.run("document.querySelector('#versions button').click()")
        page.until("document.querySelector('#rollback').innerText.includes('is served from the next start on')")
        page.until("document.querySelectorAll('#versions tbody tr').length === 2")
    with make_router(path) as router:
        assert served(router) == factors(1).to_bytes()


def test_a_version_that_is_gone_is_said_and_nothing_changes(page: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _with_version(tmp_path)
    page.size(1280)
    with Dashboard(path) as dashboard:
        tags = dashboard.board.tags()
        monkeypatch.setattr(dashboard.board, "tags", lambda: tags)  # the page does not hear of it
        page.open(dashboard.url)
        with sqlite3.connect(path) as conn:
            conn.execute("DELETE FROM versions")
        conn.close()
        page.run("document.querySelector('#versions button').click()")
        page.until("document.querySelector('#rollback').innerText.startsWith('Not rolled back: version: expected one of none')")
        assert not page.run("document.querySelector('#versions button').disabled")
    page.problems()


def test_a_page_of_another_origin_can_do_nothing(page: Browser, tmp_path: Path) -> None:
    """The other site is a dashboard too: of another port, so of another origin, and it even knows the token."""
    path = _with_version(tmp_path)
    other = tmp_path / "other.db"
    make_router(other).close()
    with Dashboard(path) as target, Dashboard(other) as evil:
        url, _, token = target.url.partition("/#token=")
        page.driver.get("about:blank")
        page.driver.get(f"data:text/html,<title>evil {evil.port}</title>")
        page.driver.set_script_timeout(20)
        for mode, headers in (
            ("cors", f"{{'X-Sona-Token': '{token}', 'Content-Type': 'application/json'}}"),
            ("no-cors", "{'Content-Type': 'text/plain'}"),
        ):
            told = page.driver.execute_async_script(
                f"""const done = arguments[0];
                fetch('{url}/api/rollback', {{method: 'POST', mode: '{mode}', body: '{{"version": 1}}', headers: {headers}}})
                  .then((answer) => answer.text()).then((text) => done(text || 'opaque'), (error) => done(String(error)));"""
            )
            assert told in ("TypeError: Failed to fetch", "opaque")
        frame = page.driver.execute_async_script(
            f"""const done = arguments[0], frame = document.createElement('iframe');
            frame.onload = () => {{ try {{ done(frame.contentDocument.title); }} catch (error) {{ done('refused'); }} }};
            frame.src = '{url}/'; document.body.append(frame);"""
        )
        assert frame in ("refused", "", None) or "sona" not in str(frame)
    with sqlite3.connect(path) as conn:
        assert conn.execute("SELECT count(*) FROM versions WHERE published").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM counters WHERE name LIKE 'publish%'").fetchone() == (0,)
    conn.close()
    page.problems()
