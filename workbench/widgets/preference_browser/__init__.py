"""Pairs, rankings and rated rows side by side."""

from workbench.widgets.preference_browser.browser import PreferenceBrowser

__all__ = ["PreferenceBrowser"]
