"""Draw the book's one figure from stored results: `python book/headline.py` writes book/_web/headline.svg."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nls import load_results, optimal_smooth_rate
from nls.plotting import noise_colors, plot_by_rate, set_theme

TARGET = Path(__file__).parent / "_web" / "headline.svg"


def draw() -> str:
    """Return the figure as SVG, the same bytes for the same results and versions."""
    set_theme()
    splice = load_results("uci").query("dataset == 'splice' and noise_rate in [0.0, 0.2, 0.4]")
    plenty = load_results("uci_posterior")
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.6))
    plot_by_rate(axes[0], splice, "accuracy_last", test_ratio=1 / 3)
    axes[0].set(title="Splice, 1,900 points: accuracy", ylabel="test accuracy")
    axes[0].legend(title="noise rate", loc="lower left")
    rates = np.sort(splice["smooth_rate"].unique())
    on_grid = plenty[plenty["smooth_rate"].isin(rates) & plenty["noise_rate"].isin([0.0, 0.2, 0.4])]
    plot_by_rate(axes[1], on_grid, "kl_last", star=False)
    for noise, color in noise_colors([0.0, 0.2, 0.4]).items():
        exact = optimal_smooth_rate(noise, 2)
        found = plenty[(plenty["noise_rate"] == noise) & np.isclose(plenty["smooth_rate"], exact, atol=1e-4)]
        x = np.interp(exact, rates, range(len(rates)))
        axes[1].plot(x, found["kl_last"].mean(), "*", ms=12, color=color, mec="black", mew=0.7, zorder=5)
    axes[1].set(title="Twonorm, 36,000 points: error of the posterior", ylabel="KL(truth || model), nats", yscale="log")
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(f"{TARGET.relative_to(Path.cwd())}: {TARGET.stat().st_size // 1000} kB")
