"""A live picture of staleness: how far vectors move, and their softmax mass by age."""

from __future__ import annotations

import time

import ipywidgets

from contaccum_lite.diagnostics import measure
from contaccum_lite.lab import stills
from contaccum_lite.lab.view import View, paragraph
from contaccum_lite.staleness.drift import DriftProbe


class DriftView(View):
    """Drift within some lags, and similarity mass by age beside its control, while a lab trains.

    every: updates between two looks at a fixed set of passages. lags: in updates, multiples of
    `every`. Notebook 07.
    """

    title, wide = "Drift", (9.0, 3.2)

    def __init__(self, lab, every: int = 5, lags=(5, 25, 100)):
        super().__init__(lab)
        if any(lag % every for lag in lags):
            raise ValueError(f"lags are {lags}: each must be a multiple of every, {every} updates.")
        self.every, self.lags = every, tuple(lags)
        self._probe, self._last_drawn = None, 0.0
        self.image = ipywidgets.Image(format="png", layout={"max_width": "900px"})
        self.words = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.image, self.words])
        lab.observe(lambda _: self._on_tick(), "ticks")
        self.draw()

    @property
    def probe(self) -> DriftProbe:
        """The probe of the lab's run; a new run gets a new one."""
        if self._probe is None or self._probe.run is not self.lab.training:
            self._probe = DriftProbe(self.lab.training)
        return self._probe

    def _on_tick(self) -> None:
        run, probe = self.lab.training, self.probe
        if run.step_count % self.every or run.step_count in probe.seen:
            return
        probe.look()
        is_last = run.step_count == run.settings.updates
        if not self.lab.waiting and (is_last or time.monotonic() - self._last_drawn > 1):
            self.draw()

    def data(self) -> dict[str, dict[int, float]]:
        """{"drift within 5": {update: D}, …, "mass": {age: mass}, "control": {age: mass}}."""
        run = self.lab.training
        data = {f"drift within {lag}": self.probe.drift(lag) for lag in self.lags}
        if run.history and len(run.passage_bank):
            data["mass"] = measure.similarity_mass(run)
            data["control"] = measure.similarity_mass(run, fresh=True)
        return data

    def draw(self) -> None:
        figure = stills.new(*self.wide)
        self.still(figure)
        self.image.value = stills.png(figure, "")  # the sentence stands below it
        self.words.value = paragraph(self.sentence)
        self._last_drawn = time.monotonic()

    @property
    def sentence(self) -> str:
        data = self.data()
        shares = []
        for lag in self.lags:
            drift = list(data[f"drift within {lag}"].values())
            if drift:
                shares.append(f"{_share(drift[-1])} within {lag}")
        sentence = "No drift yet: two looks are needed."
        if shares:
            sentence = (
                f"After update {self.lab.training.step_count} a passage's vector had moved, as "
                f"squared distance over its squared norm, by {', '.join(shares)} updates."
            )
        mass = data.get("mass", {})
        if len(mass) > 1:
            oldest, control = max(mass), data["control"]
            sentence += (
                f" The oldest in the bank ({oldest} updates) have {mass[oldest] / mass[0]:.2f} of "
                f"the softmax mass of this batch's own; encoded now, "
                f"{control[oldest] / control[0]:.2f}."
            )
        return sentence

    def still(self, figure) -> None:
        data = self.data()
        left, right = figure.subplots(1, 2)
        drift, mass = {}, {}
        for name, by_update in data.items():
            if name.startswith("drift") and by_update:
                drift[name] = list(by_update), list(by_update.values())
        for name, key in (("as stored", "mass"), ("encoded now", "control")):
            by_age = data.get(key)
            if by_age:
                mass[name] = list(by_age), [value / by_age[0] for value in by_age.values()]
        y = "‖g(t) − g(t − lag)‖² / ‖g(t)‖²"
        shown = drift or {"no drift yet": ([0], [0])}
        stills.lines(left, shown, "drift", "update", y, log=bool(drift), log_x=False)
        shown = mass or {"no bank yet": ([0], [0])}
        labels = "similarity mass by age", "age in updates", "share of age 0"
        stills.lines(right, shown, *labels, log=False, log_x=False)


def _share(value: float) -> str:
    return "under 0.01%" if value < 1e-4 else f"{100 * value:.2g}%"
