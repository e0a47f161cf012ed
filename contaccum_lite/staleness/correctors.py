"""Correctors: small maps that move a stale vector to where its passage's vector would be now.

After "A Fresh Take on Stale Embeddings" (Monath et al., ICML 2024), of which we could read the
abstract and secondary sources, not the full text. The paper's, by those: a small parametric network
takes the stale vector alone, is trained with the retriever by squared error to the freshly encoded
vectors, and is applied to the whole cache at every step. Ours: its residual form that starts as the
identity, its width and optimiser, the age of a vector as an input, and all other correctors, which
stand beside it because a network must first beat a line. Notebook 07.

None of them ever changes what is stored: stored vectors are corrected when they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contaccum_lite.core.bank import MemoryBank

REPLAY_SIZE = 512  # pairs that an online corrector learns from: the newest ones
MIN_PAIRS = 64  # with fewer it does not learn

#: What the files of earlier versions call what `fit` learns.
EARLIER_NAMES = {
    "mean_age": "unit",
    "source_mean": "from",
    "target_mean": "to",
    "scale": "stretch",
    "rotation": "turn",
    "anchors": "places",
    "bandwidth": "size",
    "steps_made": "steps",
}


class Corrector(nn.Module):
    """`fit(stale, age, target)` learns; calling it on (stale, age) gives corrected vectors.

    Args:
        by_age: whether it looks at the age of a vector; it is then the identity at age 0.

    What `fit` learns are buffers. Until then it is the identity.
    """

    supports_age = False
    buffer_names: tuple[str, ...] = ()  # what `fit` learns

    def __init__(self, by_age: bool = False):
        super().__init__()
        if by_age and not self.supports_age:
            able = ", ".join(name for name, kind in CORRECTORS.items() if kind.supports_age)
            raise ValueError(
                f"{type(self).__name__} does not look at ages: it moves old and new vectors alike. "
                f"Choose one of {able}."
            )
        self.by_age = by_age
        self.reset()

    def reset(self) -> None:
        """Be the identity again."""
        for name in ("mean_age", *self.buffer_names):
            self.register_buffer(name, None)

    @property
    def fitted(self) -> bool:
        return any(getattr(self, name) is not None for name in self.buffer_names)

    def fit(self, stale: Tensor, age: Tensor, target: Tensor) -> None:
        """Learn from pairs of a stale and a fresh vector.

        stale, fresh: (n, d). ages: (n,), in updates.
        """
        fits = stale.ndim == 2 and stale.shape == target.shape and age.shape == stale.shape[:1]
        if not fits or not len(stale):
            raise ValueError(
                f"fit got {tuple(stale.shape)} stale vectors, {tuple(age.shape)} ages and "
                f"{tuple(target.shape)} targets: expected (n, d), (n,) and (n, d), n ≥ 1."
            )
        self._check(stale, age)
        stale, target = stale.detach(), target.detach()
        if self.by_age:
            self.mean_age = age.to(stale).mean().clamp_min(1e-9)
        self._fit(stale, self._age_weight(age, stale), target)

    def forward(self, stale: Tensor, age: Tensor) -> Tensor:
        """Vectors (n, d) moved to where they would be now; as they are before the first `fit`."""
        self._check(stale, age)
        return self._apply_to(stale, self._age_weight(age, stale)) if self.fitted else stale

    def _check(self, stale: Tensor, age: Tensor) -> None:
        dim = self._fitted_dim()
        if stale.ndim != 2 or age.shape != stale.shape[:1] or dim not in (None, stale.shape[1]):
            fitted = ", as it was fitted; reset() makes it new" if dim else ""
            raise ValueError(
                f"{type(self).__name__} got {tuple(stale.shape)} stale vectors and "
                f"{tuple(age.shape)} ages: expected (n, {dim or 'd'}) and (n,){fitted}."
            )

    def _fitted_dim(self) -> int | None:
        """The length of the vectors that it was fitted to."""
        for name in self.buffer_names:
            value = getattr(self, name)
            if value is not None and value.ndim:
                return value.shape[-1]
        return None

    def _age_weight(self, age: Tensor, like: Tensor) -> Tensor:
        """How far each vector moves: 1, or its age over the mean age that was fitted, (n, 1)."""
        if not self.by_age:
            return torch.ones(len(like), 1, dtype=like.dtype, device=like.device)
        age = age.to(like).unsqueeze(1)
        return torch.zeros_like(age) if self.mean_age is None else age / self.mean_age

    def _fit(self, stale: Tensor, weight: Tensor, target: Tensor) -> None:
        pass

    def _apply_to(self, stale: Tensor, weight: Tensor) -> Tensor:
        return stale

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("mean_age", *self.buffer_names):
            earlier = prefix + EARLIER_NAMES.get(name, name)
            if earlier in state_dict:
                state_dict[prefix + name] = state_dict.pop(earlier)
            value = state_dict.get(prefix + name)
            setattr(self, name, None if value is None else torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Identity(Corrector):
    """No correction: what every other corrector must beat."""


class MeanShift(Corrector):
    """c + the mean drift: all vectors move alike.

    With ages, by the least-squares drift per unit of age.
    """

    supports_age = True
    buffer_names = ("shift",)

    def _fit(self, stale, weight, target):
        squares = (weight * weight).sum().clamp_min(1e-12)
        self.shift = (weight * (target - stale)).sum(0) / squares

    def _apply_to(self, stale, weight):
        return stale + weight * self.shift


class Moments(Corrector):
    """Mean and spread of each coordinate as the fresh vectors have them.

    As cross-batch normalisation does.
    """

    buffer_names = ("source_mean", "target_mean", "scale")

    def _fit(self, stale, weight, target):
        self.source_mean, self.target_mean = stale.mean(0), target.mean(0)
        spread = stale.std(0, correction=0).clamp_min(1e-12)
        self.scale = target.std(0, correction=0) / spread

    def _apply_to(self, stale, weight):
        return (stale - self.source_mean) * self.scale + self.target_mean


class Procrustes(Corrector):
    """The rotation (or reflection) and shift that fit best: distances among the vectors stay."""

    buffer_names = ("source_mean", "target_mean", "rotation")

    def _fit(self, stale, weight, target):
        self.source_mean, self.target_mean = stale.mean(0), target.mean(0)
        covariance = (stale - self.source_mean).T @ (target - self.target_mean)
        left, _, right = torch.linalg.svd(covariance)
        self.rotation = left @ right

    def _apply_to(self, stale, weight):
        return (stale - self.source_mean) @ self.rotation + self.target_mean


class Ridge(Corrector):
    """c + s·(c·W + b), W and b by least squares with a penalty on W: the linear drift.

    s is 1, or the age. penalty: of W, as a share of the stale vectors' variance; the larger, the
    nearer to a shift.
    """

    supports_age = True
    buffer_names = ("center", "matrix", "shift")

    def __init__(self, by_age: bool = False, penalty: float = 0.03):
        super().__init__(by_age)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty!r}: it must be 0 or more.")
        self.penalty = penalty

    def _fit(self, stale, weight, target):
        center = stale.mean(0)
        x = torch.cat([weight * (stale - center), weight], 1)  # (n, d + 1)
        size = self.penalty * float((x[:, :-1] ** 2).sum()) / stale.shape[1]
        penalty = torch.full((x.shape[1],), size, dtype=x.dtype, device=x.device)
        penalty[-1] = 1e-9 * float((weight**2).sum())  # the shift is free
        normal_matrix = x.T @ x + torch.diag(penalty + 1e-12)
        solution = torch.linalg.solve(normal_matrix, x.T @ (target - stale))
        self.center, self.matrix, self.shift = center, solution[:-1], solution[-1]

    def _apply_to(self, stale, weight):
        return stale + weight * ((stale - self.center) @ self.matrix + self.shift)


class Kernel(Corrector):
    """c + the drift of the fitted pairs near c, weighted by a Gaussian of their distance.

    As semantic drift compensation does. width: of the Gaussian, in units of the median distance
    from a pair to its nearest neighbour.
    """

    supports_age = True
    buffer_names = ("anchors", "drift", "bandwidth")

    def __init__(self, by_age: bool = False, width: float = 0.5):
        super().__init__(by_age)
        if not width > 0:
            raise ValueError(f"width is {width!r}: it must be above 0.")
        self.width = width

    def _fit(self, stale, weight, target):
        nearest = torch.ones(1).to(stale)
        if len(stale) > 1:
            nearest = torch.cdist(stale, stale).fill_diagonal_(torch.inf).amin(1)
        self.anchors = stale.clone()
        self.drift = (target - stale) / weight.clamp_min(1e-9)
        self.bandwidth = self.width * nearest.median().clamp_min(1e-9)

    def _apply_to(self, stale, weight):
        closeness = -0.5 * (torch.cdist(stale, self.anchors) / self.bandwidth) ** 2
        return stale + weight * (closeness.softmax(1) @ self.drift)


class ResidualMLP(Corrector):
    """The paper's corrector, in our form: c + s·W₂·GELU(W₁·c + b₁) + s·b₂.

    W₂ = b₂ = 0 at the start, so that it starts as the identity. Each `fit` makes `steps` steps of
    AdamW (its own optimiser) on the mean squared error over all pairs it is given, and continues
    from where the last left off. width: of the hidden layer. No gradient goes into the vectors or
    what made them.
    """

    supports_age = True
    buffer_names = ("steps_made",)

    def __init__(self, by_age=False, width=128, steps=2, learning_rate=3e-3, seed=0):
        if not (width >= 1 and steps >= 0 and learning_rate > 0):
            raise ValueError(
                f"width is {width!r}, steps {steps!r} and learning_rate {learning_rate!r}: "
                "they must be 1 or more, 0 or more, and above 0."
            )
        self.width, self.steps, self.learning_rate, self.seed = width, steps, learning_rate, seed
        super().__init__(by_age)

    def reset(self):
        super().reset()
        self.network = self.optimizer = None

    def _fitted_dim(self):
        return self.network[0].in_features if self.network is not None else None

    def _build(self, like: Tensor) -> None:
        dim = like.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = nn.Linear(dim, self.width), nn.GELU(), nn.Linear(self.width, dim)
            self.network = nn.Sequential(*layers).to(like)
        nn.init.zeros_(self.network[2].weight)
        nn.init.zeros_(self.network[2].bias)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=0.0
        )

    @torch.enable_grad()
    def _fit(self, stale, weight, target):
        if self.network is None:
            self._build(stale)
            self.steps_made = torch.zeros(())
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            nn.functional.mse_loss(stale + weight * self.network(stale), target).backward()
            self.optimizer.step()
        self.steps_made = self.steps_made + self.steps

    @torch.no_grad()
    def _apply_to(self, stale, weight):
        return stale + weight * self.network(stale)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.optimizer is not None:
            for number, slots in self.optimizer.state_dict()["state"].items():
                for name, value in slots.items():
                    destination[f"{prefix}optimizer.{number}.{name}"] = value.clone()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        slots = {}
        for name in [name for name in state_dict if name.startswith(prefix + "optimizer.")]:
            number, slot = name.removeprefix(prefix + "optimizer.").split(".")
            slots.setdefault(int(number), {})[slot] = state_dict.pop(name).clone()
        first_layer = state_dict.get(prefix + "network.0.weight")
        self.reset()
        if first_layer is not None:
            self.width = len(first_layer)
            self._build(first_layer)
            optimizer = self.optimizer.state_dict()
            self.optimizer.load_state_dict({**optimizer, "state": slots})
        super()._load_from_state_dict(state_dict, prefix, *args)


#: name -> corrector; the names that `Settings.corrector` takes
CORRECTORS = {
    "identity": Identity,
    "mean_shift": MeanShift,
    "moments": Moments,
    "procrustes": Procrustes,
    "ridge": Ridge,
    "kernel": Kernel,
    "mlp": ResidualMLP,
}


def make_corrector(name: str, by_age: bool = False, seed: int = 0, **options) -> Corrector:
    """A corrector by its name; by_age: for vectors of mixed ages, where it can look at them."""
    if name not in CORRECTORS:
        raise ValueError(f"corrector is {name!r}: choose one of {', '.join(CORRECTORS)}.")
    kind = CORRECTORS[name]
    if kind is ResidualMLP:
        options["seed"] = seed
    return kind(by_age and kind.supports_age, **options)


class OnlineCorrector(nn.Module):
    """A corrector and the newest pairs that it learns from.

    A pair is a stale vector, its age, and the same text's vector when it was encoded again.
    """

    def __init__(self, settings, dim: int, by_age: bool):
        super().__init__()
        self.dim = dim
        self.corrector = make_corrector(settings.corrector, by_age, settings.seed)
        size = 0 if settings.corrector == "identity" else REPLAY_SIZE
        dtype = getattr(torch, settings.dtype)
        self.pairs = MemoryBank(size, 2 * dim + 1, dtype, settings.device)

    def observe(self, ids: Tensor, stale: Tensor, age: Tensor, fresh: Tensor, step: int) -> None:
        """Keep pairs to learn from."""
        if self.pairs.size:
            ages = age.to(stale).unsqueeze(1)
            self.pairs.write(ids, torch.cat([stale, fresh.detach(), ages], 1), step)

    def fit(self) -> None:
        """Learn from the pairs, once there are enough."""
        if len(self.pairs) >= MIN_PAIRS:
            stale, fresh, age = self.pairs.vectors.split([self.dim, self.dim, 1], 1)
            self.corrector.fit(stale, age.squeeze(1), fresh)

    def forward(self, stale: Tensor, age: Tensor) -> Tensor:
        return self.corrector(stale, age)

    def reset(self) -> None:
        """Forget everything."""
        self.corrector.reset()
        self.pairs.clear()

    def snapshot(self) -> tuple:
        """What `restore` needs to undo an update."""
        state = {name: value.clone() for name, value in self.corrector.state_dict().items()}
        return self.pairs.snapshot(REPLAY_SIZE), state

    def restore(self, snapshot: tuple) -> None:
        """Be again as at the snapshot."""
        pairs, corrector = snapshot
        self.pairs.restore(pairs)
        self.corrector.load_state_dict(corrector)
