"""A kernel that says it is Colab's, in JupyterLab in a real Chromium: the page drives the training.

What the kernel sends from the background is lost here, as it may be there. Skipped, with the reason,
where there is no Chromium.
"""

import re
import time

import nbformat
import pytest

from tools import browser

pytestmark = pytest.mark.skipif(
    browser.CHROMIUM is None,
    reason="no Chromium found: install the package chromium, or name it in $CHROMIUM",
)

COLAB = """
import sys, types, ipywidgets
output = types.ModuleType("google.colab.output")
output.enable_custom_widget_manager = lambda: None
sys.modules["google.colab"], sys.modules["google.colab.output"] = types.ModuleType("google.colab"), output
heard = types.SimpleNamespace(depth=0, lost=0)
get_ipython().events.register("pre_execute", lambda: setattr(heard, "depth", 1))
get_ipython().events.register("post_execute", lambda: setattr(heard, "depth", 0))
handle, send = ipywidgets.Widget._handle_msg, ipywidgets.Widget._send

def handle_msg(widget, message):
    heard.depth += 1
    try:
        return handle(widget, message)
    finally:
        heard.depth -= 1

def send_if_heard(widget, message, buffers=None):
    if heard.depth:
        return send(widget, message, buffers)
    heard.lost += 1

ipywidgets.Widget._handle_msg, ipywidgets.Widget._send = handle_msg, send_if_heard
"""
LAB = """
import torch
import contaccum_lite as cl
torch.set_num_threads(1)
lab = cl.Lab(cl.load_pairs("toy"), updates=400, every=400, accumulation_steps=4, memory_size=64)
lab
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colab")
    sources = (COLAB, LAB, "print('lost', heard.lost, lab._task)")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])
    book.metadata.kernelspec = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(book, folder / "colab.ipynb")
    settings = folder / ".config/lab/user-settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)  # Colab's kernel handles messages of widgets in its one thread
    (settings / "kernels-settings.jupyterlab-settings").write_text(
        '{"commsOverSubshells": "disabled"}'
    )
    with browser.server(folder) as address, browser.browser(address) as page:
        yield page


def test_the_page_drives_the_training(page):
    page.open("colab.ipynb")
    page.run_all()
    status = lambda: page.page.locator("span[role=status]").first.text_content()
    updates = lambda: int(re.search(r"update (\d+) of", status())[1])

    def until(done, what, seconds=60):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what}: {status()!r}"
            page.page.wait_for_timeout(30)

    frame = lambda: page.page.locator("canvas.ccl-cells").first.get_attribute("data-frame")
    before = frame()
    page.buttons("Play").first.click()
    until(lambda: 2 < updates() < 400, "nothing is trained")
    until(lambda: frame() != before, "no picture moved")
    page.buttons("Pause").first.click()
    page.buttons("Play").first.wait_for()
    at = updates()
    page.page.wait_for_timeout(500)
    assert updates() == at < 400
    page.buttons("Play").first.click()
    until(lambda: updates() > at, "Play does not go on")
    page.buttons("Stop").first.click()
    page.buttons("Play").first.wait_for()
    assert updates() < 400
    page.buttons("Play").first.click()
    until(lambda: updates() == 400, "it does not reach its end", seconds=240)
    page.buttons("Play").first.wait_for()
    page.run_cell(2)
    page.idle()
    said = page.page.locator(".jp-OutputArea-output pre").last.text_content()
    lost, task = re.fullmatch(r"lost (\d+) (\w+)", said.strip()).groups()
    assert int(lost) <= 2 and task == "None"  # of hundreds: nothing that training waits for
    assert page.errors == []
