"""The view as an SVG file: what a person saw at that moment, drawn from the same facts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from demo.view import Scene, render
from demo.watching import Facts

WIDTH: Final = 100
HEIGHT: Final = 40
# A file that fetches nothing when it is opened: any fixed-width font of the reader's will do.
_WITHOUT_FONTS: Final = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def save_picture(scene: Scene, facts: Facts, path: Path) -> None:
    """Write what the terminal would show now, at 100 x 40. Raises OSError."""
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)
    console.print(render(scene, facts))
    svg = console.export_svg(title="scripts/demo", code_format=_WITHOUT_FONTS)
    path.write_text(svg, encoding="utf-8")
