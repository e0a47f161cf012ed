"""A search box over the passages, and a pair as a card."""

from __future__ import annotations

import ipywidgets

from contaccum_lite.lab.fields import NAMES
from contaccum_lite.lab.stills import worded
from contaccum_lite.utils.text import plain_text, short


class SearchBox:
    """A box that searches the passages with one or more runs as they are now, beside each other.

    Text of the passages is shown live only. runs: {name: Run}, or a lab, for its run under way.
    k: how many passages it shows.
    """

    def __init__(self, runs, query: str = "remove whitespace from a string", k: int = 5):
        self.lab = None if isinstance(runs, dict) else runs
        self.runs, self.k = runs, k
        self.hits, self.refusal = {}, ""
        self.box = ipywidgets.Text(
            value=query, description="search", continuous_update=False, layout={"width": "32em"}
        )
        self.found = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.box, self.found])
        self.box.observe(self._on_query, "value")
        # A lab is shown first: the search encodes all passages.
        if self.lab is None or self.lab.call_later(0.3, self.search) is None:
            self.search()

    def _on_query(self, change) -> None:
        if self.lab is None:
            self.search()
        else:
            self.lab.soon(self.search)

    def search(self) -> None:
        """Search again, with the towers as they are now."""
        query = self.box.value
        self.found.value = self.refusal = ""
        if not query.strip():
            return
        try:
            runs = self.runs
            if self.lab is not None:
                runs = {self.lab.tracks()[-1][0]: self.lab.training}
            self.hits = {name: run.search(query, self.k) for name, run in runs.items()}
        except Exception as error:  # for who typed it: the kernel's log has no reader
            self.hits, self.refusal = {}, short(str(error))
            self.found.value = f"<p role='alert'>{plain_text(self.refusal)}</p>"
            return
        columns = "".join(map(self._column, self.hits))
        self.found.value = f"<div style='display:flex;gap:2em;line-height:1.35'>{columns}</div>"

    def _column(self, name: str) -> str:
        rows = "".join(
            f"<li><b>{plain_text(hit.title or hit.id, 120)}</b> <small>{hit.score:.1f}</small><br>"
            f"{plain_text(hit.passage, 160)}</li>"
            for hit in self.hits[name]
        )
        head = f"<b>{plain_text(NAMES.get(name, name))}</b>"
        if self.lab is not None:
            head += f" <small>after update {self.lab.training.step_count}</small>"
        style = "flex:1;min-width:0;overflow-wrap:anywhere"
        return f"<div style='{style}'>{head}<ol>{rows}</ol></div>"

    @property
    def sentence(self) -> str:
        """The first passages of each run, by title only."""
        if self.refusal:
            return self.refusal
        results = []
        for name, hits in self.hits.items():
            titles = ", ".join(short(hit.title or hit.id, 120) for hit in hits[:3])
            results.append(f"{NAMES.get(name, name)} finds {titles}")
        return f"For “{short(self.box.value, 120)}” {'; '.join(results)}."

    def _repr_mimebundle_(self, include=None, exclude=None):
        return worded(self.widget, self.sentence)


class Card:
    """A pair to read: its text appears live only, its title always."""

    def __init__(self, pair):
        self.pair = pair
        self.widget = ipywidgets.HTML(
            f"<p><b>query</b> &nbsp; {plain_text(pair.query)}</p>"
            f"<p style='line-height:1.35'><b>passage</b> &nbsp; <i>{plain_text(pair.title)}</i><br>"
            "<span style='white-space:pre-wrap'>"
            f"{plain_text(pair.passage)}</span></p>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        title = short(self.pair.title, 120)
        text = f"The pair of {title}: run this cell to read its text."
        return worded(self.widget, text)
