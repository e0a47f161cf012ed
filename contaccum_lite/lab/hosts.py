"""What differs between notebook hosts: JupyterLab, Colab, Kaggle, ipywidgets 7 and 8."""

from __future__ import annotations

import os
import sys

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
#: "off" where no widget can live, "on" where one can all the same; unset, the host decides.
SWITCH = "CONTACCUM_LITE_WIDGETS"
#: in the environment of a kernel of Kaggle
_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"


def in_colab() -> bool:
    """Whether the kernel is Colab's, whose page hears little that comes from the background."""
    return "google.colab" in sys.modules


def no_widgets_because() -> str:
    """Why no widget can live here, as a sentence for the reader; empty where one can.

    Raises `ValueError` for a switch that is neither "on" nor "off".
    """
    switch = os.environ.get(SWITCH, "").lower()
    if switch not in ("", "on", "off"):
        raise ValueError(f"{SWITCH} is {switch!r}: set it to 'on' or to 'off', or leave it unset.")
    if switch == "off":
        return f"A still picture, because {SWITCH} is off."
    if _KAGGLE in os.environ and not switch:
        return (
            "A still picture, because Kaggle's page may not load the live one; "
            f"to try it, set os.environ['{SWITCH}'] = 'on'."
        )
    return ""


def tooltip(text: str) -> dict[str, str]:
    """The tooltip of a widget with a description, as the installed ipywidgets names it."""
    import ipywidgets  # optional: the library is imported without it

    new = "tooltip" in ipywidgets.DOMWidget.class_trait_names()
    return {"tooltip" if new else "description_tooltip": text}


def widget_view(widget) -> tuple[dict, dict]:
    """(data, metadata) that show a widget, of ipywidgets 7 as of 8.

    Colab loads no widgets but its own unless the metadata names the manager that loads them.
    """
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {WIDGET_VIEW: view}, _colab_metadata() if in_colab() else {}


def _colab_metadata() -> dict:
    """What Colab's page needs to know to load widgets that are not its own."""
    output = sys.modules.get("google.colab.output")
    if output is None:
        return {}
    output.enable_custom_widget_manager()
    address = getattr(getattr(output, "_widgets", None), "_installed_url", None)
    if address is None:
        return {}
    return {WIDGET_VIEW: {"colab": {"custom_widget_manager": {"url": address}}}}
