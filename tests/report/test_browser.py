"""The page and the tree viewer in a real browser, without a network."""

import html
import pathlib
import shutil

import pytest

from rstar_jax import data, report
from rstar_jax.stages import STAGES
from tests.report import workdirs
from tests.report.grown import grown

sync_api = pytest.importorskip('playwright.sync_api', reason='needs playwright: .[test]')

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
BIG, SECONDS = 5000, 1.0
DESK, PHONE = {'width': 1280, 'height': 800}, {'width': 390, 'height': 844}


def launched(playwright):
    """The machine's browser or playwright's own; None where there is none."""
    own = pathlib.Path(playwright.chromium.executable_path)
    path = own if own.exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
    # No sandbox: it cannot be had by root, and these pages are ours.
    return path and playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        made = launched(playwright)
        if made is None:
            pytest.skip('no browser: python -m playwright install chromium')
        yield made
        made.close()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """Two rounds, and in a third a tree of BIG nodes that is no sample on the page itself."""
    root = tmp_path_factory.mktemp('run')
    workdirs.finished(root)
    problem = {'index': 77, 'question': 'How many?', 'answer': '1'}
    with data.TreeStore(root / 'round3' / 'search') as store:
        for index in range(2):
            store.append(grown(problem | {'index': index, 'question': f'q{index}'}, nodes=200))
        store.append(grown(problem, nodes=BIG, depth=14))
    workdirs.write(root / 'round3' / 'search' / 'begun.json', {'inputs': {}, 'seconds': 9})
    report.write(root, STAGES)
    return root


class Watched:
    """A page whose requests, errors and messages are kept."""

    def __init__(self, browser, path, size=DESK, **settings):
        self.context = browser.new_context(viewport=size, **settings)
        self.page = self.context.new_page()
        self.asked, self.said = [], []
        self.page.on('request', lambda request: self.asked.append(request.url))
        self.page.on('console', lambda message: self.said.append(message.text))
        self.page.on('pageerror', lambda error: self.said.append(str(error)))
        self.page.goto(f'file://{path}')

    def open(self, name):
        """Opens a tree by its address; returns it as the viewer has it."""
        self.page.evaluate(f'location.hash = "tree={name}"')
        self.page.wait_for_selector(f'#viewer[data-name="{name}"][data-drawn]')

    def place(self, node):
        """Where on the page a node is drawn."""
        box = self.page.locator('#tree').bounding_box()
        x, y = self.page.evaluate(f'view.place({node})')
        return box['x'] + x, box['y'] + y

    @property
    def panel(self):
        return self.page.locator('#panel').inner_text()


@pytest.fixture
def watched(browser, workdir):
    made = Watched(browser, workdir / 'report' / 'index.html')
    yield made
    made.context.close()
    assert made.said == []
    assert all(url.startswith(('file://', 'data:', 'blob:')) for url in made.asked), made.asked


@pytest.fixture
def record(workdir):
    """The big tree."""
    with data.TreeStore(workdir / 'round3' / 'search', writer=None) as store:
        return store[77, 0]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_is_readable_on_a_phone(browser, workdir, scheme):
    made = Watched(
        browser, workdir / 'report' / 'index.html', PHONE, color_scheme=scheme, has_touch=True
    )
    assert made.page.evaluate('document.documentElement.scrollWidth') <= PHONE['width']
    sizes = made.page.evaluate("""[...document.querySelectorAll('figure svg text')].map((text) =>
        parseFloat(getComputedStyle(text).fontSize) * Math.hypot(...['a', 'b'].map((k) =>
        text.getScreenCTM()[k])))""")
    assert len(sizes) > 50 and min(sizes) >= 10.5
    back, ink = (made.page.evaluate(f'getComputedStyle(document.body).{name}') for name in
                 ('backgroundColor', 'color'))  # fmt: skip
    light, dark = (sum(map(int, c[4:-1].split(','))) for c in (back, ink))
    assert abs(light - dark) > 450 and (light > dark) == (scheme == 'light')
    made.open('round1-search-0-0')
    assert made.page.evaluate('document.documentElement.scrollWidth') <= PHONE['width']
    for part in ('#tree', '#panel', '[data-key=Escape]', '#query'):
        box = made.page.locator(part).bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= PHONE['width'], part
    made.page.touchscreen.tap(*made.place(1))
    assert 'take <1> & go on' in made.panel
    assert made.said == []
    made.context.close()


