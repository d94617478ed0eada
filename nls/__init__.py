"""Label smoothing under noisy labels: losses, noise models and posterior-entropy analysis."""

from importlib import import_module
from typing import TYPE_CHECKING

from nls.data import load_dataset
from nls.each import fit_each
from nls.fused import fused_gls_loss
from nls.grid import Cell, Grid
from nls.losses import GLSLoss, backward_corrected_loss, forward_corrected_loss, gls_loss, gls_targets
from nls.noise import (
    cifar10_asymmetric_transition,
    cifar10_pair_transition,
    draw_instance_noise,
    draw_noisy_labels,
    noise_report,
    pair_transition,
    symmetric_transition,
)
from nls.posterior import (
    entropy,
    expected_calibration_error,
    gls_posterior,
    js_divergence,
    kl_divergence,
    margin,
    mutual_information,
    noisy_posterior,
    output_map,
)
from nls.rates import feasible_rate, frobenius_rate, optimal_smooth_rate
from nls.training import fit_stack, seeded_generator

if TYPE_CHECKING:
    from nls.advise import suggest_smooth_rate
    from nls.claims import Claim, ClaimError, check_claims, claims_table
    from nls.engine import run_grid
    from nls.records import RecordStore
    from nls.stats import mean_interval, paired_interval, select_by_validation, tied_levels
    from nls.store import load_results, save_results

__version__ = "0.1.0"

# These need pandas or SciPy, which would double what the rest adds to the import of torch: imported when first used.
_LATER = {
    "advise": ("suggest_smooth_rate",),
    "claims": ("Claim", "ClaimError", "check_claims", "claims_table"),
    "engine": ("run_grid",),
    "records": ("RecordStore",),
    "stats": ("mean_interval", "paired_interval", "select_by_validation", "tied_levels"),
    "store": ("load_results", "save_results"),
}

__all__ = [
    "Cell",
    "Claim",
    "ClaimError",
    "GLSLoss",
    "Grid",
    "RecordStore",
    "backward_corrected_loss",
    "check_claims",
    "cifar10_asymmetric_transition",
    "cifar10_pair_transition",
    "claims_table",
    "draw_instance_noise",
    "draw_noisy_labels",
    "entropy",
    "expected_calibration_error",
    "feasible_rate",
    "fit_each",
    "fit_stack",
    "forward_corrected_loss",
    "frobenius_rate",
    "fused_gls_loss",
    "gls_loss",
    "gls_posterior",
    "gls_targets",
    "js_divergence",
    "kl_divergence",
    "load_dataset",
    "load_results",
    "margin",
    "mean_interval",
    "mutual_information",
    "noise_report",
    "noisy_posterior",
    "optimal_smooth_rate",
    "output_map",
    "pair_transition",
    "paired_interval",
    "run_grid",
    "save_results",
    "seeded_generator",
    "select_by_validation",
    "suggest_smooth_rate",
    "symmetric_transition",
    "tied_levels",
]


def __getattr__(name: str) -> object:
    """Import what is named in _LATER, or the module that has it."""
    for module, names in _LATER.items():
        if name == module or name in names:
            found = import_module(f"nls.{module}")
            globals()[name] = found if name == module else getattr(found, name)
            return globals()[name]
    raise AttributeError(f"module 'nls' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is not imported yet as well."""
    return sorted({*globals(), *_LATER, *__all__})
