"""What every view has: a widget, a still picture and a sentence."""

from __future__ import annotations

import html

from contaccum_lite.lab import stills
from contaccum_lite.lab.stills import bundle
from contaccum_lite.utils.text import plain


class View:
    """A read-only picture of a lab.

    A subclass has `data()` as plain numbers, a `sentence` made from them, a live `widget` with
    `draw()` to bring it up to date, and `still(figure)` for matplotlib.
    """

    title, wide = "", (6.0, 4.0)  # wide: inches across and down

    def __init__(self, lab):
        self.lab, self.output = lab, None

    def show(self) -> None:
        """Show it here and now, before a cell trains; its still picture is renewed at the end."""
        from IPython.display import display

        self.output = display(self, display_id=True)

    def settle(self) -> None:
        """Renew the still picture where `show` put one."""
        if self.output is not None:
            self.output.update(self)

    def png(self) -> bytes:
        """The picture as it is now, with its sentence."""
        figure = stills.new(*self.wide)
        self.still(figure)
        return stills.png(figure, self.sentence)

    def _repr_mimebundle_(self, include=None, exclude=None):
        self.draw()
        return bundle(self.widget, self.png(), self.sentence)


def paragraph(sentence: str) -> str:
    """A view's sentence as HTML, which a screen reader reads out when it changes."""
    return f"<p role='status' style='line-height:1.35'>{html.escape(plain(sentence))}</p>"