def test_a_big_tree_is_drawn_at_once(watched, record):
    """Loaded from beside the page, unpacked, laid out and drawn."""
    watched.page.locator('#find').fill('How many?')
    watched.page.locator('#list a').first.click()
    watched.page.wait_for_selector('#viewer[data-name="round3-search-77-0"][data-drawn]')
    assert watched.page.evaluate('view.order.length') == BIG == len(record.texts)
    assert float(watched.page.get_attribute('#viewer', 'data-drawn')) < 1000 * SECONDS
    assert any(url.endswith('/trees/round3-search-77-0.js') for url in watched.asked)
    turns = watched.page.evaluate("""() => {
        const begun = performance.now();
        for (let i = 0; i < 10; i++) view.paint();
        return (performance.now() - begun) / 10;
    }""")
    assert turns < 100  # milliseconds for a frame, by software: no lag


def test_nodes_are_drawn_where_they_are_found(watched, record):
    """Each kind in its colour, the path of the best answer in blue."""
    watched.open('round3-search-77-0')
    watched.page.keyboard.press('b')
    watched.page.wait_for_timeout(100)
    best = record.best_node()
    assert watched.page.evaluate('view.node') == best
    answer, edge = watched.page.evaluate(
        """([above, best]) => {
        const {width, height} = view.canvas;
        const {data} = view.context.getImageData(0, 0, width, height);
        const [ax, ay] = view.place(above), [bx, by] = view.place(best);
        return [[bx, by], [(ax + bx) / 2, (ay + by) / 2]].map(([x, y]) => {
            const at = 4 * (Math.round(y) * width + Math.round(x));
            return [...data.slice(at, at + 3)];
        });
    }""",
        [int(record.parent[best]), best],
    )
    red, green, _ = answer
    assert (green > red + 40) if record.correct[best] else (red > green + 40)
    red, _, blue = edge
    assert blue > red + 40


def test_a_node_is_opened_by_a_click(watched, record):
    watched.open('round3-search-77-0')
    assert 'The problem' in watched.panel
    watched.page.keyboard.press('b')  # large enough to hit one of them
    best = record.best_node()
    above = int(record.parent[best])
    watched.page.mouse.click(*watched.place(above))
    assert watched.page.evaluate('view.node') == above
    assert f'value_{above} = round({above} * 3, 2)' in watched.panel
    assert f'{record.visits[above]} visit' in watched.panel
    q = record.q_values[above]
    assert f'Q {"−" if q < 0 else "+"}{abs(q):.2f}' in watched.panel
    assert watched.page.locator('#panel .here pre .call').inner_text() == 'round'
    child = watched.page.locator('#panel button.child').first
    child.click()
    assert record.parent[watched.page.evaluate('view.node')] == above


def test_a_node_is_opened_by_the_keyboard(watched, record):
    watched.open('round3-search-77-0')
    press = watched.page.keyboard.press
    press('ArrowRight')
    first = watched.page.evaluate('view.node')
    assert record.parent[first] == 0 and f'value_{first} = ' in watched.panel
    press('ArrowDown')
    assert watched.page.evaluate('view.node') != first
    press('ArrowUp')
    assert watched.page.evaluate('view.node') == first
    press('ArrowRight')
    assert record.parent[watched.page.evaluate('view.node')] == first
    press('Enter')
    assert watched.page.evaluate('document.activeElement.id') == 'panel'
    press('Escape')
    assert watched.page.locator('#viewer').is_hidden()
    assert watched.page.evaluate('location.hash') == '#trees'


def test_search_finds_a_text(watched):
    watched.open('round3-search-77-0')
    watched.page.keyboard.press('/')
    watched.page.keyboard.type('take <4321> &')
    assert watched.page.locator('#hits').inner_text() == '1 found'
    watched.page.keyboard.press('Enter')
    assert watched.page.evaluate('view.node') == 4321
    assert 'value_4321' in watched.panel
    watched.page.locator('#query').fill('nameerror')  # in the outputs, whatever its case
    found = watched.page.locator('#hits').inner_text()
    watched.page.keyboard.press('Enter')
    watched.page.keyboard.press('Enter')
    assert watched.page.locator('#hits').inner_text() == f'2 of {found.split()[0]}'
    assert 'NameError: x' in watched.panel


def test_kinds_can_be_hidden(watched, record):
    watched.open('round3-search-77-0')
    chips = watched.page.locator('#kinds label').all_inner_texts()
    assert f'right {sum(record.correct)}' in [chip.strip() for chip in chips]
    kinds = 'new Set(view.order.map((i) => view.tree.kind[i]))'
    assert watched.page.evaluate(f'{kinds}.size') == 5
    for key in '234':  # wrong, errors, not expanded
        watched.page.keyboard.press(key)
    assert watched.page.evaluate(f'[...{kinds}].sort().join()') == 'inner,right'
    rows = watched.page.evaluate('view.order.filter((i) => view.tree.kind[i] === "right").length')
    assert rows == sum(record.correct)


