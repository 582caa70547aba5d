"""Paging: things that are looked at one by one, live with a slider and in a rendered page the first few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd


class Paged:
    """A view of many pages. A widget says what page `index` is (`html`, a pure function), how many there are
    (`n_pages`) and what its table is (`frame`).

    Attributes:
        noun: what one page is, beside the slider.
        shown: pages of the static face.
    """

    noun = "page"
    shown: int
    n_pages: Any
    html: Callable[..., str]
    frame: Callable[[], pd.DataFrame]

    def widget(self) -> Any:
        """Live face: previous, slider (arrow keys), next."""
        import ipywidgets as w

        slider = w.IntSlider(value=0, min=0, max=self.n_pages - 1, description=self.noun, readout=False)
        back, forth, view = w.Button(description="previous"), w.Button(description="next"), w.HTML(self.html(0))
        slider.observe(lambda change: setattr(view, "value", self.html(change["new"])), names="value")
        back.on_click(lambda _: setattr(slider, "value", slider.value - 1))
        forth.on_click(lambda _: setattr(slider, "value", slider.value + 1))
        return w.VBox([w.HBox([back, slider, forth]), view])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        static = "".join(self.html(i) for i in range(min(self.shown, self.n_pages)))
        bundle: Any = self.widget()._repr_mimebundle_()
        return {**bundle, "text/html": static, "text/plain": self.frame().head(20).to_string()}
