"""The paper's manner of drawing: panels, colours, a legend below, the same bytes for the same rows.

matplotlib is an extra: tables do without it.
"""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttc_core.errors import UserError
from ttc_core.presets import SUPERVISED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart also by colour-blind eyes; the paper dictates Figure 3's.
COLOURS = {
    "source": "#000000",
    "norm": "#E69F00",
    "t3a": "#999999",
    "eta": "#009E73",
    "tipi": "#CC79A7",
    "tent": "#0072B2",
    "ttc": "#D55E00",
    "ttc_stream": "#7B1FA2",
    SUPERVISED: "#E8B800",
}
OTHER_COLOUR = "#56B4E9"
MARKERS = {
    **{"source": "s", "norm": "o", "t3a": "v", "eta": "^", "tipi": "D", "tent": "X", "ttc": "P"},
    "ttc_stream": "*",
}


@dataclass(frozen=True)
class Drawing:
    """A figure in both forms.

    Attributes:
        name: of its files.
        title: a few words.
        caption: what it shows, for people who cannot see it, too.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes

    @property
    def uri(self) -> str:
        """The figure as an image of its own, so that names inside clash with no other's."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def panels(
    count: int, columns: int, width: float = 3.3, height: float = 2.6
) -> tuple["Figure", list["Axes"]]:
    """An empty figure with so many panels, each of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Figures need matplotlib: pip install 'ttc-service[report]'; the tables do not."
        ) from error
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def legend(figure: "Figure", axes: Sequence["Axes"], columns: int) -> None:
    """One below all panels, so that it hides no line."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(columns, len(entries)),
        frameon=False,
    )


def plain_text(text: object) -> str:
    """Text from rows as it is: matplotlib would set $...$ as a formula."""
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("$", r"\$")


def drawn(name: str, title: str, caption: str, figure: "Figure") -> Drawing:
    import matplotlib as mpl

    files = {}
    # Equal rows give equal bytes: no dates, no random names inside.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}), warnings.catch_warnings():
        # A name in a script that the font lacks gets boxes; that is no news to the user.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=150, metadata=metadata)
            files[kind] = out.getvalue()
    return Drawing(name, title, caption, files["png"], files["svg"])