def test_rollouts_are_replayed(watched, workdir):
    """The first answer that there is has been found by then, and none of the later ones."""
    watched.open('round3-search-1-0')
    with data.TreeStore(workdir / 'round3' / 'search', writer=None) as store:
        record = store[1, 0]
    chains, last = 0, range(1)
    for parent in dict.fromkeys(record.parent[1:].tolist()):
        chains += not (chains and parent in last)
        below = (record.parent == parent).nonzero()[0]
        last = range(below[0], below[-1] + 1)
    told = watched.page.locator('#replayed')
    assert told.inner_text() == f'{chains} rollouts' and chains > 1
    watched.page.keyboard.press('.')
    ends = watched.page.evaluate('view.tree.rollouts[0].end')
    right = sum(record.correct[:ends])
    assert told.inner_text().startswith(
        f'rollout 1 of {chains}: {ends - 1} new steps; so far {right}'
    )
    watched.page.keyboard.press('.')
    assert told.inner_text().startswith(f'rollout 2 of {chains}')
    watched.page.keyboard.press(',')
    assert told.inner_text().startswith(f'rollout 1 of {chains}')
    watched.page.keyboard.press('p')
    assert watched.page.locator('#play').inner_text() == '❚❚'
    watched.page.wait_for_function('!playing', timeout=20_000)
    assert told.inner_text().startswith(f'rollout {chains} of {chains}')


def test_the_tree_moves_and_zooms(watched):
    watched.open('round1-search-0-0')
    before = watched.place(5)
    x, y = watched.page.evaluate('[view.w / 2, view.h - 8]')
    watched.page.mouse.move(x, y)
    watched.page.mouse.down()
    watched.page.mouse.move(x + 60, y - 40, steps=3)
    watched.page.mouse.up()
    after = watched.place(5)
    assert [round(b - a) for a, b in zip(before, after)] == [60, -40]
    watched.page.mouse.wheel(0, -300)
    watched.page.wait_for_function('view.rh > view.least * 1.2')
    watched.page.keyboard.press('f')
    assert watched.page.evaluate('view.rh === view.least')


def test_a_tree_that_is_not_there_is_told(browser, workdir, tmp_path):
    """The page alone: its samples open, the others say what they lack."""
    alone = tmp_path / 'index.html'
    shutil.copy(workdir / 'report' / 'index.html', alone)
    made = Watched(browser, alone)
    made.open('round3-search-0-0')
    made.page.evaluate('location.hash = "tree=round1-search-0-0"')
    made.page.wait_for_selector('#trouble:not([hidden])')
    assert (
        'round1-search-0-0.js is not beside this page' in made.page.locator('#trouble').inner_text()
    )
    assert made.panel == ''  # of the tree before
    made.page.keyboard.press('Escape')
    assert made.page.locator('#viewer').is_hidden()
    made.open('round3-search-0-0')
    assert 'The problem' in made.panel
    made.context.close()


def test_links_work_within_a_notebook(browser, workdir, tmp_path):
    """There the page is a frame without an address of its own."""
    page = (workdir / 'report' / 'index.html').read_text(encoding='utf-8')
    around = tmp_path / 'notebook.html'
    around.write_text(f'<iframe srcdoc="{html.escape(page)}" style="width: 90vw; height: 90vh">')
    made = Watched(browser, around)
    frame = made.page.frames[1]
    frame.click('nav a[href="#trees"]')
    frame.click('.card .button')
    frame.wait_for_selector('#viewer[data-drawn]')
    frame.click('[data-key=Escape]')
    assert frame.locator('#viewer').is_hidden() and frame.locator('#better').is_visible()
    assert made.said == []
    made.context.close()


def test_trees_of_two_runs_are_kept_apart(browser, workdir, tmp_path):
    other = tmp_path / 'other'
    workdirs.trees(other / 'round1' / 'search', 3, seed=900, nodes=33)
    workdirs.write(other / 'round1' / 'search' / 'begun.json', {'inputs': {}, 'seconds': 9})
    made = Watched(browser, report.write(workdir, STAGES, other))
    assert made.page.evaluate('document.documentElement.scrollWidth') <= DESK['width']
    for name, nodes in (('a-round1-search-0-0', 60), ('b-round1-search-0-0', 33)):
        made.open(name)
        assert made.page.evaluate('view.tree.n') == nodes
    assert made.said == []
    made.context.close()
