r"""Graphs with a number to predict, labels with noise on it, and networks that suit the number or do not.

The setting of Li et al.: connected random graphs, whose nodes carry whole numbers; the number to predict is the largest
degree, or the largest number on a node. The networks differ in what they take a sum or a maximum over, and
so in which of the two they can compute with few parameters. :func:`graph_run` trains one of them on noisy labels and
measures what it predicts, and what a linear model of its last layer predicts that has seen some clean labels.

Networks run on padded tensors, in which a step takes a fraction of the time that it takes on the classes of
torch_geometric; :func:`geometric_network` gives the same network in those, for graphs of :func:`geometric_batch`.

References:
    Li et al., 2021, arXiv:2012.12896.
    Xu et al., 2021, How Neural Networks Extrapolate, arXiv:2009.11848.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from nls import _checks
from nls.clean_sets import check_disjoint, draw_clean
from nls.models import seeded_state
from nls.probes import probe
from nls.training import seeded_generator

TARGETS = ("degree", "feature")
"""What can be predicted, which is the largest degree of a graph, or the largest number on one of its nodes."""

NOISES = {"none": (), "normal": ("mean", "deviation"), "gamma": ("scale",), "instance": (), "shuffled": ()}
"""Kinds of noise, and the numbers that they take."""

NETWORKS = ("max-sum", "max-max", "deepset", "mlp")
"""Which networks there are, by the reduction over nodes, and that over the messages of a node's neighbours."""

SMALL, LARGE = (20, 39), (50, 69)
"""Fewest and most nodes of the graphs for training, and of those that only a test has."""

STRENGTHS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""Ridges to choose from; the paper has none, and with fewer graphs than it has some is needed at times."""


# Graphs


@dataclass(frozen=True)
class Graphs:
    """Undirected graphs, padded to the same number of nodes.

    Attributes:
        features: The number on each node [n, N], float32, in 1..100; 0 where there is no node.
        adjacency: Which nodes are neighbours [n, N, N], symmetric, no node its own neighbour.
        present: Which places hold a node [n, N], the first ones of each row.
    """

    features: torch.Tensor
    adjacency: torch.Tensor
    present: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, places: torch.Tensor | slice) -> Graphs:
        return Graphs(self.features[places], self.adjacency[places], self.present[places])

    def target(self, name: str) -> torch.Tensor:
        """Return the largest degree, or the largest number on a node, of each graph [n]."""
        if _checks.choice(name, "target", TARGETS) == "degree":
            return self.adjacency.sum(2).amax(1).float()
        return self.features.amax(1)

    def flat(self) -> torch.Tensor:
        """Return numbers and adjacency as one row for each graph [n, N + N^2]."""
        return torch.cat([self.features, self.adjacency.flatten(1).float()], 1)


def draw_graphs(
    count: int, sizes: tuple[int, int], generator: torch.Generator, *, top: tuple[int, int] = (100, 100)
) -> Graphs:
    r"""Draw connected Erdos-Renyi graphs with a whole number on each node.

    A graph has a number of nodes, uniform over ``sizes``, and an edge between two of them with a probability p that
    runs over .1, .2, ..., .9 from graph to graph. It is drawn again, with the same two, until it is connected. The
    numbers on its nodes are uniform over 1..t, with t uniform over ``top``.

    Args:
        count: How many graphs, at least 1.
        sizes: Fewest and most nodes, at least 2 each.
        generator: A CPU generator.
        top: Least and greatest t, in 1..100.

    Returns:
        The graphs, padded to the most nodes of ``sizes``.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is out of range, or a pair is not in order.

    Examples:
        >>> graphs = draw_graphs(3, (20, 39), seeded_generator(0, "graphs"))
        >>> graphs.adjacency.shape, int(graphs.present.sum(1).min()) >= 20
        (torch.Size([3, 39, 39]), True)

    References:
        Li et al., 2021, and its released code, gnn/data_generation.py.
    """
    count = _checks.integer(count, "count", low=1)
    fewest, most = _pair(sizes, "sizes", 2)
    least, greatest = _pair(top, "top", 1, 100)
    present = torch.arange(most) < torch.randint(fewest, most + 1, (count, 1), generator=generator)
    chances = (1 + torch.randperm(count, generator=generator) % 9) / 10
    adjacency = torch.zeros(count, most, most, dtype=torch.bool)
    open_places = torch.arange(count)
    while len(open_places):
        left = []
        for places in open_places.split(512):
            nodes, drawn = present[places], torch.rand(len(places), most, most, generator=generator)
            upper = ((drawn < chances[places, None, None]) & nodes[:, :, None] & nodes[:, None]).triu(1)
            adjacency[places] = upper | upper.mT
            left.append(places[~connected(adjacency[places], nodes)])
        open_places = torch.cat(left)
    tops = torch.randint(least, greatest + 1, (count, 1), generator=generator)
    numbers = 1 + (torch.rand(count, most, generator=generator) * tops).floor().clamp(max=tops - 1)
    return Graphs(numbers * present, adjacency, present)


def connected(adjacency: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return which graphs are connected [n], given adjacency [n, N, N] and which places hold nodes [n, N]."""
    neighbours, reached = adjacency.float(), torch.zeros(*present.shape, 1)
    reached[:, 0] = 1
    for _ in range(present.shape[1]):
        more = (reached + neighbours @ reached).clamp(max=1)
        if torch.equal(more, reached):
            break
        reached = more
    return ((reached[..., 0] > 0) == present).all(1)


