"""matplotlib's SVG inside a page: ids of its own, colours of the page, so that light, dark and print all fit."""

import html
import re

COLORS = {
    "#000000": "--ink",
    "#ffffff": "--card",
    "#555555": "--soft",
    "#e4e4e4": "--line",
    "#bbbbbb": "--band",
    "#c4c4c4": "--band",
    "#0072b2": "--c1",
    "#d55e00": "--c2",
    "#009e73": "--c3",
    "#cc79a7": "--c4",
    "#e69f00": "--c5",
    "#56b4e9": "--c6",
}
"""What our plots draw with, and the page's variable for it."""


def inline_svg(svg: str, name: str, alt: str) -> str:
    """Return the `<svg>` element alone, as wide as its place.

    Args:
        svg: a whole file, as `render_svg` returns it.
        name: of the picture, before each of its ids.
        alt: what it shows, for whoever cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    for color, variable in COLORS.items():
        body = re.sub(color, f"var({variable})", body, flags=re.IGNORECASE)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None  # matplotlib writes one
    label = html.escape(alt, quote=True)
    opening = f'<svg viewBox="{view[1]}" role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + body[body.index(">") + 1 :].rstrip()
