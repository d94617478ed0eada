"""The noise that is counted where a model is surest."""

import pytest
import torch

import nls
from nls.anchors import LEAST, SHARES, count_noise, label_dependence
from nls.rates import frobenius_rate, scalar_share


def made(transition, per_class=2000, seed=0, unsure=0.0):
    """Labels by a matrix, and predictions that are right but for a share of unsure examples of any class."""
    classes = len(transition)
    clean = torch.arange(classes).repeat(per_class)
    noisy = nls.draw_noisy_labels(clean, transition, nls.seeded_generator(seed, "noise"))
    maker = nls.seeded_generator(seed, "predictions")
    sure = torch.rand(len(clean), generator=maker, dtype=torch.float64)
    blurred = sure < unsure
    shown = torch.where(blurred, torch.randint(classes, clean.shape, generator=maker), clean)
    height = 1 / classes + (1 - 1 / classes) * (0.2 + 0.8 * sure)
    spread = ((1 - height) / (classes - 1))[:, None].expand(-1, classes)
    return noisy, spread.scatter(1, shown[:, None], height[:, None])


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("noise_rate", [0.0, 0.2, 0.4])
def test_symmetric_noise_is_found_within_five_standard_errors(classes, noise_rate):
    noisy, model = made(nls.symmetric_transition(classes, noise_rate), 6000 // classes)
    found = count_noise(model, noisy, resamples=0)
    error = (noise_rate * (1 - noise_rate) / (found.share * 6000)) ** 0.5
    assert abs(float(found.noise_rate[0]) - noise_rate) <= 5 * error
    exact = nls.optimal_smooth_rate(noise_rate, classes)
    kept = 1 / (1 - found.smooth_rate[0])  # 1 - c, which is linear in the noise rate
    assert abs(float(kept) - 1 / (1 - exact)) <= 5 * classes / (classes - 1) * error + 1e-9
    assert float(found.residual[0]) < 0.35


def test_rows_are_counts_among_the_surest():
    noisy, model = made(nls.pair_transition(4, 0.3), 500)
    found = count_noise(model, noisy, resamples=0)
    predicted = model.argmax(1)
    for k in range(4):
        rows = (predicted == k).nonzero()[:, 0]
        rows = rows[model[rows, k].argsort(descending=True)][: int(found.share * len(rows) + 1e-9)]
        assert found.counts[k] == len(rows)
        assert torch.allclose(found.transition[k] * len(rows), torch.bincount(noisy[rows], minlength=4).double())


def test_pair_noise_has_the_rate_and_the_residual_of_its_matrix():
    transition = nls.pair_transition(10, 0.3)
    noisy, model = made(transition)
    found = count_noise(model, noisy, resamples=0)
    assert float(found.smooth_rate[0]) == pytest.approx(frobenius_rate(transition)[0], abs=0.02)
    assert float(found.residual[0]) == pytest.approx(scalar_share(transition), abs=0.02)


def test_squares_lose_what_counting_adds():
    """Without it the best rate of ten classes counted on few examples is too near zero on average."""
    transition = nls.symmetric_transition(10, 0.5)
    exact = nls.optimal_smooth_rate(0.5, 10)
    raw, mended = [], []
    for seed in range(40):
        noisy, model = made(transition, 40, seed)
        found = count_noise(model, noisy, resamples=0)
        raw.append(frobenius_rate(found.transition, found.prior)[0])
        mended.append(float(found.smooth_rate[0]))
    raw, mended = (1 / (1 - torch.tensor(values)) for values in (raw, mended))  # 1 - c, which has a mean
    spread = float(mended.std() / len(mended) ** 0.5)
    assert abs(float(mended.mean()) - 1 / (1 - exact)) < 4 * spread
    assert float(raw.mean()) - 1 / (1 - exact) > 4 * spread


def test_a_smaller_share_is_taken_where_the_less_sure_ones_are_wrong():
    noisy, model = made(nls.symmetric_transition(3, 0.2), 4000, unsure=0.5)
    found = count_noise(model, noisy, resamples=0)
    assert found.share <= 0.5
    assert abs(float(found.noise_rate[0]) - 0.2) < 0.04
    assert float((model.argmax(1) != noisy).double().mean()) > 0.35  # what the whole set would say


def test_large_shares_are_taken_where_all_agree():
    found = [
        count_noise(*reversed(made(nls.symmetric_transition(3, 0.2), 1000, seed)), resamples=0) for seed in range(20)
    ]
    assert sum(f.share for f in found) / 20 > 0.4


def test_small_sets_use_the_largest_share():
    noisy, model = made(nls.symmetric_transition(2, 0.2), LEAST // 2)
    assert count_noise(model, noisy, resamples=0).share == SHARES[0]


def test_resamples_spread_as_the_noise_rate_does():
    transition = nls.symmetric_transition(3, 0.3)
    found = [count_noise(*reversed(made(transition, 300, seed)), resamples=100, seed=seed) for seed in range(30)]
    over_data = torch.stack([f.noise_rate[0] for f in found]).std()
    over_resamples = torch.stack([f.noise_rate[1:].std() for f in found]).mean()
    assert 0.6 < float(over_resamples / over_data) < 1.6
    assert torch.equal(found[0].noise_rate, count_noise(*reversed(made(transition, 300, 0)), resamples=100).noise_rate)


def test_the_rate_of_resamples_is_that_of_the_data_on_average():
    """What counting adds to a square, resamples add once more; taken off once, they are too near zero."""
    found = [
        count_noise(*reversed(made(nls.symmetric_transition(10, 0.4), 200, seed)), resamples=30) for seed in range(20)
    ]
    kept = torch.stack([1 / (1 - f.smooth_rate) for f in found])
    off = kept[:, 1:].mean(1) - kept[:, 0]
    assert abs(float(off.mean())) < 4 * float(off.std() / len(off) ** 0.5)


def test_one_disagreement_among_the_less_sure_does_not_drop_them():
    """A smaller share without any has no spread of its own that could be counted."""
    sure = torch.linspace(0.99, 0.6, 100, dtype=torch.float64)
    model = torch.stack([torch.cat([sure, 1 - sure]), torch.cat([1 - sure, sure])], 1)
    labels = torch.arange(200) // 100
    labels[60] = 1
    assert count_noise(model, labels, resamples=0).share == SHARES[0]


def test_labels_without_information_have_no_rate():
    noisy, model = made(nls.symmetric_transition(2, 0.5).flip(0) * 0 + 0.5, 500)
    found = count_noise(model, 1 - noisy * 0 - model.argmax(1), resamples=0)  # always the other class
    assert found.smooth_rate.isnan().all()
    assert found.noise_rate[0] == 1


def test_a_class_that_is_never_predicted_has_the_row_of_symmetric_noise():
    noisy, model = made(nls.symmetric_transition(3, 0.2), 400)
    model = torch.cat([model, torch.zeros(len(model), 1)], 1).double()
    found = count_noise(model, noisy, resamples=0)
    right = float((found.transition.diagonal() * found.counts)[:3].sum() / found.counts.sum())
    assert found.counts[3] == 0
    assert found.transition[3].tolist() == pytest.approx([(1 - right) / 3] * 3 + [right])


def test_a_resample_without_any_of_the_surest_tells_nothing():
    """Of four examples two are of one class, and a third of all resamples miss the surer one of them."""
    model = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.1, 0.8], [0.1, 0.2, 0.7]])
    found = count_noise(model, torch.tensor([0, 1, 2, 2]), resamples=100)
    missed = found.noise_rate[1:] > 0
    assert 10 < int(missed.sum()) < 60
    assert found.noise_rate[1:][missed].tolist() == pytest.approx([2 / 3] * int(missed.sum()))
    assert torch.equal(found.smooth_rate[1:].isnan(), missed)
    assert (found.residual[1:][missed] == 1).all()