def _pair(values: tuple[int, int], name: str, low: int, high: float = float("inf")) -> tuple[int, int]:
    if not isinstance(values, Sequence) or len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"{name} must be two integers in order, got {values!r}")
    return tuple(_checks.integer(value, name, low=low, high=high) for value in values)


# Labels


def noisy_targets(
    graphs: Graphs, target: str, noise: str, noise_ratio: float, generator: torch.Generator, *numbers: float
) -> torch.Tensor:
    r"""Return the targets of graphs with noise on a share of them.

    With chance ``noise_ratio`` the label of a graph is noisy, otherwise it is its target y:

    * ``"normal"``: :math:`y + N(\mu, \sigma^2)`;
    * ``"gamma"``: :math:`y + \Gamma(2, s) - 2s`, of mean y, skew;
    * ``"instance"``: the other target, a function of the same graph;
    * ``"shuffled"``: the target of another graph, so that at ratio 1 no label says anything about its graph.

    The ratio says how many labels have noise *added*: at ratio 1 of ``"normal"`` and ``"gamma"`` a label still is its
    target plus something that is independent of it. Draws of one generator state are nested: what is noisy at a ratio
    is so at any larger one, by as much.

    Args:
        graphs: n graphs.
        target: ``"degree"`` or ``"feature"``.
        noise: A key of ``NOISES``.
        noise_ratio: In [0, 1].
        generator: A CPU generator.
        numbers: The mean and standard deviation of ``"normal"``, the scale of ``"gamma"``.

    Returns:
        Labels [n], float32.

    Raises:
        TypeError: If a number is none.
        ValueError: If a name is unknown, or a number is out of range or missing.

    Examples:
        >>> graphs = draw_graphs(4, (20, 39), seeded_generator(0, "graphs"))
        >>> labels = noisy_targets(graphs, "feature", "instance", 1.0, seeded_generator(0, "noise"))
        >>> bool((labels == graphs.target("degree")).all())
        True
    """
    targets, count = graphs.target(target), len(graphs)
    expected = NOISES[_checks.choice(noise, "noise", tuple(NOISES))]
    if len(numbers) != len(expected):
        raise ValueError(f"numbers must be {', '.join(expected) or 'none'} for noise={noise!r}, got {numbers}")
    ratio = _checks.number(noise_ratio, "noise_ratio", low=0, high=1)
    noisy = torch.rand(count, generator=generator) < ratio
    values = [_checks.number(value, name, low=-100) for value, name in zip(numbers, expected, strict=True)]
    if noise == "normal":
        other = targets + values[0] + values[1] * torch.randn(count, generator=generator)
    elif noise == "gamma":
        steps = -torch.log1p(-torch.rand(2, count, generator=generator)).sum(0)  # two exponentials make a gamma of 2
        other = targets + values[0] * (steps - 2)
    elif noise == "instance":
        other = graphs.target("feature" if target == "degree" else "degree")
    else:
        other = targets[torch.randperm(count, generator=generator)] if noise == "shuffled" else targets
    return torch.where(noisy, other, targets)


