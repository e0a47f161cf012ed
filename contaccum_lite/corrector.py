"""Correctors: small maps that move a stale vector to where its passage's vector would be now.

After "A Fresh Take on Stale Embeddings" (Monath et al., ICML 2024), of which we could read the abstract and secondary sources, not
the full text. The paper's, by those: a small parametric network takes the stale vector alone, is trained with the retriever by squared
error to the freshly encoded vectors, and is applied to the whole cache at every step. Ours: its residual form that starts as
the identity, its width and optimiser, the age of a vector as an input, and all other correctors, which stand beside it
because a network must first beat a line. Notebook 07.

Every corrector has one interface: `fit(stale, age, target)` learns from pairs (n, d), (n,), (n, d); calling it on (stale, age) gives
corrected vectors of the same shape. None of them ever changes what is stored: what was stored is corrected when it is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Identity:
    """No correction: what every other corrector must beat."""

    ages = False  # whether it looks at the age: it is then the identity at age 0

    def __init__(self, by_age: bool = False):
        if by_age and not self.ages:
            raise ValueError(
                f"{type(self).__name__} does not look at ages: it moves old and new vectors alike. Choose one of {', '.join(n for n, c in CORRECTORS.items() if c.ages)}."
            )
        self.by_age, self.known = by_age, {}  # known: what `fit` has found, as tensors

    @property
    def fitted(self) -> bool:
        return bool(self.known)

    def fit(self, stale: Tensor, age: Tensor, target: Tensor) -> None:
        """Learn from n pairs of a stale vector, with its age in updates, and the same passage's vector now."""
        if (
            stale.shape != target.shape
            or stale.ndim != 2
            or age.shape != stale.shape[:1]
            or not len(stale)
        ):
            raise ValueError(
                f"fit got {tuple(stale.shape)} stale vectors, {tuple(age.shape)} ages and {tuple(target.shape)} targets: expected (n, d), (n,) and (n, d), n ≥ 1."
            )
        self._check(stale, age)
        stale, target = stale.detach(), target.detach()
        self._fit(stale, self._scale(age, stale, fitting=True), target)

    def __call__(self, stale: Tensor, age: Tensor) -> Tensor:
        """Vectors (n, d) moved to where they would be now; as they are before the first `fit`."""
        self._check(stale, age)
        return self._move(stale, self._scale(age, stale)) if self.fitted else stale

    def _check(self, stale: Tensor, age: Tensor) -> None:
        length = self._length()
        if stale.ndim != 2 or age.shape != stale.shape[:1] or length not in (None, stale.shape[1]):
            fitted = ", as it was fitted; reset() makes it new" if length else ""
            raise ValueError(
                f"{type(self).__name__} got {tuple(stale.shape)} stale vectors and "
                f"{tuple(age.shape)} ages: expected (n, {length or 'd'}) and "
                f"(n,){fitted}."
            )

    def _length(self) -> int | None:
        """Of the vectors that it was fitted to."""
        lengths = [value.shape[-1] for value in self.known.values() if value.ndim]
        return lengths[0] if lengths else None

    def reset(self) -> None:
        """Be the identity again."""
        self.known = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.known.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.known = {name: value.clone() for name, value in state.items()}

    def _scale(self, age: Tensor, like: Tensor, fitting: bool = False) -> Tensor:
        """How far each vector goes: 1, or its age over the mean age that was fitted, (n, 1)."""
        if not self.by_age:
            return torch.ones(len(like), 1, dtype=like.dtype, device=like.device)
        age = age.to(like).unsqueeze(1)
        if fitting:
            self.known["unit"] = age.mean().clamp_min(1e-9)
        return age / self.known["unit"] if "unit" in self.known else torch.zeros_like(age)

    def _fit(self, stale: Tensor, scale: Tensor, target: Tensor) -> None:
        pass

    def _move(self, stale: Tensor, scale: Tensor) -> Tensor:
        return stale


class MeanShift(Identity):
    """c + the mean drift: all vectors move alike. With ages, by the least-squares drift per unit of age."""

    ages = True

    def _fit(self, stale, scale, target):
        self.known["shift"] = (scale * (target - stale)).sum(0) / (scale * scale).sum().clamp_min(
            1e-12
        )

    def _move(self, stale, scale):
        return stale + scale * self.known["shift"]


class Moments(Identity):
    """Mean and spread of each coordinate as the fresh vectors have them (as cross-batch normalisation does)."""

    def _fit(self, stale, scale, target):
        self.known = {
            "from": stale.mean(0),
            "to": target.mean(0),
            "stretch": target.std(0, correction=0) / stale.std(0, correction=0).clamp_min(1e-12),
        }

    def _move(self, stale, scale):
        return (stale - self.known["from"]) * self.known["stretch"] + self.known["to"]


class Procrustes(Identity):
    """The rotation (or reflection) and shift that fit best: distances among the vectors stay."""

    def _fit(self, stale, scale, target):
        self.known = {"from": stale.mean(0), "to": target.mean(0)}
        left, _, right = torch.linalg.svd(
            (stale - self.known["from"]).T @ (target - self.known["to"])
        )
        self.known["turn"] = left @ right

    def _move(self, stale, scale):
        return (stale - self.known["from"]) @ self.known["turn"] + self.known["to"]