def test_dependence_is_the_distance_from_permuted_labels():
    """By hand: the sum over examples, and its spread when labels are permuted within the predicted classes."""
    maker = torch.Generator().manual_seed(0)
    model = torch.rand(120, 4, generator=maker, dtype=torch.float64).softmax(1)
    labels = torch.randint(4, (120,), generator=maker)
    predicted = model.argmax(1)

    def total(labels):
        found = 0.0
        for k in range(4):
            rows = (predicted == k).nonzero()[:, 0].tolist()
            q = [[float(model[x, j] / (1 - model[x, k])) if j != k else 0.0 for j in range(4)] for x in rows]
            for j in range(4):
                mean = sum(row[j] for row in q) / len(rows)
                found += sum((row[j] - mean) for x, row in zip(rows, q, strict=True) if labels[x] == j)
        return found

    permuted = []
    for _ in range(400):
        order = torch.arange(120)
        for k in range(4):
            rows = (predicted == k).nonzero()[:, 0]
            order[rows] = rows[torch.randperm(len(rows), generator=maker)]
        permuted.append(total(labels[order]))
    permuted = torch.tensor(permuted)
    spread = float(permuted.std())
    assert abs(float(permuted.mean())) < 5 * spread / 20
    assert label_dependence(model, labels) == pytest.approx(total(labels) / spread, rel=5 / 800**0.5, abs=0.05)


