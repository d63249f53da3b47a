"""Draws the peers' figures: JSON on the standard input, a PNG and an SVG into the folder that is
named. Runs in the environment of requirements-bench.lock, by itself."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "tollway"  # the same figures give the same file
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
matplotlib.rcParams["font.size"] = 9

from matplotlib import pyplot  # noqa: E402 (after the choice of where it draws)

PANELS = (
    ("request_us", "CPU a request, µs"),
    ("paced_chunk_us", "CPU a paced chunk of a stream, µs"),
    ("idle_stream_kb", "memory an idle stream, KB"),
    ("resident_mb", "memory before load, MB"),
)
OURS, OTHERS = "#1f6f54", "#9aa5b1"


def main() -> None:
    folder, figures = Path(sys.argv[1]), json.load(sys.stdin)
    drawing, axes = pyplot.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for axis, (key, title) in zip(axes.flat, PANELS, strict=True):
        known = {name: of[key] for name, of in figures.items() if key in of}
        if not known:
            axis.set_visible(False)
            continue
        names = sorted(known, key=lambda name: -known[name])
        values = [known[name] for name in names]
        bars = axis.barh(
            names, values, color=[OURS if n.startswith("Tollway") else OTHERS for n in names]
        )
        axis.bar_label(bars, [_label(value) for value in values], padding=3)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 2, max(values) * 4)
        axis.set_title(title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    drawing.supxlabel("Logarithmic; less is better.", fontsize=8)
    drawing.savefig(folder / "peers.png", dpi=110, metadata={"Software": None})
    drawing.savefig(folder / "peers.svg", metadata={"Date": None})


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


if __name__ == "__main__":
    main()