class Ridge(Identity):
    """c + s·(c·W + b), W and b by least squares with a penalty on W: the linear drift. s is 1, or the age.

    penalty: of W, as a share of the stale vectors' variance; the larger, the nearer to a shift.
    """

    ages = True

    def __init__(self, by_age: bool = False, penalty: float = 0.03):
        super().__init__(by_age)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty!r}: it must be 0 or more.")
        self.penalty = penalty

    def _fit(self, stale, scale, target):
        center = stale.mean(0)
        x = torch.cat([scale * (stale - center), scale], 1)  # (n, d + 1)
        held = torch.full(
            (x.shape[1],),
            self.penalty * float((x[:, :-1] ** 2).sum()) / stale.shape[1],
            dtype=x.dtype,
            device=x.device,
        )
        held[-1] = 1e-9 * float((scale**2).sum())  # the shift is free
        found = torch.linalg.solve(x.T @ x + torch.diag(held + 1e-12), x.T @ (target - stale))
        self.known |= {"center": center, "matrix": found[:-1], "shift": found[-1]}

    def _move(self, stale, scale):
        return stale + scale * (
            (stale - self.known["center"]) @ self.known["matrix"] + self.known["shift"]
        )


class Kernel(Identity):
    """c + the drift of the fitted pairs near c, weighted by a Gaussian of their distance (as semantic drift compensation does).

    width: of the Gaussian, in units of the median distance from a pair to its nearest neighbour.
    """

    ages = True

    def __init__(self, by_age: bool = False, width: float = 0.5):
        super().__init__(by_age)
        if not width > 0:
            raise ValueError(f"width is {width!r}: it must be above 0.")
        self.width = width

    def _fit(self, stale, scale, target):
        apart = (
            torch.cdist(stale, stale).fill_diagonal_(torch.inf).amin(1)
            if len(stale) > 1
            else torch.ones(1).to(stale)
        )
        self.known |= {
            "places": stale.clone(),
            "drift": (target - stale) / scale.clamp_min(1e-9),
            "size": self.width * apart.median().clamp_min(1e-9),
        }

    def _move(self, stale, scale):
        near = -0.5 * (torch.cdist(stale, self.known["places"]) / self.known["size"]) ** 2
        return stale + scale * (near.softmax(1) @ self.known["drift"])


class ResidualMLP(Identity):
    """The paper's corrector, in our form: c + s·W₂·GELU(W₁·c + b₁) + s·b₂, with W₂ = b₂ = 0 at the start, so that it starts as the identity.

    Each `fit` makes `steps` steps of AdamW (Psi's own optimiser) on the mean squared error over all pairs it is given and goes
    on from where the last left off. width: of the hidden layer. No gradient goes into the vectors or what made them.
    """

    ages = True

    def __init__(
        self,
        by_age: bool = False,
        width: int = 128,
        steps: int = 2,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ):
        super().__init__(by_age)
        if not (width >= 1 and steps >= 0 and learning_rate > 0):
            raise ValueError(
                f"width is {width!r}, steps {steps!r} and learning_rate "
                f"{learning_rate!r}: they must be 1 or more, 0 or more, and above 0."
            )
        self.width, self.steps, self.learning_rate, self.seed = width, steps, learning_rate, seed
        self.network = self.optimizer = None

    def _length(self):
        return self.network[0].in_features if self.network is not None else None

    def reset(self):
        self.known, self.network, self.optimizer = {}, None, None

    def _begin(self, like: Tensor) -> None:
        dim = like.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = nn.Sequential(
                nn.Linear(dim, self.width), nn.GELU(), nn.Linear(self.width, dim)
            ).to(like)
        nn.init.zeros_(self.network[2].weight)
        nn.init.zeros_(self.network[2].bias)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=0.0
        )

    @torch.enable_grad()
    def _fit(self, stale, scale, target):
        if self.network is None:
            self._begin(stale)
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            nn.functional.mse_loss(stale + scale * self.network(stale), target).backward()
            self.optimizer.step()
        self.known["steps"] = self.known.get("steps", torch.zeros(())) + self.steps

    @torch.no_grad()
    def _move(self, stale, scale):
        return stale + scale * self.network(stale)

    def state_dict(self):
        found = super().state_dict()
        if self.network is not None:
            found |= {
                f"network.{name}": value.detach().clone()
                for name, value in self.network.state_dict().items()
            }
            found |= {
                f"optimizer.{n}.{name}": value.clone()
                for n, slots in self.optimizer.state_dict()["state"].items()
                for name, value in slots.items()
            }
        return found

    def load_state_dict(self, state):
        self.reset()
        self.known = {name: value.clone() for name, value in state.items() if "." not in name}
        if "network.0.weight" in state:
            self.width = len(state["network.0.weight"])
            self._begin(state["network.0.weight"])
            self.network.load_state_dict(
                {
                    name.removeprefix("network."): value
                    for name, value in state.items()
                    if name.startswith("network.")
                }
            )
            kept = self.optimizer.state_dict()
            for name, value in state.items():
                if name.startswith("optimizer."):
                    _, n, slot = name.split(".")
                    kept["state"].setdefault(int(n), {})[slot] = value.clone()
            self.optimizer.load_state_dict(kept)


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


def make_corrector(name: str, by_age: bool = False, seed: int = 0):
    """A corrector by its name; by_age: for vectors of mixed ages, where it can look at them."""
    if name not in CORRECTORS:
        raise ValueError(f"corrector is {name!r}: choose one of {', '.join(CORRECTORS)}.")
    kind = CORRECTORS[name]
    return kind(by_age and kind.ages, **({"seed": seed} if kind is ResidualMLP else {}))