def test_dependence_is_standard_normal_under_noise_of_the_class_alone():
    maker = torch.Generator().manual_seed(0)
    found = []
    for seed in range(200):
        noisy, model = made(nls.pair_transition(4, 0.3), 100, seed)
        model = model + 0.1 * torch.rand(model.shape, generator=maker, dtype=torch.float64)
        found.append(label_dependence(model / model.sum(1, keepdim=True), noisy))
    found = torch.tensor(found)
    assert abs(float(found.mean())) < 5 / 200**0.5
    assert abs(float(found.std()) - 1) < 5 / 400**0.5


def test_two_classes_have_nothing_else_to_look_like():
    noisy, model = made(nls.symmetric_transition(2, 0.3), 200)
    assert label_dependence(model, noisy) == 0
    assert not count_noise(model, noisy, resamples=0).depends_on_example


def test_shares_in_which_labels_depend_on_the_example_are_not_taken():
    """The less sure half carries the label of the other class that it looks like; agreement is the same everywhere."""
    maker = torch.Generator().manual_seed(0)
    place = torch.arange(6000) // 3 / 2000
    predicted, side = torch.arange(6000) % 3, torch.randint(1, 3, (6000,), generator=maker)
    wrong = torch.rand(6000, generator=maker) < 0.3
    drawn = torch.randint(1, 3, (6000,), generator=maker)
    labels = torch.where(wrong, (predicted + torch.where(place < 0.3, drawn, side)) % 3, predicted)
    eye = torch.eye(3, dtype=torch.float64)
    height = (0.9 - 0.3 * place.double())[:, None]
    model = height * eye[predicted] + (1 - height) * (
        0.8 * eye[(predicted + side) % 3] + 0.2 * eye[(predicted - side) % 3]
    )
    found = count_noise(model, labels, resamples=20)
    assert found.depends_on_example
    assert found.share in (0.25, 0.35)
    whole = torch.where(wrong, (predicted + side) % 3, predicted)
    nowhere = count_noise(model, whole, resamples=0)
    assert nowhere.depends_on_example
    assert nowhere.share == SHARES[-1]
    nothing = count_noise(model, torch.where(wrong, (predicted + drawn) % 3, predicted), resamples=0)
    assert not nothing.depends_on_example
    assert nothing.share == SHARES[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": torch.rand(4, 2) + 1}, "probabilities"),
        ({"probabilities": torch.full((1, 2), 0.5)}, r"shape \[n, K\] with n >= 2, got \(1, 2\)"),
        ({"noisy_labels": torch.tensor([0, 1])}, r"noisy_labels must have shape \(4,\), got \(2,\)"),
        ({"noisy_labels": torch.tensor([0, 1, 2, 0])}, "noisy_labels"),
        ({"resamples": -1}, "resamples"),
        (
            {"probabilities": torch.eye(4), "noisy_labels": torch.tensor([0, 0, 1, 2])},
            "probabilities must be largest for some class twice, got 4 rows, each for another",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"probabilities": torch.full((4, 2), 0.5), "noisy_labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(ValueError, match=message):
        count_noise(**good | change)
