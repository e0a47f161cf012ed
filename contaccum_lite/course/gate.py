"""`Gate`: the results of a cell stay folded until its prediction is committed."""

from __future__ import annotations

import base64
import html

import ipywidgets as w

from contaccum_lite.course.predict import is_open, when_committed
from contaccum_lite.lab.hosts import no_widgets_because, widget_view
from contaccum_lite.utils.text import plain, without_halves


class Gate:
    """A result that is shown once a prediction is committed. The last line of a cell.

    Args:
        name: of the `Predict`, asked in a cell above. result: a picture, a table, a lab, a widget
            or any other object, shown as a cell would show it.

    A prediction that was never asked hides nothing, and neither does an output that is read without
    a kernel. "Show without an answer" opens it too: for a screen in front of a class.
    """

    def __init__(self, name: str, result):
        if not isinstance(name, str):
            raise ValueError(f"name is {name!r:.60}: give a prediction's name, as in '01.a'.")
        self.name, self.result = name, result
        self.open = False
        words = f"<p role='status'>Commit your prediction above ({html.escape(name)}) first.</p>"
        button = w.Button(
            description="Show without an answer",
            icon="eye",
            tooltip="your answer is not counted",
            layout=dict(width="auto", align_self="flex-start"),
        )
        button.on_click(lambda _: self.show())
        self.widget = w.VBox([w.HTML(words), button])
        if is_open(name):
            self.show()
        else:
            when_committed(name, self.show)

    def show(self) -> None:
        """Open it now."""
        if self.open:
            return
        result = _as_widget(self.result)
        if result.comm is None:
            return  # it was closed when its cell ran again: the cell's new gate is the one to open
        self.open = True
        self.widget.children = (result,)

    @property
    def sentence(self) -> str:
        """What is written of the result where there is no picture."""
        return _mimebundle(self.result).get("text/plain", "")

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The gate as a widget; the result itself for where no widget lives."""
        data = _mimebundle(self.result)
        sentence = data.setdefault("text/plain", "")
        metadata = {"image/png": {"alt": sentence}} if "image/png" in data else {}
        if no_widgets_because():
            return data, metadata
        view, of_view = widget_view(self.widget)
        return data | view, metadata | of_view


def _mimebundle(result) -> dict:
    """What a cell would show of an object, by its MIME type, without its widget."""
    data = {}
    if hasattr(result, "_repr_mimebundle_"):
        bundle = result._repr_mimebundle_()
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        data.pop("application/vnd.jupyter.widget-view+json", None)
    elif hasattr(result, "_repr_html_"):
        data["text/html"] = result._repr_html_()
    elif hasattr(result, "_repr_markdown_"):
        data["text/markdown"] = data["text/plain"] = str(result._repr_markdown_())
    data.setdefault("text/plain", result if isinstance(result, str) else repr(result))
    data["text/plain"] = without_halves(plain(data["text/plain"]))
    return data


def _as_widget(result):
    """A widget that shows an object: its own if it has one, else its picture, table or text."""
    if isinstance(result, w.Widget):
        return result
    own = getattr(getattr(result, "views", result), "widget", None)
    if isinstance(own, w.Widget):
        return own
    data = _mimebundle(result)
    if "text/markdown" in data:
        output = w.Output()
        output.append_display_data(result)
        return output
    text = html.escape(data["text/plain"])
    if "image/png" in data:
        png = data["image/png"]
        if isinstance(png, bytes):
            png = base64.b64encode(png).decode()
        return w.HTML(f"<img alt='{text}' src='data:image/png;base64,{png}'>")
    if "text/html" in data:
        return w.HTML(data["text/html"])
    style = "white-space:pre-wrap;word-break:normal"  # JupyterLab would break lines within words
    return w.HTML(f"<pre role='status' style='{style}'>{text}</pre>")
