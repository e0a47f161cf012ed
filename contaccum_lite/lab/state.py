"""The sliders of a lab as traits: each setting with its range, and what follows from a choice."""

from __future__ import annotations

import dataclasses

import traitlets

from contaccum_lite.core.fields import checked
from contaccum_lite.core.presets import PRESETS
from contaccum_lite.core.settings import Settings
from contaccum_lite.lab.fields import FIELDS, FIELDS_THAT_SET_DEFAULTS, validate_hidden


class Refused(ValueError, traitlets.TraitError):
    """A value that a lab does not take.

    It is a TraitError too, because traitlets undoes a group of changes only for its own errors.
    """


class SettingTrait(traitlets.TraitType):
    """A trait with the default and the range of a field of `Settings`.

    None stands for the default, except for method, tower and dim, on which other defaults depend.
    """

    def __init__(self, field):
        super().__init__(
            field.metadata["default"],
            help=field.metadata["help"],
            allow_none=field.name not in FIELDS_THAT_SET_DEFAULTS,
        )
        self.field = field

    def validate(self, lab, value):
        try:
            return checked(self.field, value)
        except ValueError as error:
            raise Refused(*error.args) from None


_traits = {name: SettingTrait(field) for name, field in FIELDS.items()}
_SettingsTraits = type("_SettingsTraits", (traitlets.HasTraits,), _traits)


class LabState(_SettingsTraits):
    """A trait for each field of `Settings`, and the rules by which one choice changes others.

    What was chosen by hand (`_overrides`) survives a change of method; what was a default follows
    the new method's default.
    """

    hide = traitlets.Tuple(help="controls and views that are left out")

    def __init__(self, settings: Settings, also_chosen=(), hide=()):
        super().__init__()
        self._syncing = False  # the lab itself sets traits: nothing follows from it
        self._overrides = chosen_in(settings, also_chosen)
        self._set_traits(settings)
        self.hide = validate_hidden(hide)

    @property
    def settings(self) -> Settings:
        """What the sliders say: the settings of the next run."""
        fields = {name: getattr(self, name) for name in FIELDS}
        if "similarity" not in self._overrides:
            fields["similarity"] = None  # it follows the others
        return Settings(**fields)

    def fixed(self, name: str) -> bool:
        """Whether the method, or the tower, leaves no choice of this field."""
        if name == "start":
            return self.tower != "bag"
        return name in PRESETS[self.method]["fixed"]

    def apply_settings(self) -> None:
        """Called when a setting was chosen; what it raises undoes the choice."""

    def _set_traits(self, settings: Settings) -> None:
        """Set all traits to these settings."""
        self._syncing = True
        try:
            with self.hold_trait_notifications():
                for name in FIELDS:
                    setattr(self, name, getattr(settings, name))
        finally:
            self._syncing = False
        self._shown = settings

    @traitlets.validate("hide")
    def _validate_hide(self, proposal):
        return validate_hidden(proposal["value"])

    @traitlets.validate(*FIELDS)
    def _validate_setting(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        if not self._syncing and name not in FIELDS_THAT_SET_DEFAULTS:
            fields = {other: getattr(self, other) for other in FIELDS}
            try:
                Settings(**{**fields, name: value})
            except ValueError as error:
                raise Refused(*error.args) from None
        return value

    @traitlets.observe(*FIELDS)
    def _on_setting_changed(self, change):
        """A setting was chosen: others follow. Where that fails, all is as before."""
        if self._syncing:
            return
        overrides, shown = dict(self._overrides), self._shown
        try:
            self._remember(change.name, change.new)
            if change.name in FIELDS_THAT_SET_DEFAULTS:
                self._set_traits(self._resolve_defaults(change.name, change.new))
            else:
                self._set_traits(self.settings)
            self.apply_settings()
        except BaseException:
            self._overrides = overrides
            self._set_traits(shown)
            raise

    def _remember(self, name: str, value) -> None:
        """Remember a choice for the methods to come; None is no choice."""
        self._overrides.pop(name, None)
        if value is None:
            return
        if name == "local_batch" and self.method == "dpr":
            value = _local_share(self._overrides, value)
        self._overrides[name] = value

    def _resolve_defaults(self, name: str, value) -> Settings:
        """The settings after a change of method, tower or dim.

        DPR takes the whole N_local × K as its one batch, so that every method sees the same pairs
        in an update.
        """
        method = value if name == "method" else self.method
        fixed = PRESETS[method]["fixed"]
        chosen = {n: v for n, v in self._overrides.items() if n not in fixed}
        if name == "tower":
            chosen.pop("start", None)  # each tower has its own
        if method == "dpr" and name == "method":
            sizes = ("local_batch", "accumulation_steps")
            batch = {n: self._overrides[n] for n in sizes if n in self._overrides}
            most = FIELDS["local_batch"].metadata["high"]
            chosen["local_batch"] = min(Settings(**batch).total_batch, most)
        elif method == "dpr":
            chosen["local_batch"] = self.local_batch
        return _settings_that_fit({**chosen, "method": method, name: value})


def chosen_in(settings: Settings, also=()) -> dict:
    """{field: value} of what differs from the method's defaults, and of the fields in `also`."""
    default = Settings(
        method=settings.method, tower=settings.tower, dim=settings.dim, start=settings.start
    )
    followed = settings.replace(similarity=None).similarity
    default = dataclasses.replace(default, similarity=followed)
    chosen = {}
    for name in FIELDS:
        value = getattr(settings, name)
        if name in also or value != getattr(default, name):
            chosen[name] = value
    if settings.start != Settings(tower=settings.tower).start:
        chosen["start"] = settings.start
    if settings.method == "dpr" and "local_batch" in chosen:
        chosen["local_batch"] = _local_share(chosen, chosen["local_batch"])
    return chosen


def _local_share(chosen: dict, total: int) -> int:
    """The N_local that other methods have for DPR's one batch, which is N_local × K."""
    default = FIELDS["accumulation_steps"].metadata["default"]
    return max(1, total // chosen.get("accumulation_steps", default))


def _settings_that_fit(chosen: dict) -> Settings:
    """Settings of these choices, without those that the method does not allow.

    A cache, for one, gives the hard negatives itself. Of two choices that exclude each other, the
    earlier one is taken.
    """
    if _are_valid(chosen):
        return Settings(**chosen)
    fitting = {name: chosen[name] for name in FIELDS_THAT_SET_DEFAULTS if name in chosen}
    for _ in chosen:  # a choice may need one that comes after it
        for name, value in chosen.items():
            if name not in fitting and _are_valid({**fitting, name: value}):
                fitting[name] = value
    return Settings(**fitting)


def _are_valid(fields: dict) -> bool:
    try:
        Settings(**fields)
    except ValueError:
        return False
    return True
