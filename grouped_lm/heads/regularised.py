"""Label smoothing and z-loss, for heads whose first softmax has logits that can be averaged.

Letters: N tokens, D width, C classes of the first softmax.
"""

from torch import Tensor

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.heads.base import Head
from grouped_lm.heads.losses.chunked import Linear, linear_nll
from grouped_lm.heads.losses.functional import HeadLoss, pick, reduce_nll


class RegularisedHead(Head):
    """A head with label smoothing and z-loss on its first softmax, under `train()`.

    The first softmax is over V for heads without groups, over groups (and a shortlist) for others. A softmax inside a
    group is not regularised.
    """

    regularised = True
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def regularise(self, label_smoothing: float, z_loss: float) -> None:
        """Set the two parts that training adds to the loss.

        Args:
            label_smoothing: e in [0, 1): adds e (mean -log p - nll), so that a target shares e with all classes.
            z_loss: adds z_loss * (log of the partition function)^2, as PaLM does (arXiv 2204.02311, section 5).
        """
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    @property
    def adds_extra(self) -> bool:
        """Whether `loss` must return an extra now."""
        return self.training and bool(self.label_smoothing or self.z_loss)

    def extra_of(self, nll: Tensor, target_logit: Tensor, mean_logit: Tensor, counted: Tensor) -> Tensor:
        """Return the (N,) extra of a softmax from (N,) arguments; the logits of all classes are not needed.

        -log p of class c is log Z - logit[c]. So mean -log p - nll is target_logit - mean_logit, and log Z is nll +
        target_logit.
        """
        extra = self.label_smoothing * (target_logit - mean_logit) + self.z_loss * (nll + target_logit).square()
        return extra.masked_fill(~counted, 0.0)

    def logits_extra(self, logits: Tensor, classes: Tensor, nll: Tensor, counted: Tensor) -> Tensor | None:
        """Return the (N,) extra of the (N, C) logits of the first softmax; None where nothing is added."""
        if not self.adds_extra:
            return None
        target = logits.gather(1, classes.clamp_min(0)[:, None]).squeeze(1)
        return self.extra_of(nll, target, logits.mean(1), counted)

    def linear_loss(
        self, layer: Linear, classes: Tensor, shape: tuple[int, ...], reduction: str, share: Tensor | None = None
    ) -> HeadLoss:
        """Return the loss of a head that is one softmax of a linear layer, with the extra.

        The (N,) classes are those of targets of `shape`, or IGNORE_INDEX; `share` is the (N,) -log p(target | class)
        where a class has more than one token.
        """

        def finish(values: Tensor) -> Tensor:
            return reduce_nll(values.view(shape) if reduction == "none" else values, classes, reduction)

        nll = linear_nll(layer, classes, "none" if self.adds_extra else reduction)
        total = nll if share is None else nll + (share if nll.ndim else share.sum())
        if not self.adds_extra:
            return HeadLoss(nll=finish(total))
        states, weight, bias, known = layer.states, layer.weight, layer.bias, classes.clamp_min(0)
        target, mean = (states * pick(weight, known)).sum(-1), states @ weight.mean(0).to(states.dtype)
        if bias is not None:
            target, mean = target + pick(bias, known), mean + bias.mean()
        extra = self.extra_of(nll, target, mean, classes != IGNORE_INDEX)
        return HeadLoss(nll=finish(total), extra=finish(extra))
