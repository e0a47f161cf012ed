"""A live picture of staleness: how far vectors move, and what the softmax gives them by age."""

from __future__ import annotations

import time

from . import measure, stills
from .drift import DriftProbe
from .views import View, paragraph


class DriftView(View):
    """Drift within some lags of updates, and similarity mass by age beside its control, of a lab while it trains. Notebook 07.

    every: updates between two looks at a fixed set of passages; lags: multiples of it.
    """

    title, wide = "Drift", (9.0, 3.2)

    def __init__(self, lab, every: int = 5, lags=(5, 25, 100)):
        import ipywidgets

        super().__init__(lab)
        if any(lag % every for lag in lags):
            raise ValueError(f"lags are {lags}: each must be a multiple of every, {every} updates.")
        self.every, self.lags, self._probe, self._drawn = every, tuple(lags), None, 0.0
        self.image = ipywidgets.Image(format="png", layout=dict(max_width="900px"))
        self.words = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.image, self.words])
        lab.observe(lambda _: self._look(), "ticks")
        self.draw()

    @property
    def probe(self) -> DriftProbe:
        if self._probe is None or self._probe.run is not self.lab.training:
            self._probe = DriftProbe(self.lab.training)
        return self._probe

    def _look(self) -> None:
        run, probe = self.lab.training, self.probe
        if run.step_count % self.every or run.step_count in probe.seen:
            return
        probe.look()
        if not self.lab.waiting and (
            time.monotonic() - self._drawn > 1 or run.step_count == run.settings.updates
        ):
            self.draw()

    def data(self) -> dict[str, dict[int, float]]:
        """{"drift within 5": {update: D}, …, "mass": {age: mass}, "control": {age: mass}}, whole."""
        run, found = (
            self.lab.training,
            {f"drift within {lag}": self.probe.drift(lag) for lag in self.lags},
        )
        if run.history and len(run.passage_bank):
            found |= {
                "mass": measure.similarity_mass(run),
                "control": measure.similarity_mass(run, fresh=True),
            }
        return found

    def draw(self) -> None:
        figure = stills.new(*self.wide)
        self.still(figure)
        self.image.value, self.words.value = (
            stills.png(figure, ""),
            paragraph(self.sentence),
        )  # the sentence stands below it
        self._drawn = time.monotonic()

    @property
    def sentence(self) -> str:
        data = self.data()
        last = {lag: list(data[f"drift within {lag}"].values()) for lag in self.lags}
        parts = [f"{_share(values[-1])} within {lag}" for lag, values in last.items() if values]
        said = (
            f"After update {self.lab.training.step_count} a passage's vector had moved, as squared length over its own, by {', '.join(parts)} updates."
            if parts
            else "No drift yet: two looks are needed."
        )
        if data.get("mass") and len(data["mass"]) > 1:
            oldest = max(data["mass"])
            said += f" The oldest in the bank ({oldest} updates) have {data['mass'][oldest] / data['mass'][0]:.2f} of the softmax mass of this batch's own; encoded now, {data['control'][oldest] / data['control'][0]:.2f}."
        return said

    def still(self, figure) -> None:
        data = self.data()
        left, right = figure.subplots(1, 2)
        drift = {
            name: (list(of), list(of.values()))
            for name, of in data.items()
            if name.startswith("drift") and of
        }
        stills.lines(
            left,
            drift or {"no drift yet": ([0], [0])},
            "drift",
            "update",
            "‖g(t) − g(t − lag)‖² / ‖g(t)‖²",
            bool(drift),
            False,
        )
        mass = {
            name: (list(data[key]), [v / data[key][0] for v in data[key].values()])
            for name, key in (("as stored", "mass"), ("encoded now", "control"))
            if data.get(key)
        }
        stills.lines(
            right,
            mass or {"no bank yet": ([0], [0])},
            "similarity mass by age",
            "age in updates",
            "share of age 0",
            False,
            False,
        )


def _share(value: float) -> str:
    return "under 0.01%" if value < 1e-4 else f"{100 * value:.2g}%"
