"""How sure should a network be: the claims hold in a small run, and each falls under a planted mutation."""

import pytest
import torch
from chapters import run_chapter, run_solution, unexpected

import nls
import nls.overconfidence as module

STEM = "22_overconfidence"
SMALL = {"flow_seeds": 3, "digit_seeds": 4, "wave_seeds": 5}
UNTESTED = {"selective-large-images"}
KEPT = {}  # what was computed without a mutation


def kept(name, key, function):
    """Compute something once in this process."""
    if (name, key) not in KEPT:
        KEPT[name, key] = function()
    return KEPT[name, key]


FIT, ROW, FLOW = module.fit_arms, module.confidence_row, module.linear_flow


def fit_once(data, *args, seed=0, **options):
    """Train the networks of a seed once; the shape of the features tells the sets apart."""
    key = (data.train[0].shape, seed, str(args), str(options))
    return kept("fit", key, lambda: FIT(data, *args, seed=seed, **options))


def row_once(*parts):
    """Measure the predictions of a network once."""
    key = tuple(part.numpy().tobytes() for part in parts)
    return dict(kept("row", key, lambda: ROW(*parts)))


def run(patch, **values):
    """Execute the page at its smallest size."""
    for name, function in {"fit_arms": fit_once, "confidence_row": row_once}.items():
        if getattr(module, name) in (FIT, ROW):
            patch.setattr(module, name, function)
    return run_chapter(STEM, patch, **SMALL | values)


# Mutations. Networks of an epoch share start and order, so training at another rate is taking another member.


def members_become(choose):
    """Train each network as another one of the page."""

    def changed(data, rates, penalties, decays, **options):
        arms = fit_once(data, rates, penalties, decays, **options)
        names = [*rates, *(f"penalty {rate:g}" for rate in (0.4, 0.2, 0.1)), *(f"decay {decay:g}" for decay in decays)]
        stacks = []
        for stack in (arms.last, arms.stopped):
            new = stack.part(slice(None))
            for member, name in enumerate(names):
                source = names.index(choose(name))
                new.put(slice(member, member + 1), stack.part(slice(source, source + 1)))
            stacks.append(new)
        return module.Arms(*stacks, arms.epochs)

    return lambda patch: patch.setattr(module, "fit_arms", changed)


def sign_lost(patch):
    """Take |r| in the flow and in the networks."""
    members_become(lambda name: abs(name) if isinstance(name, float) else name)(patch)
    patch.setattr(module, "linear_flow", lambda x, y, rate, times: FLOW(x, y, abs(rate), times))


def rate_ignored(patch):
    """Train as a loss without a rate would."""
    members_become(lambda name: 0.0 if isinstance(name, float) else name)(patch)
    patch.setattr(module, "linear_flow", lambda x, y, rate, times: FLOW(x, y, 0.0, times))


def sign_turned(patch):
    """Train at -r and with the penalty as a reward, as far as the page has such networks."""
    turn = {0.4: 0.0, 0.2: 0.0, 0.1: 0.0, 0.0: 0.1, -0.1: 0.1}
    turn |= {f"penalty {rate:g}": -0.1 for rate in (0.4, 0.2, 0.1)}
    members_become(lambda name: turn.get(name, name))(patch)


def penalty_is_smoothing(patch):
    """Train the penalties as the rates that they are matched to."""
    members_become(lambda name: float(name[8:]) if str(name).startswith("penalty") else name)(patch)


def never_stopped(patch):
    """Take the last epoch for the best one."""

    def changed(*args, **options):
        arms = fit_once(*args, **options)
        return module.Arms(arms.last, arms.last, arms.epochs)

    patch.setattr(module, "fit_arms", changed)


def always_digits(patch):
    """Read digits whatever set is asked for."""
    read = module.small_set
    patch.setattr(module, "small_set", lambda name, seed: read("digits", seed))


def temperatures_left_out(patch):
    """Report the probabilities as trained as those at the temperature."""

    def changed(*parts):
        row = row_once(*parts)
        return row | {"temperature": 1.0, "nll_scaled": row["nll"]}

    patch.setattr(module, "confidence_row", changed)


def distances_reversed(patch):
    """Walk the rays from the far end."""
    walk = module.along_rays
    patch.setattr(module, "along_rays", lambda x, centre, distances: walk(x, centre, distances[::-1]))


def one_is_attacked(patch):
    """Move the examples of cross entropy only."""
    attack = module.fgsm

    def changed(function, features, labels, epsilon, **options):
        moved = attack(function, features, labels, epsilon, **options)
        others = torch.arange(len(moved)) != 3
        return torch.where(others[:, None, None], features, moved)

    patch.setattr(module, "fgsm", changed)


def one_attack_for_all(patch):
    """Let every attack be FGSM on the cross entropy as trained."""
    attack = module.fgsm
    patch.setattr(
        module, "fgsm", lambda f, x, y, epsilon, limits=None, **options: attack(f, x, y, epsilon, limits=limits)
    )


def norm_forgotten(patch):
    """Order by the largest probability and call it the norm."""

    def changed(*parts):
        row = row_once(*parts)
        return row | {"area_norm": row["area"]}

    patch.setattr(module, "confidence_row", changed)


def stored_scores_swapped(patch):
    """Take the order by the norm for that by the largest probability in the stored rows."""
    read, names = nls.load_results, {"area": "area_norm", "area_norm": "area"}
    patch.setattr(nls, "load_results", lambda study: read(study).rename(columns=names))


def stored_rates_reversed(patch):
    """Call the stored rows of each rate by another one."""
    read, rates = nls.load_results, {0.0: 0.4, 0.1: 0.1, 0.4: 0.0}
    patch.setattr(nls, "load_results", lambda study: (t := read(study)).assign(rate=t["rate"].map(rates)))


MUTATIONS = {  # several in one run where they touch different claims
    (sign_lost, stored_scores_swapped): {"three-speeds", "negative-rate-masks", "norm-repairs-images"},
    (rate_ignored,): {
        "infinite-confidence", "three-speeds", "lead-reached", "large-weights", "smaller-slope", "less-extreme",
        "noise-inputs", "digits-not-scale", "waveform-temperature", "fgsm-flatters", "selective-worse",
        "selective-better-on-digits", "norm-not-at-the-end", "negative-rate-masks",
    },
    (sign_turned, stored_rates_reversed): {"penalty-prevents-peaks", "more-non-linear", "selective-worse"},
    (always_digits,): {"penalty-generalises"},
    (penalty_is_smoothing, norm_forgotten, one_attack_for_all): {
        "penalty-overshoots", "norm-repairs", "fgsm-flatters", "scale-defends",
    },
    (never_stopped, temperatures_left_out, one_is_attacked): {
        "waveform-stop", "waveform-temperature", "less-sure-on-rays", "robust-in-general",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        return run(patch)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    assert {claim.name for claim in page["claims"] if claim.verdict == "not tested"} == UNTESTED
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} == fallen | UNTESTED, "a claim is seen to fail nowhere"


@pytest.mark.parametrize("mutations", MUTATIONS, ids=lambda all_: "+".join(one.__name__ for one in all_))
def test_claims_fall_under_a_mutation(mutations, monkeypatch):
    for mutate in mutations:
        mutate(monkeypatch)
    assert MUTATIONS[mutations] - unexpected(run(monkeypatch)) == set()


WRONG = {
    "solution-failed": ("chosen = 1e-4", "chosen = 1.0"),
    "solution-same": ("1 / (lead * (1 - 0.1 + 0.1 / classes))", "0.1 / (1 - 0.1)"),
    "solution-two": ("[:, :2]", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