def mape(predicted: torch.Tensor, targets: torch.Tensor) -> float:
    r"""Return the mean absolute percentage error of predictions of positive targets.

    :math:`\frac{100}{m} \sum_j |\hat y_j - y_j| / y_j`: an error counts by its share of the target, so the same error
    counts more on a small graph.

    Args:
        predicted: [m].
        targets: [m], above 0.

    Returns:
        The error in percent.

    Raises:
        ValueError: If the shapes differ, or a target is not above 0.

    Examples:
        >>> mape(torch.tensor([12.5, 30.0]), torch.tensor([10.0, 20.0]))
        37.5
    """
    if predicted.shape != targets.shape or not bool((targets > 0).all()):
        raise ValueError(
            f"targets must be above 0 and of the shape of predicted, {tuple(predicted.shape)}, "
            f"got {tuple(targets.shape)} with a least value of {float(targets.min()):g}"
        )
    return float(100 * ((predicted - targets).abs() / targets).double().mean())


# Networks


class GraphNetwork(nn.Module):
    r"""A network that predicts a number of a graph: a representation, and a linear output.

    With :math:`\phi(a) = V \max(0, W a + b) + c` and the number x on a node divided by ``feature_scale``, the
    representations are

    * ``"max-sum"``: :math:`\max_u \sum_{v \in N(u)} \phi(x_u, x_v)`, suits the largest degree, a maximum of counts;
    * ``"max-max"``: :math:`\max_u \max_{v \in N(u)} \phi(x_u, x_v)`;
    * ``"deepset"``: :math:`\max_u \phi(x_u)`, suits the largest number on a node and sees no edge;
    * ``"mlp"``: :math:`\max(0, \phi(\cdot))` of all numbers and of the upper triangle of the adjacency matrix in a row,
      with 0 up to 69 nodes; it suits neither.

    Args:
        kind: One of ``NETWORKS``.
        width: Length of the hidden layer and of the representation.
        feature_scale: 100 brings the numbers on the nodes into (0, 1]; 1 leaves them as they are.
        seed: Draws the initialisation, that of torch's linear layers.

    Examples:
        >>> graphs = draw_graphs(3, (20, 39), seeded_generator(0, "graphs"))
        >>> GraphNetwork("max-sum", 8).represent(graphs).shape
        torch.Size([3, 8])
    """

    def __init__(self, kind: str, width: int = 64, feature_scale: float = 100.0, seed: int = 0) -> None:
        super().__init__()
        self.kind = _checks.choice(kind, "kind", NETWORKS)
        self.scale = _checks.number(feature_scale, "feature_scale", low=1e-6)
        width, most = _checks.integer(width, "width", low=1), LARGE[1]
        inputs = {"deepset": 1, "mlp": most * (most + 1) // 2}.get(kind, 2)
        with seeded_state(seed, "init"):
            self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
            self.output = nn.Linear(width, 1)

    def message(self, values: torch.Tensor) -> torch.Tensor:
        """Return phi of inputs [..., d]."""
        return self.second(torch.relu(self.first(values)))

    def represent(self, graphs: Graphs) -> torch.Tensor:
        """Return the inputs of the last layer [n, width]."""
        numbers = graphs.features / self.scale
        if self.kind == "mlp":
            return torch.relu(self.message(self._row(numbers, graphs.adjacency)))
        if self.kind == "deepset":
            nodes = self.message(numbers.unsqueeze(2))
        else:
            nodes = self._aggregate(numbers, graphs.adjacency)
        return nodes.masked_fill(~graphs.present.unsqueeze(2), -torch.inf).amax(1)

    def forward(self, graphs: Graphs) -> torch.Tensor:
        """Return predictions [n]."""
        return self.output(self.represent(graphs)).squeeze(1)

    def _row(self, numbers: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        """Return numbers and edges of graphs in a row, with places for the largest graphs."""
        count, most = len(numbers), LARGE[1]
        missing = most - numbers.shape[1]
        edges = nn.functional.pad(adjacency, (0, missing, 0, missing))
        upper = torch.ones(most, most, dtype=torch.bool).triu(1)
        return torch.cat([nn.functional.pad(numbers, (0, missing)), edges[:, upper].view(count, -1).float()], 1)

    def _aggregate(self, numbers: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        """Return the sum or the maximum of the messages to each node [n, N, width]."""
        count, most = numbers.shape
        graph, node, neighbour = adjacency.nonzero(as_tuple=True)
        degree, to = adjacency.sum(2).view(-1), graph * most + node
        # W (x_u, x_v) is a sum of two terms that are made once for each node, not for each edge.
        own = numbers.reshape(-1, 1) * self.first.weight[:, 0] + self.first.bias
        other = numbers.reshape(-1, 1) * self.first.weight[:, 1]
        hidden = torch.relu(own.index_select(0, to) + other.index_select(0, graph * most + neighbour))
        if self.kind == "max-sum":  # the second layer is linear, so it can wait until after the sum
            total = hidden.new_zeros(count * most, hidden.shape[1]).index_add(0, to, hidden)
            nodes = total @ self.second.weight.T + degree.unsqueeze(1) * self.second.bias
        else:
            nodes = torch.segment_reduce(self.second(hidden), "max", lengths=degree, initial=-1e30)
        return nodes.view(count, most, -1)


def represent(network: GraphNetwork, graphs: Graphs, block: int = 128) -> torch.Tensor:
    """Return what a network's last layer reads [n, width], without gradients and in blocks."""
    with torch.no_grad():
        return torch.cat([network.represent(graphs[i : i + block]) for i in range(0, len(graphs), block)])


def fit_graphs(
    network: GraphNetwork,
    graphs: Graphs,
    labels: torch.Tensor,
    *,
    loss: str = "mse",
    epochs: int = 4,
    learning_rate: float = 0.003,
    batch_size: int = 64,
    seed: int = 0,
) -> GraphNetwork:
    """Train a network in place by Adam, with a step that falls to zero along half a cosine.

    Args:
        network: The network.
        graphs: n graphs.
        labels: Their labels [n].
        loss: ``"mse"`` or ``"mae"``, the mean of squared or of absolute errors.
        epochs: Passes over the graphs; 0 leaves the network as it is.
        learning_rate: The first step.
        batch_size: Graphs in a step.
        seed: Draws the order.

    Returns:
        The network.

    Raises:
        ValueError: If ``loss`` is unknown, or labels and graphs are not as many.

    Examples:
        >>> graphs = draw_graphs(8, (20, 39), seeded_generator(0, "graphs"))
        >>> network = fit_graphs(GraphNetwork("deepset", 4), graphs, graphs.target("feature"), epochs=1)
    """
    error = {"mse": torch.square, "mae": torch.abs}[_checks.choice(loss, "loss", ("mse", "mae"))]
    if labels.shape != (len(graphs),):
        raise ValueError(f"labels must have one entry for each of {len(graphs)} graphs, got {tuple(labels.shape)}")
    generator = seeded_generator(seed, "order")
    batches = [b for _ in range(epochs) for b in torch.randperm(len(graphs), generator=generator).split(batch_size)]
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(batches)))
    for batch in batches:
        optimizer.zero_grad()
        error(network(graphs[batch]) - labels[batch]).mean().backward()
        optimizer.step()
        schedule.step()
    return network


# The same in torch_geometric


def _geometric() -> ModuleType:
    """Return torch_geometric."""
    try:
        with warnings.catch_warnings():
            # At its import it compiles with torch.jit, which torch deprecates, and tqdm misses a widget of Jupyter.
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            warnings.filterwarnings("ignore", "IProgress not found")
            import torch_geometric
            import torch_geometric.data
            import torch_geometric.nn
    except ImportError as error:
        raise ValueError("this needs torch_geometric: pip install 'nls[graphs]'") from error
    return torch_geometric


def geometric_batch(graphs: Graphs) -> object:
    """Return the graphs as one ``torch_geometric.data.Batch``, with the numbers on the nodes [nodes, 1] as ``x``.

    Raises:
        ValueError: If torch_geometric is not installed; the message names the extra.

    Examples:
        >>> batch = geometric_batch(draw_graphs(2, (20, 39), seeded_generator(0, "graphs")))
        >>> batch.num_graphs, batch.is_undirected()
        (2, True)
    """
    data = _geometric().data
    return data.Batch.from_data_list([
        data.Data(x=numbers[here, None], edge_index=edges.nonzero().T.contiguous())
        for numbers, edges, here in zip(graphs.features, graphs.adjacency, graphs.present, strict=True)
    ])  # fmt: skip


def geometric_network(network: GraphNetwork) -> nn.Module:
    """Return a network as a module of torch_geometric, with the same parameters, that takes a batch of graphs.

    Args:
        network: Any but ``"mlp"``, which is none of graphs.

    Returns:
        A module whose outputs on ``geometric_batch(graphs)`` are those of ``network`` on ``graphs``.

    Raises:
        ValueError: If torch_geometric is not installed, or the network is an MLP.

    Examples:
        >>> graphs = draw_graphs(2, (20, 39), seeded_generator(0, "graphs"))
        >>> network = GraphNetwork("max-max", 8)
        >>> torch.allclose(geometric_network(network)(geometric_batch(graphs)), network(graphs), atol=1e-5)
        True
    """
    if network.kind == "mlp":
        raise ValueError("network must be 'max-sum', 'max-max' or 'deepset', got 'mlp', which passes no messages")
    parts = _geometric().nn

    class Passing(parts.MessagePassing):
        def __init__(self) -> None:
            super().__init__(aggr=network.kind[4:] if network.kind != "deepset" else "sum")
            self.network = network

        def forward(self, batch: object) -> torch.Tensor:
            numbers = batch.x / network.scale
            if network.kind == "deepset":
                nodes = network.message(numbers)
            else:
                nodes = self.propagate(batch.edge_index, x=numbers)
            return network.output(parts.global_max_pool(nodes, batch.batch)).squeeze(1)

        def message(self, x_i: torch.Tensor, x_j: torch.Tensor) -> torch.Tensor:
            return network.message(torch.cat([x_i, x_j], 1))

    with warnings.catch_warnings():
        # It reads annotations by a private function of Python, in a way that Python 3.13 deprecates.
        warnings.filterwarnings("ignore", "Failing to pass a value to the 'type_params'", DeprecationWarning)
        return Passing()


# The study


def graph_run(
    network: str,
    target: str,
    noise: str,
    noise_ratio: float,
    seed: int,
    *,
    mean: float = 0.0,
    deviation: float = 0.0,
    loss: str = "mse",
    feature_scale: float = 100.0,
    num_graphs: int = 5000,
    num_clean: int = 1000,
    num_test: int = 1000,
    width: int = 64,
    epochs: int = 4,
    batch_size: int = 64,
) -> list[dict]:
    """Train a network on graphs with noisy labels, and measure what its last layer knows.

    The seed draws graphs, noise, initialisation and order; runs that differ in other parameters share the graphs (of
    one target). The linear models see the same ``num_clean`` of the training graphs, with their targets. For the
    target ``"feature"`` the numbers on the nodes of a graph go to a top that is drawn from 20..100; up to 100 in all
    graphs, nearly every one of them would have the same target.

    Args:
        network: One of ``NETWORKS``.
        target: One of ``TARGETS``.
        noise: A key of ``NOISES``.
        noise_ratio: In [0, 1].
        seed: At least 0.
        mean: For the noise ``"normal"``.
        deviation: For ``"normal"``; the scale for ``"gamma"``.
        loss: For :func:`fit_graphs`.
        feature_scale: For :class:`GraphNetwork`.
        num_graphs: Training graphs, of 20 to 39 nodes.
        num_clean: Those of them whose target a linear model sees.
        num_test: Test graphs of each range of sizes.
        width: For :class:`GraphNetwork`.
        epochs: For :func:`fit_graphs`.
        batch_size: For :func:`fit_graphs`.

    Returns:
        Two rows, for test graphs of ``nodes`` 20-39 and 50-69, with the errors of :func:`mape` of: ``head``, the
        network's output; ``recalibrated``, the linear function of that output that fits the clean graphs best;
        ``probe``, a linear model of its representation, and ``untrained``, one of the representation before
        training, both fitted to the clean graphs; ``constant``, the mean of the clean graphs.
    """
    stream = {name: seeded_generator(seed, f"{target} {name}") for name in ("train", "noise", "small", "large")}
    top = (20, 100) if target == "feature" else (100, 100)
    train = draw_graphs(num_graphs, SMALL, stream["train"], top=top)
    tests = {
        f"{sizes[0]}-{sizes[1]}": draw_graphs(num_test, sizes, stream[name], top=top)
        for name, sizes in (("small", SMALL), ("large", LARGE))
    }
    check_disjoint({"train": train.flat(), "test": tests["20-39"].flat()})
    numbers = {"normal": (mean, deviation), "gamma": (deviation,)}.get(noise, ())
    labels = noisy_targets(train, target, noise, noise_ratio, stream["noise"], *numbers)
    clean = draw_clean(train.target(target), num_clean, seed=seed)
    answers, sets = train[clean].target(target), {"clean": train[clean]} | tests
    model = GraphNetwork(network, width, feature_scale, seed)
    before = {name: represent(model, graphs) for name, graphs in sets.items()}
    fit_graphs(model, train, labels, loss=loss, epochs=epochs, batch_size=batch_size, seed=seed)
    after = {name: represent(model, graphs) for name, graphs in sets.items()}
    with torch.no_grad():
        output = {name: model.output(values) for name, values in after.items()}
    layers = {"recalibrated": output, "probe": after, "untrained": before}
    return [
        {"nodes": nodes} | _errors(layers, answers, nodes, graphs.target(target)) for nodes, graphs in tests.items()
    ]


def _errors(
    layers: Mapping[str, Mapping[str, torch.Tensor]], answers: torch.Tensor, nodes: str, truth: torch.Tensor
) -> dict[str, float]:
    """Return the errors on one test set of linear models of layers, of the output as it is, and of a constant."""
    found = {name: mape(linear_fit(h["clean"], answers, h[nodes]), truth) for name, h in layers.items()}
    head = layers["recalibrated"][nodes].squeeze(1)
    return found | {"head": mape(head, truth), "constant": mape(answers.mean().expand(len(truth)), truth)}


def linear_fit(features: torch.Tensor, targets: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Return predictions [m] for test features of the linear model that fits targets [n], as :func:`nls.probes.probe`.

    Examples:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> [round(value, 2) for value in linear_fit(x, 2 * x[:, 0] + 1, torch.tensor([[10.0]])).tolist()]
        [21.0]
    """
    return probe(features, targets, test, strengths=STRENGTHS).outputs.squeeze(-1)


def graph_runs(seeds: Sequence[int], **settings: float) -> list[dict]:
    """Return the parameters of the runs of the stored study, for :func:`nls.runs.run_all`.

    Args:
        seeds: The seeds.
        settings: Parameters of :func:`graph_run` with other values than the default.

    Returns:
        One dict for each run of :func:`graph_run`.

    Examples:
        >>> len(graph_runs(range(5))), graph_runs([0])[0]["noise_ratio"]
        (160, 0.0)
    """
    middle, instance = {"noise": "normal", "mean": 10.0, "deviation": 15.0}, {"noise": "instance"}
    thirds, cells = (0.0, 0.5, 1.0), []

    def add(network: str, target: str, noise: dict, ratios: Sequence[float], **rest: float) -> None:
        cells.extend({"network": network, "target": target, **noise, "noise_ratio": r, **rest} for r in ratios)

    # What the claims rest on comes first, so that a study that is cut short has all seeds of it.
    add("max-sum", "degree", middle, thirds)
    add("max-sum", "degree", {"noise": "shuffled"}, (1.0,))
    for network in ("mlp", "deepset"):
        add(network, "degree", middle, thirds)
    for network in ("deepset", "max-sum", "mlp"):
        add(network, "feature", instance, thirds)
    for network in ("max-sum", "mlp"):
        add(network, "degree", {"noise": "none"}, (0.0,), num_graphs=1000, epochs=20)
    add("mlp", "degree", {"noise": "shuffled"}, (1.0,))
    add("max-sum", "degree", middle, (0.25, 0.75))
    add("max-sum", "degree", middle, (0.25, 0.75), loss="mae")
    add("max-sum", "degree", middle, (0.0, 1.0), feature_scale=1.0)
    add("max-sum", "degree", {"noise": "normal", "deviation": 40.0}, (1.0,))
    add("max-sum", "degree", {"noise": "gamma", "deviation": 15.0}, (1.0,))
    add("max-max", "degree", middle, (1.0,))
    add("max-max", "feature", instance, (0.5,))
    defaults = {name: value.default for name, value in inspect.signature(graph_run).parameters.items()}
    defaults = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    return [defaults | cell | {"seed": seed} | settings for cell in cells for seed in seeds]


def label_name(run: Mapping[str, object]) -> str:
    """Return a name for the labels that a run of :func:`graph_runs` was trained on, and for what else is special to it.

    Args:
        run: Parameters of :func:`graph_run`.

    Returns:
        Such as ``"clean"``, ``"clean alone"`` where there are no other graphs, ``"shuffled"``, ``"normal 15 at 50 %"``,
        and ``", mae"`` or ``", raw"`` where the loss or the scale of the numbers is not the default.

    Examples:
        >>> runs = graph_runs([0])
        >>> [label_name(run) for run in runs[:4]]
        ['clean', 'normal 15 at 50 %', 'normal 15 at 100 %', 'shuffled']
    """
    name = f"{run['noise']} {run['deviation']:g}".removesuffix(" 0") + f" at {100 * run['noise_ratio']:g} %"
    if run["noise"] == "none":
        name = "clean alone"
    elif not run["noise_ratio"]:
        name = "clean"
    elif run["noise"] == "shuffled" and run["noise_ratio"] == 1:
        name = "shuffled"
    return name + ", mae" * (run["loss"] == "mae") + ", raw" * (run["feature_scale"] == 1)
