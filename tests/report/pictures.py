"""The README's pictures, of a real run: the head of its page, and one of its trees.

    python -m tests.report.pictures WORKDIR experiments/pictures [NAME_OF_A_TREE]

The tree is by default the largest one of the newest searches whose answer is right among wrong
ones. The run's page is written anew; the files are small: a palette.
"""

import pathlib
import sys

from PIL import Image
from playwright import sync_api

from rstar_jax import report
from rstar_jax.stages import STAGES
from tests.report.test_browser import launched

SIZE = {'width': 1000, 'height': 500}
RIGHT_AMONG_WRONG = """async () => {
  let found = null;
  for (const row of LIST.filter((row) => row.source === LIST[0].source && row.solved === 1)) {
    const tree = await load(row.name);
    if (tree.kind[tree.best] !== 'right' || !tree.kind.includes('wrong')) continue;
    if (!found || row.nodes > found.nodes) found = row;
  }
  return found.name;
}"""


def main(workdir: str, folder: str, tree: str = '') -> None:
    path = report.write(workdir, STAGES)
    with sync_api.sync_playwright() as playwright:
        browser = launched(playwright)
        page = browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        page.goto(f'file://{path.resolve()}')
        plots = page.locator('#better .plots').bounding_box()
        page.set_viewport_size({**SIZE, 'height': round(plots['y'] + plots['height'] + 12)})
        take(page, pathlib.Path(folder, 'run.png'))
        page.set_viewport_size(SIZE)
        tree = tree or page.evaluate(RIGHT_AMONG_WRONG)
        page.evaluate(f'location.hash = "tree={tree}"')
        page.wait_for_selector(f'#viewer[data-name="{tree}"][data-drawn]')
        page.keyboard.press('b')
        page.locator('#panel details').last.evaluate('step => { step.open = true; }')
        take(page, pathlib.Path(folder, 'tree.png'))
        browser.close()
    print(tree)


def take(page: sync_api.Page, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(200)  # what is drawn in the next frame
    page.screenshot(path=path)
    Image.open(path).convert('RGB').quantize(192).save(path, optimize=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
